"""Reassessed labels: which labels are right for an image, by the answers of several raters.

"Are we done with ImageNet?" (Beyer et al. 2020, arXiv 2006.07159) asked raters of each image and
each label that a model proposed whether it is there, and weighed answers by Dawid & Skene (1979).
Owns the files: rater answers as published (raters.npz) or as CSV, labels as JSON by key or as
published (real.json). Who proposes labels is `distill.curate.proposals`.
"""

import csv
import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import DataError, first_line, optional
from distill.files import write_atomically
from distill.hierarchy.hypernyms import ancestors, flat_label_set

Label = str | int
FORMAT = "distill-real-labels/1"
ANSWERS = ("no", "maybe", "yes")
NO, MAYBE, YES = range(3)
THRESHOLD = 0.5
IMAGENET_VAL = "ILSVRC2012_val_{:08d}"
ANIMAL = "n00015388"


@dataclass(frozen=True, eq=False)
class RaterAnswers:
    """Answer i: rater raters[i] answer answers[i] of question questions[i], NO, MAYBE or YES.

    keys, labels: of the questions, whether a label is right for an image.
    """

    location: str
    keys: tuple[str, ...]
    labels: tuple[Label, ...]
    questions: NDArray[np.int64]
    raters: NDArray[np.int64]
    answers: NDArray[np.int64]


def read_raters(path: Path) -> RaterAnswers:
    """Published form, .npz: `tensor` [raters, questions, 3], 1 where a rater answer no, maybe, yes;
    `info` [questions, 2], file name and label. Or CSV with rater, key, label and answer, of which
    the last of a rater to a question counts.

    Raises:
        DataError: the file is of neither form, or holds no answers.
    """
    try:
        read = _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    except Exception as error:  # NumPy and zipfile raise whatever the bytes provoke
        raise DataError(
            f"{path}: cannot be read as rater answers ({first_line(error)}), expected .npz with "
            "tensor [raters, questions, 3] and info [questions, 2], or CSV with rater, key, label "
            "and answer"
        ) from error
    if not len(read.answers):
        raise DataError(f"{path}: no answers found, expected at least one")
    return read


