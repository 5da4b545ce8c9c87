"""`distill evaluate`: judge trained models on labelled images."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options import common
from distill.cli.options.command import FILE, PATH, command, option
from distill.cli.options.images import DataChoice, data_options, to_stderr

if TYPE_CHECKING:
    from distill.data.source import ImageSource
    from distill.store.logit_store import LogitStore
    from distill.trainers.models.trained import TrainedModel
    from distill.trainers.recipe import Scheme

SHARES = (
    ("semantic_top1", "semantic"),
    ("top1", "top-1"),
    ("top5", "top-5"),
    ("micro_map", "micro mAP"),
    ("macro_map", "macro mAP"),
    ("real_top1", "ReaL"),
    ("missing_tag_recovery", "missing tags"),
)


@command(
    examples=[
        "RUN OTHER_RUN --data DATA",
        "RUN --data DATA --truth labels.csv --plot curves.png",
        "timm:resnet18 --data IMAGENET --labels real",
    ]
)
@click.argument("models", nargs=-1, required=True)
@data_options(required=False, split="val", show_split=True, validation=True, clips=True)
@common.label_set("that of the model")
@common.scheme
@option(
    "--truth",
    type=FILE,
    help=("CSV with key and true_wnid: also measure how many missing training tags are recovered."),
)
@option(
    "--tags", type=FILE, help="Tags for models fine-tuned on tags, in a form that finetune takes."
)
@option(
    "--labels",
    default="tags",
    help=(
        "tags (those of --data), real (published ReaL labels of ImageNet-1K), "
        "or a file of reassessed labels."
    ),
)
@option("--plot", type=PATH, help="Plot accuracy over epochs to this file.")
@common.limit
@common.machine
@common.as_json
def evaluate(
    models: tuple[str, ...],
    data: DataChoice | None,
    label_set: str | None,
    scheme: "Scheme | None",
    truth: Path | None,
    tags: Path | None,
    labels: str,
    plot: Path | None,
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Evaluate MODELS: folders of runs, weight files with their card, timm:NAME, or stores.

    Reports semantic top-1 per hierarchy and in total, by images and by classes; top-1 and top-5
    among the most specific classes that occur, and among all; and mean average precision over
    labels with their ancestors. Of a store, what its teacher said of these images. --plot alone
    needs no --data.
    """
    from distill.curate.real_labels import read_labels
    from distill.errors import ConfigError
    from distill.hierarchy.semantic import resolve
    from distill.models.devices import pick_device
    from distill.store.logit_store import LogitStore, has_store
    from distill.trainers.evaluation.evaluate import (
        evaluate,
        evaluate_real,
        evaluate_recovery,
        evaluate_tags,
    )
    from distill.trainers.evaluation.tags import read_tags
    from distill.trainers.models.meaning import LogitsMeaning
    from distill.trainers.models.trained import open_trained
    from distill.trainers.process_group import Machine

    if data is None and not plot:
        raise ConfigError("neither --data nor --plot found, expected one; pass images as --data")
    machine = Machine(device=pick_device(device), workers=workers)
    opened = [LogitStore.open(name) if has_store(name) else open_trained(name) for name in models]
    trained_ones = {
        name: each
        for name, each in zip(models, opened, strict=True)
        if not isinstance(each, LogitStore)
    }
    stores = [name for name in models if name not in trained_ones]
    useless = next((o for o, v in (("--tags", tags), ("--labels", labels != "tags")) if v), "")
    if stores and (useless or (plot and not trained_ones)):
        raise ConfigError(
            f"{stores[0]}: a store found with {useless or '--plot'}, expected models: a store is "
            "judged by the tags of its own label set, or --truth"
        )
    if plot:
        _plot(trained_ones, plot)
    judged: dict[str, dict[str, Any]] = {}
    if data is not None:
        source = data.open_judged().limited(limit)
        real = labels != "tags"
        reassessed = read_labels(Path(labels)) if real and labels != "real" else None
        tag_file = read_tags(tags) if tags and not real else None
        recovers = truth and not (real or tags)
        tagged = data.open("train").limited(limit) if recovers else None

        def figures(where: str, trained: "TrainedModel | LogitStore") -> dict[str, Any]:
            if isinstance(trained, LogitStore):
                if label_set:
                    digest = resolve(label_set).digest
                    trained.manifest.require(trained.location, hierarchy_digest=digest)
                to_stderr(f"model: {where}: a store of {trained.manifest.teacher.name}")
                return _of_store(trained, source, tagged, truth)
            if tag_file:
                return evaluate_tags(trained, tags=tag_file, source=source, machine=machine)
            hierarchy = resolve(label_set) if label_set else trained.hierarchy
            if hierarchy and not real:
                trained = trained.with_hierarchy(hierarchy)
            for note in trained.notes:
                to_stderr(f"model: {where}: {note}")
            if hierarchy is None and not real:
                raise ConfigError(
                    f"{where}: nothing says which classes its logits are of, expected a "
                    "hierarchy.json beside it; pass --label-set"
                )
            usual: Scheme = "single-label" if real else "semantic"
            reading = LogitsMeaning(scheme or trained.scheme or usual, trained.taught)
            to_stderr(f"model: {where}: {reading}; {trained.input}")
            if real:
                return evaluate_real(
                    trained,
                    labels=reassessed,
                    hierarchy=hierarchy,
                    reading=reading,
                    source=source,
                    machine=machine,
                )
            keywords: dict[str, Any] = {
                "hierarchy": hierarchy,
                "reading": reading,
                "machine": machine,
            }
            figures_of_model = evaluate(trained, source=source, **keywords)
            if truth and tagged:
                recovery = evaluate_recovery(trained, source=tagged, truth=truth, **keywords)
                figures_of_model |= {
                    name: v for name, v in recovery.items() if name.startswith("missing")
                }
            return figures_of_model

        judged = {name: figures(name, each) for name, each in zip(models, opened, strict=True)}
    if as_json:
        click.echo(json.dumps(judged, allow_nan=False))
    elif judged:
        _print(judged)
    if plot and not as_json:
        click.echo(f"plot: {plot}")


