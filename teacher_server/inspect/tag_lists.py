"""Missing and suspect tags as files, and how right they are where the true classes are known.

Lists are of one store, or of several that have a part of the images each, as stores of folds have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.curate.rating_file import RatingFile
from distill.data.formats.samples import Sample
from distill.data.sample_ids import find_rows
from distill.data.sample_list import SUSPECT
from distill.data.source import ImageSource
from distill.errors import StoreMismatchError
from distill.files import write_csv
from distill.teacher_server.inspect.findings import Findings, Verdict, contradiction
from distill.teacher_server.inspect.inspection import Inspection
from distill.teacher_server.inspect.statistics import UNITS, RowState


@dataclass(frozen=True, eq=False)
class ListedImages:
    """The images that a store speaks of. places: [rows] of the store, in `source`."""

    inspection: Inspection
    source: ImageSource
    places: NDArray[np.int64]

    @classmethod
    def of(cls, inspection: Inspection, source: ImageSource) -> "ListedImages":
        """Find every row's image.

        Raises:
            StoreMismatchError: an image of the store is not there.
        """
        places = find_rows(source.ids, inspection.store.sample_ids)
        absent = int((places < 0).sum())
        if absent:
            raise StoreMismatchError(
                f"{source.location}: {absent} of the store's {len(places)} images are not there, "
                "expected all of them; pass the --data and --split that it was computed from"
            )
        return cls(inspection, source, places)

    def confirmed(self, ratings: RatingFile) -> "ListedImages":
        """With those findings that raters confirm."""
        synsets = self.inspection.hierarchy.synsets

        def verdict(row: int, c: int) -> str | None:
            return ratings.verdict(self.key(row), synsets[c])

        return replace(self, inspection=self.inspection.confirmed(verdict))

    def sample(self, row: int) -> Sample:
        """One row's image."""
        return self.source.samples[int(self.places[row])]

    def key(self, row: int) -> str:
        """Return the key of a row's image."""
        return self.sample(row).key


Scored = tuple[float, tuple[str, ...]]  # a line of a list, and how clear it is


def write_missing(path: Path, *listed: ListedImages) -> None:
    """CSV: key, tag, wnid (the deepest class that is missing), the path to it, p of each class."""
    _write(path, MISSING_COLUMNS, [line for images in listed for line in _missing(images)])


def write_suspect(path: Path, *listed: ListedImages) -> None:
    """CSV: key, tag, what the teacher sees instead and how surely, p of the tag's path, score."""
    _write(path, SUSPECT, [line for images in listed for line in _suspect(images)])


def _write(path: Path, columns: Sequence[str], lines: list[Scored]) -> None:
    """The clearest first."""
    write_csv(path, columns, [line for _, line in sorted(lines, key=lambda each: -each[0])])


def _missing(pictures: ListedImages) -> Iterator[Scored]:
    inspection = pictures.inspection
    labels, synsets = inspection.labels, inspection.hierarchy.synsets
    name = inspection.tree.name
    for row, score, proposed in _rows(inspection.tags.missing):
        tag = int(labels[row])
        added = inspection.tree.path(proposed)[len(inspection.tree.path(tag)) :]
        image = inspection.judged.images(np.array([row]))[0]
        yield (
            float(score),
            (
                *(pictures.key(row), synsets[tag], name(tag), synsets[proposed], name(proposed)),
                " > ".join(map(name, added)),
                " > ".join(_prob(inspection, image, c) for c in added),
                f"{score:.4f}",
            ),
        )


def _suspect(pictures: ListedImages) -> Iterator[Scored]:
    inspection = pictures.inspection
    labels, synsets = inspection.labels, inspection.hierarchy.synsets
    name = inspection.tree.name
    for row, score, seen in _rows(inspection.tags.suspect):
        tag = int(labels[row])
        image = inspection.judged.images(np.array([row]))[0]
        judged = inspection.tree.path(tag)[: inspection.hierarchy.num_hierarchies]
        probs = [f"{image['tag_prob'][k] / UNITS:.4f}" for k in range(len(judged))]
        yield (
            float(score),
            (
                *(pictures.key(row), synsets[tag], name(tag)),
                *(" > ".join(map(name, judged)), " > ".join(probs)),
                *(synsets[seen], name(seen), _prob(inspection, image, seen), f"{score:.4f}"),
            ),
        )


MISSING_COLUMNS = ("key", "tag", "tag_name", "wnid", "name", "path", "confidence", "score")