def scores(answers: RaterAnswers, iterations: int = 100) -> NDArray[np.float64]:
    """[questions]: the probability that the label is right, by Dawid & Skene; NaN without answers.

    Raters have error rates of their own, which are estimated together with the labels. The truth
    may be no, maybe or yes, as the answers are; that of yes and half of that of maybe is the score:
    of the ways to count maybe, this comes nearest to the published labels
    (benchmarks/real_labels.py).

    Raises:
        ConfigError: crowd-kit is not installed.
    """
    with optional("real", "Dawid–Skene"):
        import pandas
        from crowdkit.aggregation import DawidSkene
    table = pandas.DataFrame(
        {"task": answers.questions, "worker": answers.raters, "label": answers.answers}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # crowd-kit's, about pandas
        posterior = DawidSkene(n_iter=iterations).fit_predict_proba(table)
    scores = np.full(len(answers.keys), np.nan)
    shares = [
        posterior[a].to_numpy() * weight
        for a, weight in ((YES, 1.0), (MAYBE, 0.5))
        if a in posterior
    ]
    # Rounding takes some a little above 1.
    scores[posterior.index.to_numpy()] = np.clip(sum(shares), 0, 1) if shares else 0.0
    return scores


def with_tags_of_animals(
    answers: RaterAnswers, tags: Mapping[str, Sequence[Label]]
) -> RaterAnswers:
    """One more rater, the tags: of images that are tagged as animals, which animals they are.

    Whoever collected an image of an animal knew better than raters do what kind it is; so Beyer et
    al. count ImageNet's label as an answer. Labels are synsets, or indices of ImageNet-1K.

    Raises:
        DataError: the raters were asked nothing about a tagged animal.
    """
    known = {key: {*labels} for key, labels in tags.items() if any(map(_is_animal, labels))}
    asked = [
        (question, YES if label in known[key] else NO)
        for question, (key, label) in enumerate(zip(answers.keys, answers.labels, strict=True))
        if key in known and _is_animal(label)
    ]
    if not asked:
        raise DataError(
            f"{answers.location}: no question about an animal in an image that is tagged as one, "
            "expected tags of these images: synsets, or indices of ImageNet-1K"
        )
    questions, said = np.array(asked, np.int64).T
    rater = int(answers.raters.max()) + 1
    return replace(
        answers,
        questions=np.concatenate([answers.questions, questions]),
        raters=np.concatenate([answers.raters, np.full(len(questions), rater)]),
        answers=np.concatenate([answers.answers, said]),
    )


@cache
def _is_animal(label: Label) -> bool:
    classes = flat_label_set("imagenet-1k")
    if isinstance(label, int):
        label = classes[label] if 0 <= label < len(classes) else ""
    return ANIMAL in (label, *ancestors(label))


def labels_by_key(
    answers: RaterAnswers, scored: NDArray[np.float64], threshold: float = THRESHOLD
) -> dict[str, list[Label]]:
    """The labels of each image whose score is above the threshold; images may be left with none."""
    by_key: dict[str, list[Label]] = defaultdict(list)
    for key, label, score in zip(answers.keys, answers.labels, scored, strict=True):
        labels = by_key[key]
        if score > threshold:
            labels.append(label)
    return dict(by_key)


@dataclass(frozen=True, eq=False)
class Gold:
    """What experts see in an image. asked: the labels that they were asked about; None for all."""

    there: frozenset[Label]
    asked: frozenset[Label] | None = None

    def says(self, label: Label) -> bool | None:
        """Whether a label is there; None where they were not asked."""
        return label in self.there if self.asked is None or label in self.asked else None


def read_gold(path: Path) -> dict[str, Gold]:
    """What experts see, by key.

    Answers of raters, as `read_raters` reads them, of whom most must say yes; or all labels that
    are there, as `read_labels` reads them.

    Raises:
        DataError: the file is of none of these forms.
    """
    if path.suffix == ".json":
        return {key: Gold(frozenset(labels)) for key, labels in read_labels(path).items()}
    answers = read_raters(path)
    counts = np.zeros((len(answers.keys), len(ANSWERS)))
    np.add.at(counts, (answers.questions, answers.answers), 1)
    most = counts[:, YES] > counts[:, NO] + counts[:, MAYBE]
    there: dict[str, set[Label]] = defaultdict(set)
    asked: dict[str, set[Label]] = defaultdict(set)
    for key, label, yes in zip(answers.keys, answers.labels, most, strict=True):
        asked[key].add(label)
        if yes:
            there[key].add(label)
    return {key: Gold(frozenset(there[key]), frozenset(asked[key])) for key in asked}


@dataclass(frozen=True, kw_only=True, eq=False)
class GoldCurve:
    """Scores of labels against what experts say of them.

    thresholds: ascending. precision, recall: of labels that have at least that score, and last of
    none, 1 and 0. labels: compared.
    """

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    average_precision: float
    labels: int
    images: int

    def at(self, threshold: float) -> tuple[float, float]:
        """Precision and recall of the labels whose score is above a threshold."""
        place = int(np.searchsorted(self.thresholds, threshold, "right"))
        return float(self.precision[place]), float(self.recall[place])


def against_gold(
    answers: RaterAnswers,
    scored: NDArray[np.float64],
    gold: Mapping[str, Gold],
) -> GoldCurve:
    """The precision–recall curve of scores, over labels that experts were asked about.

    What experts see in an image that was rated, but no rater was asked about, has a score of 0.

    Raises:
        DataError: raters and experts have no label in common.
    """
    import torch
    from torchmetrics.functional.classification import (
        binary_average_precision,
        binary_precision_recall_curve,
    )

    both: list[tuple[float, bool]] = []
    left = {key: {*gold[key].there} for key in answers.keys if key in gold}
    for key, label, score in zip(answers.keys, answers.labels, scored, strict=True):
        says = gold[key].says(label) if key in gold else None
        if says is not None and not np.isnan(score):
            both.append((float(score), says))
            left[key].discard(label)
    both += [(0.0, True) for labels in left.values() for _ in labels] if both else []
    if not any(there for _, there in both):
        raise DataError(
            f"{answers.location}: none of its {len(answers.keys)} labels is one that the gold "
            "standard says is there, expected answers about the same images"
        )
    scores_of, there = (torch.tensor(column) for column in zip(*both, strict=True))
    precision, recall, thresholds = binary_precision_recall_curve(scores_of, there.int())
    return GoldCurve(
        thresholds=thresholds.double().numpy(),
        precision=precision.double().numpy(),
        recall=recall.double().numpy(),
        average_precision=float(binary_average_precision(scores_of, there.int())),
        labels=len(both),
        images=len({key for key in answers.keys if key in gold}),
    )


def write_labels(path: Path, labels: Mapping[str, Sequence[Label]]) -> None:
    """JSON: {"format": …, "labels": {key: [label, …]}}."""
    document = {"format": FORMAT, "labels": {key: list(labels[key]) for key in sorted(labels)}}
    write_atomically(path, json.dumps(document, indent=0).encode() + b"\n")


def read_labels(path: Path) -> dict[str, list[Label]]:
    """What `write_labels` wrote; or the published real.json, a list of lists in the order of
    ImageNet-1K's validation images.

    Raises:
        DataError: the file is of neither form.
    """
    try:
        document = json.loads(path.read_bytes())
        if isinstance(document, list):
            return {IMAGENET_VAL.format(i): _labels(each) for i, each in enumerate(document, 1)}
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}")
        return {str(key): _labels(each) for key, each in document["labels"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read as reassessed labels ({first_line(error)}), expected what "
            "`distill data real-labels` writes, or the published real.json"
        ) from error


def read_agreed(path: Path) -> dict[str, list[Label]]:
    """Labels of images that need no rating: CSV with key and label, one row a label.

    Raises:
        DataError: the file is of another form.
    """
    by_key: dict[str, list[Label]] = defaultdict(list)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogatepass", newline="") as file:
            for row in csv.DictReader(file):
                if not (row["key"] and row["label"]):
                    raise ValueError("a row without key or label")
                by_key[row["key"]].append(_label(row["label"]))
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read ({first_line(error)}), expected CSV with key and label"
        ) from error
    return dict(by_key)


