"""Questions for raters: which labels to look for in which image, and who answered what.

A question has at most eight labels of one image, as `distill.curate.proposals` groups them.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.curate.proposals import PER_QUESTION
from distill.curate.rating_file import RatingFile
from distill.data.sample_ids import sample_ids
from distill.errors import DataError, first_line


@dataclass(frozen=True)
class Question:
    """labels: with their names."""

    key: str
    labels: tuple[tuple[str, str], ...]


def read_questions(path: Path) -> list[Question]:
    """CSV with key, label, question and perhaps name; images in a fair and repeatable order.

    Raises:
        DataError: the file is of another form, or asks nothing.
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    try:
        with path.open(encoding="utf-8-sig", errors="surrogatepass", newline="") as file:
            for row in csv.DictReader(file):
                if not (row["key"] and row["label"] and row["question"]):
                    raise ValueError(f"an empty field in {','.join(filter(None, row.values()))!r}")
                labels = found.setdefault((row["key"], row["question"]), [])
                labels.append((row["label"], row.get("name") or row["label"]))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read as questions ({first_line(error)}), expected CSV with key, "
            "label and question, as `distill data real-labels propose` writes it"
        ) from error
    if not found:
        raise DataError(f"{path}: no question found, expected at least one")
    if (most := max(map(len, found.values()))) > PER_QUESTION:
        raise DataError(
            f"{path}: a question of {most} labels found, expected at most {PER_QUESTION}; give "
            "them several numbers in the column question"
        )
    ids = sample_ids([key for key, _ in found])
    questions = [Question(key, tuple(labels)) for (key, _), labels in found.items()]
    return [questions[i] for i in np.lexsort((ids[:, 1], ids[:, 0]))]


class Rating:
    """Hands out questions to raters, and keeps what they say. enough: raters one question needs."""

    def __init__(self, questions: Sequence[Question], ratings: RatingFile, enough: int) -> None:
        self.questions, self.ratings, self.enough = questions, ratings, enough
        self._raters = [self._raters_of(question) for question in questions]
        self._first_open: dict[str, int] = {}  # by rater; all before it need no more of him

    def _raters_of(self, question: Question) -> set[str]:
        """Who said something of all of its labels."""
        said = ({*self.ratings.answers(question.key, label)} for label, _ in question.labels)
        return set.intersection(*said)

    def answer(self, number: int, rater: str, answers: Mapping[str, str]) -> None:
        """Keep what a rater says of a question's labels.

        Raises:
            OSError: it cannot be written, and does not count.
        """
        question = self.questions[number]
        self.ratings.add(rater, question.key, answers)
        self._raters[number] = self._raters_of(question)

    def next_for(self, rater: str) -> int | None:
        """The first question that needs a rater and that this one has not answered."""
        first = self._first_open.get(rater, 0)
        for number in range(first, len(self.questions)):
            if rater not in self._raters[number] and len(self._raters[number]) < self.enough:
                self._first_open[rater] = number
                return number
        return None

    def last_of(self, rater: str, before: int) -> int | None:
        """The last one before another that this rater answered."""
        numbers = range(before - 1, -1, -1)
        return next((number for number in numbers if rater in self._raters[number]), None)

    def progress(self, rater: str) -> tuple[int, int, int]:
        """Questions that this rater answered, that need no rater any more, and all."""
        mine = sum(rater in raters for raters in self._raters)
        complete = sum(len(raters) >= self.enough for raters in self._raters)
        return mine, complete, len(self.questions)
