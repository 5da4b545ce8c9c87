"""`distill finetune`: train a student on for another task."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli import options, recipes, targeting

if TYPE_CHECKING:
    from trainers.finetune import LabelledImages
    from trainers.loop import TrainReport
    from trainers.recipe import Recipe
    from trainers.world import Machine

EPOCHS = 40


@click.command()
@recipes.recipe
@options.data
@click.option(
    "--tags",
    type=click.Path(path_type=Path),
    help="Of images with any number: CSV (key, tags with ; between), COCO's JSON, VOC's folder.",
)
@click.option("--val-data", type=click.Path(path_type=Path), help="Where --data has no val split.")
@click.option("--val-tags", type=click.Path(path_type=Path), help="Where --tags has not them all.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@targeting.targets
@click.option(
    "--samples",
    type=click.Path(path_type=Path),
    help="Train on those alone: keys, one a line, or CSV with key and wnid.",
)
@click.option(
    "--compare",
    metavar="INIT,INIT",
    help="Train from each of several starts, such as pretrained,random, and draw their curves.",
)
@click.option(
    "--longer",
    type=click.FloatRange(1, 100),
    default=3,
    show_default=True,
    help="How many times the epochs random weights get in --compare.",
)
@recipes.run
@options.limit
@options.machine
@options.as_json
def finetune(
    choice: recipes.RecipeChoice,
    data: Path,
    tags: Path | None,
    val_data: Path | None,
    val_tags: Path | None,
    out: Path,
    targeting: targeting.TargetsChoice,
    samples: Path | None,
    compare: str | None,
    longer: float,
    run: recipes.RunChoice,
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Train a student on DATA's own classes, from --init: a run's folder, a file, timm or random.

    40 epochs of one class an image (--scheme single-label, or multi-label for one sigmoid a class)
    unless a recipe says otherwise. Running the same command again goes on at the last checkpoint.
    """
    from distill.cli.training import own_device, report_training, train_as_command
    from distill.data import has_split, open_source
    from distill.hierarchy import SemanticHierarchy
    from trainers.finetune import LabelledImages, classes_of, finetune
    from trainers.finetune import compare as run_each
    from trainers.sample_list import SampleList
    from trainers.tags import read_tags

    source = open_source(data).limited(limit)
    tag_file = read_tags(tags) if tags else None
    if tag_file:
        classes = SemanticHierarchy.from_chains(tag_file.classes, {}, name=Path(data).name)
    else:
        classes = classes_of(source)
    label_set = out / "classes.json"
    classes.save(label_set)
    answers = targeting.open(str(label_set), own_device(device), yes_or_no=tag_file is not None)
    recipe = choice.read(scheme="multi-label" if tag_file else "single-label", epochs=EPOCHS)

    def labelled(images: Path, split: str, file: Path | None) -> "LabelledImages":
        found = source if split == "train" else open_source(images, split)
        own = read_tags(file) if file else tag_file
        return LabelledImages(
            source=found, tags=own.present(found, classes.synsets) if own else None
        )

    val_at = val_data or (data if has_split(data, "val") else None)
    training = labelled(data, "train", tags)
    validation = labelled(val_at, "val", val_tags) if val_at else None

    def train(machine: "Machine", keywords: dict[str, Any]) -> "TrainReport":
        def one(recipe: "Recipe", where: Path) -> "TrainReport":
            return finetune(
                recipe=_resolved(recipe),
                training=training,
                validation=validation,
                classes=classes,
                targets=answers,
                samples=SampleList.read(samples) if samples else None,
                out=where,
                machine=machine,
                **keywords,
            )

        if not compare:
            return one(recipe, out)
        starts = [init.strip() for init in compare.split(",") if init.strip()]
        reports = run_each(starts, longer, recipe, out, one)
        return list(reports.values())[-1]

    report = train_as_command("finetune", run, out, device, workers, as_json, train)
    if report and compare:
        _report_comparison(out, compare, as_json)
    elif report:
        report_training(report, as_json)


def _resolved(recipe: "Recipe") -> "Recipe":
    """A run's folder as --init is its weights."""
    from dataclasses import replace

    path = Path(recipe.init)
    inside = path / "student.safetensors"
    return replace(recipe, init=str(inside)) if path.is_dir() else recipe


def _report_comparison(out: Path, compare: str, as_json: bool) -> None:
    from distill.errors import ConfigError
    from trainers.finetune import draw_comparison

    histories = {}
    for init in compare.split(","):
        name = Path(init.strip()).stem
        histories[name] = json.loads((out / name / "run.json").read_text())["history"]
    last = {name: history[-1].get("validation") for name, history in histories.items()}
    if not all(last.values()):
        raise ConfigError(
            "no validation images found, expected some to compare by; pass --val-data"
        )
    figure = "top1" if "top1" in next(iter(last.values())) else "macro_map"
    plot = out / "comparison.png"
    met = draw_comparison(plot, histories, figure)
    if as_json:
        click.echo(json.dumps({"last": last, "crossing": met and asdict(met)}))
        return
    for name, history in histories.items():
        click.echo(
            f"{name}: {figure.replace('_', ' ')} {100 * last[name][figure]:.2f}% after "
            f"{len(history)} epochs"
        )
    click.echo(
        f"random weights reach the other at epoch {met.epoch:.1f}, {100 * met.accuracy:.2f}%"
        if met
        else "random weights do not reach the other within their epochs"
    )
    click.echo(f"plot: {plot}")