def write_cleaned(
    path: Path, *listed: ListedImages, missing: bool, suspect: bool
) -> tuple[int, int, int]:
    """A sample list for `distill pretrain --samples`: suspect images out, missing tags filled in.

    Returns how many images it keeps, how many tags it fills in, how many images it leaves out.
    """
    lines, left_out = [], 0
    for images in listed:
        tags, synsets = images.inspection.tags, images.inspection.hierarchy.synsets
        out = {*map(int, tags.suspect.rows)} if suspect else set()
        new = dict(zip(map(int, tags.missing.rows), tags.missing.proposed, strict=True))
        for row in range(len(tags.verdicts)):
            if row not in out:
                filled_in = missing and row in new
                lines.append((images.key(row), synsets[new[row]] if filled_in else ""))
        left_out += len(out)
    write_csv(path, ("key", "wnid"), lines)
    return len(lines), sum(bool(wnid) for _, wnid in lines), left_out


# -- against the truth ----------------------------------------------------------------------------


def score_missing(
    listed: Sequence[ListedImages], truth: NDArray[np.int64]
) -> dict[str, float | None]:
    """Precision and recall of single tags. truth: [images of the source], their true classes.

    A tag is missing where the true path goes on below a right tag, in hierarchies that have a
    softmax. Precision: share of added tags on the true path; recall: of missing ones, supplied.
    None of nothing.
    """
    parts = []
    for images in listed:
        inspection = images.inspection
        labels, findings = inspection.labels, inspection.tags.missing
        proposed = labels.copy()
        proposed[findings.rows] = findings.proposed
        table = inspection.hierarchy.label_table
        tagged, added, true = (table[c] for c in (labels, proposed, truth[images.places]))
        new = (tagged < 0) & (added >= 0)
        sound = ((tagged < 0) | (tagged == true)).all(1, keepdims=True)
        wanted = (tagged < 0) & (true >= 0) & sound & inspection.judged_rows[:, None]
        parts.append((new, new & (added == true), wanted))
    new, right, wanted = map(np.concatenate, zip(*parts, strict=True))
    return {
        "images": sum(len(images.inspection.tags.missing) for images in listed),
        "added": int(new.sum()),
        "missing": int(wanted.sum()),
        "precision": _share(right, new),
        "recall": _share(right & wanted, wanted),
    }


def score_suspect(
    listed: Sequence[ListedImages], truth: NDArray[np.int64]
) -> dict[str, float | None]:
    """Precision and recall of the list, average precision of all judged images by their score.

    truth: [images of the source], their true classes. A tag is wrong where it is neither the true
    class nor one of its ancestors.
    """
    from torchmetrics.functional.classification import binary_average_precision

    parts = []
    for images in listed:
        inspection = images.inspection
        table, judged = inspection.hierarchy.label_table, inspection.judged_rows
        tagged, true = table[inspection.labels], table[truth[images.places]]
        wrong = ((tagged >= 0) & (tagged != true)).any(1)
        found = inspection.tags.verdicts["verdict"] == Verdict.SUSPECT
        parts.append((found[judged], wrong[judged], contradictions(inspection)[judged]))
    found, wrong, scores = map(np.concatenate, zip(*parts, strict=True))
    ranking = None
    if wrong.any():
        targets = torch.from_numpy(wrong).int()
        ranking = float(binary_average_precision(torch.from_numpy(scores), targets))
    return {
        "images": int(found.sum()),
        "wrong": int(wrong.sum()),
        "precision": _share(found & wrong, found),
        "recall": _share(found & wrong, wrong),
        "average_precision": ranking,
    }


def contradictions(inspection: Inspection) -> NDArray[np.float64]:
    """[rows]: `contradiction` of every image, 0 where its tag cannot be judged."""
    scores = np.zeros(len(inspection.labels))
    for first, images in inspection.judged.by_block():
        tags = inspection.labels[first : first + len(images)]
        tagged = inspection.hierarchy.label_table[tags] >= 0
        known = images["known"] == RowState.ANSWER
        scores[first : first + len(images)] = np.where(known, contradiction(images, tagged), 0.0)
    return scores


def _share(some: NDArray[np.bool_], of: NDArray[np.bool_]) -> float | None:
    return float(some.sum() / of.sum()) if of.any() else None


# -- in words -------------------------------------------------------------------------------------


def _rows(tag_findings: Findings) -> Any:
    return zip(
        map(int, tag_findings.rows),
        tag_findings.score,
        map(int, tag_findings.proposed),
        strict=True,
    )


def _prob(inspection: Inspection, image: Any, c: int) -> str:
    """Format the probability of a class that is the teacher's first choice."""
    return f"{image['top_prob'][inspection.hierarchy.levels[c]] / UNITS:.4f}"
