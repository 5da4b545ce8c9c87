"""`distill hierarchy build · show · import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options import common
from distill.cli.options.command import FILE, PATH, Group, option
from distill.cli.output import print_result

if TYPE_CHECKING:
    from distill.hierarchy.semantic import SemanticHierarchy


@click.group(cls=Group)
def hierarchy() -> None:
    """Build, show and import hierarchies."""


@hierarchy.command(examples=["wnids.txt --out mine.json --name mine"])
@click.argument("source")
@option("--out", required=True, type=PATH, help="JSON file to write.")
@option("--name", help="Name of the hierarchy.", show_default="that of the file")
@option("--keep-deepest", is_flag=True, help="Keep the softmax of the deepest level.")
@common.as_json
def build(source: str, out: Path, name: str | None, keep_deepest: bool, as_json: bool) -> None:
    """Build a hierarchy from WordNet 3.0.

    SOURCE is a text file with one wnid per line, imagenet21k-p-fall11 or imagenet21k-p-winter21.
    """
    from distill.hierarchy import wordnet
    from distill.hierarchy.semantic import SemanticHierarchy

    built = SemanticHierarchy.from_wordnet(
        wordnet.read_label_set(source), name=name or out.stem, drop_deepest=not keep_deepest
    )
    built.save(out)
    print_result(as_json, _document(built, out), f"{out}: {_sizes(built)}")


@hierarchy.command(examples=["--out hypernyms.txt"])
@option("--out", required=True, type=PATH, help="Table to write.")
@common.as_json
def hypernyms(out: Path, as_json: bool) -> None:
    """Write the table of hypernyms that ships with distill, from WordNet 3.0."""
    from distill.hierarchy.hypernyms import write_table

    count = write_table(out)
    document = {"path": str(out), "synsets": count}
    print_result(as_json, document, f"{out}: {count} synsets with a hypernym")


@hierarchy.command(name="import", examples=["imagenet21k_miil_tree.pth --out tree.json"])
@click.argument("tree", type=FILE)
@option("--out", required=True, type=PATH, help="JSON file to write.")
@common.as_json
def import_(tree: Path, out: Path, as_json: bool) -> None:
    """Import the authors' imagenet21k_miil_tree.pth, TREE. Nothing in it is executed."""
    from distill.hierarchy.semantic import SemanticHierarchy

    built = SemanticHierarchy.from_miil_tree(tree)
    built.save(out)
    print_result(as_json, _document(built, out), f"{out}: {_sizes(built)}")


@hierarchy.command(examples=["imagenet21k-p-fall11", "imagenet21k-p-fall11 swan"])
@click.argument("name")
@click.argument("word", required=False)
@common.as_json
def show(name: str, word: str | None, as_json: bool) -> None:
    """Print the levels of NAME (bundled, or a JSON file), or the chains of WORD in it."""
    import json

    from distill.hierarchy.semantic import resolve

    shown = resolve(name)
    if word:
        for synset in shown.find(word):
            chain = (synset, *shown.ancestors(synset))
            level = len(chain) - 1
            path = " → ".join(f"{shown.display_name(s)} ({s})" for s in chain)
            click.echo(
                json.dumps({"synset": synset, "hierarchy": level, "chain": chain})
                if as_json
                else f"hierarchy {level}: {path}"
            )
        return
    if as_json:
        click.echo(
            json.dumps(
                {
                    "name": shown.name,
                    "digest": shown.digest,
                    "num_classes": shown.num_classes,
                    "num_hierarchies": shown.num_hierarchies,
                    "level_sizes": shown.level_sizes,
                    "weights": shown.weights,
                }
            )
        )
        return
    click.echo(f"{shown.name}: {_sizes(shown)}")
    click.echo("hierarchy  classes  weight  such as")
    for level, size in enumerate(shown.level_sizes):
        weight = f"{shown.weights[level]:6.2f}" if level < shown.num_hierarchies else "  none"
        members = [n for n, at in zip(shown.names, shown.levels, strict=True) if at == level]
        examples = ", ".join(members[:: max(1, len(members) // 3)][:3]).replace("_", " ")
        click.echo(f"{level:9d}  {size:7d}  {weight}  {examples}")


def _sizes(built: "SemanticHierarchy") -> str:
    return (
        f"{built.num_classes} classes in {built.num_hierarchies} hierarchies, "
        f"digest {built.digest[:12]}"
    )


def _document(built: "SemanticHierarchy", out: Path) -> dict[str, Any]:
    return {
        "path": str(out),
        "name": built.name,
        "digest": built.digest,
        "num_classes": built.num_classes,
        "classes_per_hierarchy": list(built.classes_per_hierarchy),
    }