def _of_store(
    store: "LogitStore", source: "ImageSource", tagged: "ImageSource | None", truth: Path | None
) -> dict[str, Any]:
    from distill.data.truth import read_truth
    from distill.hierarchy.semantic import SemanticHierarchy
    from distill.trainers.evaluation.stored import evaluate_store

    figures = evaluate_store(store, source)
    if truth and tagged:
        true = read_truth(truth, tagged, SemanticHierarchy.from_json(store.hierarchy))
        recovery = evaluate_store(store, tagged, true=true)
        figures |= {name: v for name, v in recovery.items() if name.startswith("missing")}
    return figures


def _print(judged: dict[str, dict[str, Any]]) -> None:
    shown = [(key, title) for key, title in SHARES if any(key in row for row in judged.values())]
    wide = max(len("model"), *map(len, judged))
    click.echo(f"{'model':{wide}s}" + "".join(f"{title:>14s}" for _, title in shown))
    for where, row in judged.items():
        cells = (
            " " * 14 if row.get(key) is None else f"{100 * row[key]:13.2f}%" for key, _ in shown
        )
        click.echo(f"{where:{wide}s}" + "".join(cells))
    for key, title in SHARES:
        rows = {
            w: row[f"{key}_per_hierarchy"] for w, row in judged.items() if f"{key}_counts" in row
        }
        if rows:
            levels = range(len(next(iter(rows.values()))))
            click.echo(f"\n{title + ' per hierarchy':{wide}s}" + "".join(f"{k:7d}" for k in levels))
            for where, shares in rows.items():
                cells = ("      -" if s is None else f"{100 * s:7.1f}" for s in shares)
                click.echo(f"{where:{max(wide, len(title) + 14)}s}" + "".join(cells))
    for where, row in judged.items():
        if row.get("semantic_top1_by_classes") is not None and "top1_all" in row:
            click.echo(
                f"{where}: semantic is weighted by images; by classes it is "
                f"{100 * row['semantic_top1_by_classes']:.2f}%. top-1 and top-5 are among the "
                f"{row['most_specific_classes']} most specific classes that occur; among all "
                f"{row['classes']} they are {100 * row['top1_all']:.2f}% and "
                f"{100 * row['top5_all']:.2f}%"
            )
        if row.get("not_in_store"):
            click.echo(
                f"{where}: judged {row['images']} of {row['images'] + row['not_in_store']} images, "
                "those whose keys the store has; keys leave the split out, so pass the --split "
                "that it was made from"
            )
        if row["unreadable"]:
            click.echo(f"{where}: {row['unreadable']} images cannot be read and were left out")


def _plot(opened: "dict[str, TrainedModel]", path: Path) -> None:
    from distill.charts import draw_curves
    from distill.errors import ConfigError

    curves = {}
    for name, trained in opened.items():
        points = [
            (record["epoch"], record["validation"]["semantic_top1"])
            for record in trained.run.get("history", ())
            if record.get("validation", {}).get("semantic_top1") is not None
        ]
        if not points:
            raise ConfigError(
                f"{name}: no accuracy by epoch found in its run.json, expected a run that "
                "had validation images; leave it out of --plot"
            )
        curves[name] = points
    draw_curves(
        path,
        curves,
        x="epoch",
        y="semantic top-1 on validation images",
        title="Students over epochs",
    )
