"""`distill data real-labels`: several right labels for an image, from models and raters."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from distill.cli.options import common
from distill.cli.options.command import FILE, PATH, Group, option
from distill.cli.options.images import DataChoice, data_options
from distill.cli.output import print_result

if TYPE_CHECKING:
    from distill.hierarchy.semantic import SemanticHierarchy
    from distill.trainers.recipe import Scheme

NAMES = "questions.csv", "agreed.csv"


@click.group("real-labels", cls=Group)
def real_labels() -> None:
    """Reassess labels: models propose, raters answer (arXiv 2006.07159)."""


@real_labels.command(examples=["RUN timm:resnet50 --data DATA --out PROPOSED"])
@click.argument("models", nargs=-1, required=True)
@data_options(split="val", show_split=True)
@common.label_set("the first model's")
@common.scheme
@option(
    "--per-image",
    type=click.FloatRange(0, 16),
    default=3,
    help="Mean number of confident predictions per image that count for a model.",
)
@option("--out", required=True, type=PATH, help="Folder for the CSV files.")
@common.limit
@common.machine
@common.as_json
def propose(
    models: tuple[str, ...],
    data: DataChoice,
    label_set: str | None,
    scheme: "Scheme | None",
    per_image: float,
    out: Path,
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Write the labels that MODELS propose as questions for raters.

    MODELS are given as for `distill evaluate`. questions.csv has one row per image and label to
    rate; agreed.csv lists the images for which all models confirm the tag.
    """
    from distill.curate.proposals import in_questions
    from distill.curate.proposals import propose as pool_predictions
    from distill.data.source import label_indices
    from distill.files import write_csv
    from distill.models.creation import pick_device
    from distill.trainers.evaluation.top_classes import predict_top_classes
    from distill.trainers.models.trained import open_trained
    from distill.trainers.process_group import Machine

    opened = [open_trained(model) for model in models]
    hierarchy = _label_set(label_set, opened[0].hierarchy, opened[0].num_classes)
    source = data.open().limited(limit)
    labels = label_indices(source, hierarchy)
    machine = Machine(device=pick_device(device), workers=workers)
    predictions = [
        predict_top_classes(
            model, source=source, labels=labels, hierarchy=hierarchy, machine=machine, scheme=scheme
        )
        for model in opened
    ]
    proposals = pool_predictions(predictions, labels, per_image=per_image)

    def key(row: int) -> str:
        return source.samples[row].key

    def name(c: int) -> tuple[str, str]:
        return hierarchy.synsets[c], hierarchy.display_name(hierarchy.synsets[c])

    questions = [
        [key(row), *name(c), number, ";".join(proposed[c])]
        for row, proposed in proposals.by_row.items()
        for number, part in enumerate(in_questions(list(proposed)))
        for c in part
    ]
    agreed = [[key(row), *name(c)] for row, c in proposals.agreed.items()]
    write_csv(out / NAMES[0], ["key", "label", "name", "question", "proposed_by"], questions)
    write_csv(out / NAMES[1], ["key", "label", "name"], agreed)
    images, each = len(proposals.by_row), len(questions) / max(1, len(proposals.by_row))
    print_result(
        as_json,
        {
            "images": len(source),
            "to_rate": images,
            "agreed": len(agreed),
            "labels": len(questions),
        },
        f"{len(source)} images: {len(agreed)} agreed, {images} to rate, {each:.1f} labels each",
        f"{out / NAMES[0]}, {out / NAMES[1]}",
        "next: let raters answer no, maybe or yes into a CSV with rater,key,label,answer; then "
        f"distill data real-labels from-raters ANSWERS.csv --agreed {out / NAMES[1]} "
        "--out real.json",
    )


def _label_set(
    named: str | None, trained_on: "SemanticHierarchy | None", num_classes: int
) -> "SemanticHierarchy":
    """Resolve the option, or take the model's; 1,000 classes without names are ImageNet-1K's."""
    from distill.errors import ConfigError
    from distill.hierarchy.hypernyms import flat_label_set
    from distill.hierarchy.semantic import SemanticHierarchy, resolve

    if named:
        return resolve(named)
    if trained_on:
        return trained_on
    if num_classes == 1000:
        return SemanticHierarchy.from_chains(flat_label_set("imagenet-1k"), {}, name="imagenet-1k")
    raise ConfigError(
        f"{num_classes} classes found and nothing that names them, expected a hierarchy.json "
        "beside the model; pass --label-set"
    )


@real_labels.command(
    "from-raters", examples=["answers.csv --agreed PROPOSED/agreed.csv --out real.json"]
)
@click.argument("raters", type=FILE)
@option("--out", required=True, type=PATH, help="JSON file to write.")
@option("--agreed", type=FILE, help="CSV with key and label of images that needed no rating.")
@option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Accept labels above this probability.",
)
@option("--scores", type=PATH, help="Also write all probabilities to this CSV.")
@common.as_json
def from_raters(
    raters: Path,
    out: Path,
    agreed: Path | None,
    threshold: float,
    scores: Path | None,
    as_json: bool,
) -> None:
    """Aggregate the answers in RATERS by Dawid–Skene and write the accepted labels.

    RATERS is the published raters.npz, or a CSV with rater, key, label and answer (no, maybe, yes).
    """
    from distill.curate.real_labels import labels_by_key, read_agreed, read_raters, write_labels
    from distill.curate.real_labels import scores as weigh
    from distill.files import write_csv

    answers = read_raters(raters)
    scored = weigh(answers)
    labels = labels_by_key(answers, scored, threshold)
    rated, kept = len(labels), sum(map(len, labels.values()))
    none = sum(not each for each in labels.values())
    if agreed:
        labels = read_agreed(agreed) | labels
    write_labels(out, labels)
    if scores:
        rows = zip(answers.keys, answers.labels, (f"{s:.6f}" for s in scored), strict=True)
        write_csv(scores, ["key", "label", "score"], list(rows))
    print_result(
        as_json,
        {
            "images_rated": rated,
            "questions": len(answers.keys),
            "labels": kept,
            "without_label": none,
            "images": len(labels),
        },
        f"{out}: {len(labels)} images; of {rated} that {answers.raters.max() + 1} raters saw, "
        f"{kept} of {len(answers.keys)} proposed labels are right, and {none} images have none",
        f"next: distill evaluate MODEL --data DATA --labels {out}",
    )