def _labels(labels: Any) -> list[Label]:
    if not isinstance(labels, list) or not all(isinstance(each, str | int) for each in labels):
        raise ValueError(f"{labels!r} found as labels of an image, expected a list")
    return labels


def _label(text: str) -> Label:
    return int(text) if text.isascii() and text.isdecimal() and str(int(text)) == text else text


def _read_npz(path: Path) -> RaterAnswers:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        tensor, info = archive["tensor"], archive["info"]
    if tensor.ndim != 3 or tensor.shape[1:] != (len(info), 3) or info.shape != (len(info), 2):
        raise ValueError(f"tensor {tensor.shape} and info {info.shape} found")
    raters, questions, votes = np.nonzero(tensor)
    return RaterAnswers(
        str(path),
        tuple(str(name).rpartition(".")[0] or str(name) for name in info[:, 0]),
        tuple(_label(str(label)) for label in info[:, 1]),
        questions,
        raters,
        votes,
    )


def _read_csv(path: Path) -> RaterAnswers:
    question_rows: dict[tuple[str, Label], int] = {}
    people: dict[str, int] = {}
    answers: dict[tuple[int, int], int] = {}  # the last of a rater to a question
    with path.open(encoding="utf-8-sig", errors="surrogatepass", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            if not all(row[column] for column in ("rater", "key", "label", "answer")):
                raise ValueError(f"line {number} has an empty field")
            answer = row["answer"].strip().lower()
            if answer not in ANSWERS:
                raise ValueError(f"line {number} has answer {answer!r}, expected no, maybe or yes")
            question = question_rows.setdefault(
                (row["key"], _label(row["label"])), len(question_rows)
            )
            rater = people.setdefault(row["rater"], len(people))
            answers[question, rater] = ANSWERS.index(answer)
    rows = [(*asked, answer) for asked, answer in answers.items()]
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    keys, labels = zip(*question_rows, strict=True) if question_rows else ((), ())
    return RaterAnswers(str(path), keys, labels, *columns)
