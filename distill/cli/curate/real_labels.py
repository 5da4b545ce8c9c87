"""`distill data real-labels`: several right labels for an image, from models and raters."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.curate.real_study import study
from distill.cli.options import common
from distill.cli.options.command import FILE, PATH, Group, option, setting
from distill.cli.options.images import DataChoice, data_options
from distill.cli.options.listening import Listening, listen_options
from distill.cli.output import print_result

if TYPE_CHECKING:
    from distill.trainers.recipe import Scheme

NAMES = "questions.csv", "agreed.csv"
EXAMPLES = 4  # of a label; one of them may be the image in question


@click.group("real-labels", cls=Group)
def real_labels() -> None:
    """Reassess labels: models propose, raters answer (arXiv 2006.07159)."""


real_labels.add_command(study)


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
@setting(
    "--gold",
    type=FILE,
    help="What experts see in some of the images: propose by the fewest models that find it.",
)
@setting(
    "--recall",
    type=click.FloatRange(0, 1),
    default=0.97,
    help="Smallest share of --gold that the chosen models must propose.",
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
    gold: Path | None,
    recall: float,
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
    from distill.curate.proposals import Pool, in_questions
    from distill.curate.real_label_classes import known_by_row
    from distill.curate.real_labels import read_gold
    from distill.data.source import label_indices
    from distill.errors import ConfigError
    from distill.files import write_csv
    from distill.models.devices import pick_device
    from distill.trainers.evaluation.top_classes import label_set_of, predict_top_classes
    from distill.trainers.models.trained import open_trained
    from distill.trainers.process_group import Machine

    opened = [open_trained(model) for model in models]
    hierarchy = label_set_of(label_set, opened[0].hierarchy, opened[0].num_classes)
    source = data.open().limited(limit)
    labels = label_indices(source, hierarchy)
    if len({model.name for model in opened}) < len(opened):
        names = ", ".join(model.name for model in opened)
        raise ConfigError(f"models {names} found, expected different names; rename their folders")
    machine = Machine(device=pick_device(device), workers=workers)
    predictions = [
        predict_top_classes(
            model, source=source, labels=labels, hierarchy=hierarchy, machine=machine, scheme=scheme
        )
        for model in opened
    ]
    pool, chosen = Pool.of(predictions, labels, per_image=per_image), None
    unreadable = int((pool.top == -2).all(1).sum())
    if gold:
        seen = {key: [*known.there] for key, known in read_gold(gold).items()}
        by_row = known_by_row(seen, source, hierarchy, hierarchy.num_classes)
        experts = {row: classes for row, classes in enumerate(by_row) if classes is not None}
        chosen = pool.smallest(experts, recall)
        pool = pool.only(chosen.models)
    proposals = pool.proposals()

    def key(row: int) -> str:
        return source.samples[row].key

    def name(c: int) -> tuple[str, str]:
        return hierarchy.synsets[c], hierarchy.display_name(hierarchy.synsets[c])

    questions = [
        [key(row), *name(c), number, ";".join(proposed[c])]
        for row, proposed in proposals.by_row.items()
        for number, part in enumerate(in_questions(list(proposed), hierarchy))
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
            "unreadable": unreadable,
            "models": list(pool.models),
            "gold": chosen and {"recall": chosen.recall, "precision": chosen.precision},
        },
        *(
            [
                f"{len(chosen.models)} of {len(models)} models suffice: "
                f"{', '.join(chosen.models)}; "
                f"recall {chosen.recall:.1%}, precision {chosen.precision:.1%} of what {gold} sees"
            ]
            if chosen
            else []
        ),
        f"{len(source)} images: {len(agreed)} agreed, {images} to rate, {each:.1f} labels each, "
        f"{unreadable} cannot be read",
        f"{out / NAMES[0]}, {out / NAMES[1]}",
        f"next: distill data real-labels rate {out} {data.spelled()} --split {data.split}",
    )


@real_labels.command(examples=["PROPOSED --data DATA --raters 3"])
@click.argument("proposed", metavar="PROPOSED", type=PATH)
@data_options(split="val", show_split=True)
@option("--raters", type=click.IntRange(1), default=5, help="Raters that each question is put to.")
@option("--answers", type=PATH, show_default="PROPOSED/answers.csv", help="CSV to add answers to.")
@listen_options(port=8080)
@common.as_json
def rate(
    proposed: Path,
    data: DataChoice,
    raters: int,
    answers: Path | None,
    listen: Listening,
    as_json: bool,
) -> None:
    """Serve the questions in PROPOSED, which `propose` wrote, as web pages for raters.

    An answer is on the disk before the next question is shown; the same command goes on where it
    was stopped. Raters are told apart by their API keys, or by the name that they give.
    """
    from contextlib import closing
    from functools import partial

    from distill.curate.questions import Rating, read_questions
    from distill.curate.rating_file import open_ratings
    from distill.curate.real_labels import read_agreed
    from distill.data.sample_ids import find_rows, sample_ids
    from distill.errors import DataError
    from distill.teacher_server.pages.rating import RatingSite, rating_pages_of
    from distill.teacher_server.pages.server import serve_pages

    questions = read_questions(proposed / NAMES[0])
    source = data.open()
    rows = find_rows(source.ids, sample_ids([question.key for question in questions]))
    if (rows < 0).any():
        key = questions[int((rows < 0).argmax())].key
        raise DataError(
            f"{proposed / NAMES[0]}: {int((rows < 0).sum())} questions are about images that are "
            f"not in {source.location} (first: {key!r}); pass the --data and --split of `propose`"
        )
    agreed = read_agreed(proposed / NAMES[1]) if (proposed / NAMES[1]).exists() else {}
    examples: dict[str, list[int]] = {}
    keys = list(agreed)
    for key, row in zip(keys, find_rows(source.ids, sample_ids(keys)), strict=True):
        for label in map(str, agreed[key]):
            if row >= 0 and len(known := examples.setdefault(label, [])) <= EXAMPLES:
                known.append(int(row))
    address, accepted, listener = listen.bound()
    say = partial(click.echo, err=True)
    with closing(listener), open_ratings(answers or proposed / "answers.csv", say) as ratings:
        rating = Rating(questions, ratings, raters)
        site = RatingSite(
            rating=rating, source=source, rows=[int(row) for row in rows], examples=examples
        )
        announce = partial(listen.announce_pages, listener)
        serve_pages(site, rating_pages_of(site), accepted, address, listener, announce)
        _, complete, total = rating.progress("")
    print_result(
        as_json,
        {"answers": str(ratings.path), "questions": total, "complete": complete},
        f"{ratings.path}: {complete} of {total} questions have the answers of {raters} raters",
        f"next: distill data real-labels from-raters {ratings.path} --agreed "
        f"{proposed / NAMES[1]} --out real.json",
    )


@real_labels.command(
    "from-raters", examples=["answers.csv --agreed PROPOSED/agreed.csv --out real.json"]
)
@click.argument("raters", type=FILE)
@option("--out", required=True, type=PATH, help="JSON file to write.")
@option("--agreed", type=FILE, help="CSV with key and label of images that needed no rating.")
@option(
    "--tags",
    type=FILE,
    help="CSV with key and label that images were collected by: one more answer about animals.",
)
@option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Accept labels above this probability.",
)
@option("--scores", type=PATH, help="Also write all probabilities to this CSV.")
@option("--gold", type=FILE, help="What experts see, to judge the labels by.")
@option(
    "--curve", type=PATH, help="With --gold, write precision and recall by threshold to this CSV."
)
@common.as_json
def from_raters(
    raters: Path,
    out: Path,
    agreed: Path | None,
    tags: Path | None,
    threshold: float,
    scores: Path | None,
    gold: Path | None,
    curve: Path | None,
    as_json: bool,
) -> None:
    """Aggregate the answers in RATERS by Dawid–Skene and write the accepted labels.

    RATERS is the published raters.npz, or a CSV with rater, key, label and answer (no, maybe, yes).
    """
    from distill.curate.real_labels import (
        against_gold,
        labels_by_key,
        read_agreed,
        read_gold,
        read_raters,
        with_tags_of_animals,
        write_labels,
    )
    from distill.curate.real_labels import scores as weigh
    from distill.errors import ConfigError
    from distill.files import write_csv

    if curve and not gold:
        raise ConfigError("--curve found without --gold, expected both; pass what experts see")
    known = read_gold(gold) if gold else None
    answers = read_raters(raters)
    people = answers.raters.max() + 1
    if tags:
        answers = with_tags_of_animals(answers, read_agreed(tags))
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
    document: dict[str, Any] = {
        "images_rated": rated,
        "questions": len(answers.keys),
        "labels": kept,
        "without_label": none,
        "images": len(labels),
    }
    judged = []
    if known is not None:
        found = against_gold(answers, scored, known)
        precision, recall = found.at(threshold)
        if curve:
            points = zip(found.thresholds, found.precision, found.recall, strict=False)
            rows_of_curve = [[f"{value:.6f}" for value in point] for point in points]
            write_csv(curve, ["threshold", "precision", "recall"], rows_of_curve)
        document["gold"] = {
            "images": found.images,
            "labels": found.labels,
            "precision": precision,
            "recall": recall,
            "average_precision": found.average_precision,
        }
        judged.append(
            f"against {gold}: {found.labels} labels of {found.images} images, precision "
            f"{precision:.1%}, recall {recall:.1%} above {threshold:g}, average precision "
            f"{found.average_precision:.3f}"
        )
    print_result(
        as_json,
        document,
        f"{out}: {len(labels)} images; of {rated} that {people} raters saw, "
        f"{kept} of {len(answers.keys)} proposed labels are right, and {none} images have none",
        *judged,
        f"next: distill evaluate MODEL --data DATA --labels {out}",
    )
