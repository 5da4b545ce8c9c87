"""`distill data real-labels study`: what reassessed labels say of models and of labels."""

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options import common
from distill.cli.options.command import PATH, command, option
from distill.cli.options.images import DataChoice, data_options
from distill.cli.output import print_result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distill.data.source import ImageSource
    from distill.hierarchy.semantic import SemanticHierarchy
    from distill.trainers.recipe import Scheme

FILES = "models.csv", "classes.csv", "questions.csv"
SHOWN = 10  # classes


@command(
    examples=[
        "timm:resnet18 timm:vit_base_patch16_224 --data IMAGENET --out STUDY",
        "a.csv b.csv c.csv d.csv e.csv f.csv --data IMAGENET --earlier 3 --out STUDY",
    ]
)
@click.argument("models", nargs=-1, required=True)
@data_options(split="val", show_split=True)
@common.label_set("the first model's")
@common.scheme
@option(
    "--labels",
    default="real",
    help="File of reassessed labels, or real: the published ones of ImageNet-1K.",
)
@option(
    "--earlier",
    type=click.IntRange(0),
    show_default="half of them",
    help="How many of MODELS, which stand in the order of their age, are earlier ones.",
)
@option("--out", required=True, type=PATH, help="Folder for tables, charts and questions.")
@common.limit
@common.machine
@common.as_json
def study(
    models: tuple[str, ...],
    data: DataChoice,
    label_set: str | None,
    scheme: "Scheme | None",
    labels: str,
    earlier: int | None,
    out: Path,
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Compare accuracy by labels with accuracy by reassessed labels, as arXiv 2006.07159 does.

    MODELS are given as for `distill evaluate`, or as CSV files of predictions: key, then classes,
    the most probable first; what a model predicts is written as such a file. Tells who is right
    where a model and a label disagree, which classes occur together, and which mistakes are left:
    questions.csv, for `distill data real-labels rate`.
    """
    import numpy as np

    from distill.curate.proposals import in_questions
    from distill.curate.real_label_classes import known_by_row, published_classes
    from distill.curate.real_labels import read_labels
    from distill.curate.real_study import (
        FEWEST,
        StudiedLabels,
        accuracy_by_class,
        classes_of,
        figures_of,
        mistakes,
        progress_of,
    )
    from distill.data.source import label_indices
    from distill.errors import ConfigError, first_line
    from distill.files import write_csv

    source = data.open().limited(limit)
    hierarchy, predicted = _predictions(models, source, label_set, scheme, out, device, workers)
    synsets, name = hierarchy.synsets, hierarchy.display_name
    by_row = (
        published_classes(source)
        if labels == "real"
        else known_by_row(read_labels(Path(labels)), source, hierarchy, hierarchy.num_classes)
    )
    studied = StudiedLabels(
        tags=label_indices(source, hierarchy),
        real=[None if classes is None else frozenset(classes) for classes in by_row],
    )
    figures = {model: figures_of(each, studied) for model, each in predicted.items()}
    rows = list(figures.values())
    half = len(rows) // 2 if earlier is None else earlier
    progress = None
    why_not = f"fewer than {2 * FEWEST} models"
    if earlier is not None or half >= FEWEST:
        try:
            progress = progress_of(rows[:half], rows[half:])
        except ConfigError as error:
            if earlier is not None:
                raise
            why_not = first_line(error)
    classes, left = classes_of(studied), mistakes(predicted, studied)
    by_model = [accuracy_by_class(each, studied, classes) for each in predicted.values()]
    write_csv(
        out / FILES[0],
        ["model", *(key for key in asdict(rows[0]) if key != "further"), "preferred", "further"],
        [
            [
                model,
                *(_shown(value) for key, value in asdict(row).items() if key != "further"),
                _shown(row.preferred),
                " ".join(map(_shown, row.further)),
            ]
            for model, row in figures.items()
        ],
    )
    write_csv(
        out / FILES[1],
        ["label", "name", "images", "oracle", "together", *predicted],
        [
            [
                synsets[each.c],
                name(synsets[each.c]),
                each.images,
                _shown(each.oracle),
                "; ".join(f"{name(synsets[c])} {share:.0%}" for c, share in each.together),
                *(_shown(accuracy[place]) for accuracy in by_model),
            ]
            for place, each in enumerate(classes)
        ],
    )
    questions = [
        [source.samples[row].key, synsets[c], name(synsets[c]), number, ";".join(seen.get(c, []))]
        for row, seen in left.items()
        for number, part in enumerate(
            in_questions([*seen, *_tag(studied.tags, row, seen)], hierarchy)
        )
        for c in part
    ]
    write_csv(out / FILES[2], ["key", "label", "name", "question", "proposed_by"], questions)
    if find_spec("matplotlib"):
        from distill.charts import draw_study

        points = {model: (row.accuracy, row.real_accuracy) for model, row in figures.items()}
        curves = {"oracle": [each.oracle for each in classes]}
        draw_study(out, points, curves | dict(zip(predicted, by_model, strict=True)))
    discarded = int((~studied.counted).sum())
    document: dict[str, Any] = {
        "images": len(source),
        "discarded": discarded,
        "models": {
            model: {**asdict(row), "preferred": row.preferred} for model, row in figures.items()
        },
        "progress": progress and asdict(progress),
        "ambiguous": int(np.sum([each.oracle < 0.9 for each in classes])),
        "classes": [{**asdict(each), "label": synsets[each.c]} for each in classes],
        "mistakes": len(left),
    }
    lines = [
        f"{len(source)} images, {discarded} without a reassessed label are left out",
        *(
            f"{model}: {row.accuracy:.1%} by labels, {row.real_accuracy:.1%} by reassessed ones; "
            f"disagrees with {row.disagreements} labels: right against {row.model_right:.0%}, "
            f"wrong against {row.label_right:.0%}, both right {row.both_right:.0%}"
            for model, row in figures.items()
        ),
    ]
    if progress:
        lines.append(
            f"slope of reassessed accuracy: {progress.earlier.slope:.2f} of the {half} earlier "
            f"models, {progress.later.slope:.2f} of the {len(rows) - half} later; "
            + ("without any error" if progress.p is None else f"equal with p = {progress.p:.2g}")
        )
    else:
        lines.append(f"slopes of earlier and later models are not compared: {why_not}")
    lines += [
        f"{document['ambiguous']} of {len(classes)} classes leave an oracle below 90%: "
        + ", ".join(f"{name(synsets[each.c])} {each.oracle:.0%}" for each in classes[:SHOWN]),
        f"no model is right about {len(left)} images: {out / FILES[2]}",
        f"{out / FILES[0]}, {out / FILES[1]}",
    ]
    print_result(as_json, document, *lines)


def _predictions(
    models: tuple[str, ...],
    source: "ImageSource",
    label_set: str | None,
    scheme: "Scheme | None",
    out: Path,
    device: str,
    workers: int,
) -> "tuple[SemanticHierarchy, dict[str, NDArray[np.int64]]]":
    """Classes that they are of, and [n, 3] of each by its name; written where models made them.

    Raises:
        ConfigError: two are called the same, or nothing says what classes they are of.
    """
    import numpy as np

    from distill.curate.real_label_classes import IMAGENET_1K
    from distill.curate.real_study import PREDICTIONS, read_predictions
    from distill.data.source import label_indices
    from distill.errors import ConfigError
    from distill.files import write_csv
    from distill.models.devices import pick_device
    from distill.trainers.evaluation.top_classes import label_set_of, predict_top_classes
    from distill.trainers.models.trained import open_trained
    from distill.trainers.process_group import Machine

    opened = {model: open_trained(model) for model in models if not model.endswith(".csv")}
    first = next(iter(opened.values()), None)
    hierarchy = label_set_of(
        label_set, first.hierarchy if first else None, first.num_classes if first else IMAGENET_1K
    )
    labels, found = label_indices(source, hierarchy), {}
    machine = Machine(device=pick_device(device), workers=workers)
    for model in models:
        name = Path(model).stem if model not in opened else opened[model].name
        if name in found or "/" in name:
            raise ConfigError(
                f"two models are called {name}, expected names of their own; rename their files"
                if name in found
                else f"a model is called {name!r}, expected a name of a file"
            )
        if model not in opened:
            found[name] = read_predictions(Path(model), source, hierarchy)
            continue
        said = predict_top_classes(
            opened[model],
            source=source,
            labels=labels,
            hierarchy=hierarchy,
            machine=machine,
            scheme=scheme,
        )
        found[name] = np.where(said.seen[:, None], said.classes[:, :PREDICTIONS], -1)
        write_csv(
            out / "predictions" / f"{name}.csv",
            ["key", *(f"prediction{k}" for k in range(found[name].shape[1]))],
            [
                [sample.key, *(hierarchy.synsets[c] if c >= 0 else "" for c in row)]
                for sample, row in zip(source.samples, found[name].tolist(), strict=True)
            ],
        )
    return hierarchy, found


def _tag(tags: "NDArray[np.int64]", row: int, seen: dict[int, list[str]]) -> list[int]:
    """The image's label, where no model says it."""
    tag = int(tags[row])
    return [tag] if tag >= 0 and tag not in seen else []


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
