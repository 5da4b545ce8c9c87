"""Missing and suspect tags as files, and how right they are where the true classes are known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.data.formats.samples import Sample
from distill.data.sample_ids import find_rows
from distill.data.source import ImageSource
from distill.errors import StoreMismatchError
from distill.files import write_csv
from distill.teacher_server.inspect.findings import Findings, contradiction
from distill.teacher_server.inspect.inspection import Inspection
from distill.teacher_server.inspect.statistics import UNITS, RowState


@dataclass(frozen=True, eq=False)
class ListedImages:
    """The images that a store speaks of. places: [rows] of the store, in `source`."""

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
        return cls(source, places)

    def sample(self, row: int) -> Sample:
        """One row's image."""
        return self.source.samples[int(self.places[row])]

    def key(self, row: int) -> str:
        """Return the key of a row's image."""
        return self.sample(row).key


def write_missing(path: Path, inspection: Inspection, pictures: ListedImages) -> None:
    """CSV: key, tag, wnid (the deepest class that is missing), the path to it, p of each class."""
    tag_findings, labels = inspection.tags.missing, inspection.labels
    synsets, name = inspection.hierarchy.synsets, inspection.tree.name
    lines = []
    for row, score, proposed in _rows(tag_findings):
        tag = int(labels[row])
        added = inspection.tree.path(proposed)[len(inspection.tree.path(tag)) :]
        image = inspection.judged.images(np.array([row]))[0]
        lines.append(
            (
                *(pictures.key(row), synsets[tag], name(tag), synsets[proposed], name(proposed)),
                " > ".join(map(name, added)),
                " > ".join(_prob(inspection, image, c) for c in added),
                f"{score:.4f}",
            )
        )
    write_csv(path, MISSING_COLUMNS, lines)


def write_suspect(path: Path, inspection: Inspection, pictures: ListedImages) -> None:
    """CSV: key, tag, what the teacher sees instead and how surely, p of the tag's path, score."""
    tag_findings, labels = inspection.tags.suspect, inspection.labels
    synsets, name = inspection.hierarchy.synsets, inspection.tree.name
    lines = []
    for row, score, seen in _rows(tag_findings):
        tag = int(labels[row])
        image = inspection.judged.images(np.array([row]))[0]
        judged = inspection.tree.path(tag)[: inspection.hierarchy.num_hierarchies]
        probs = [f"{image['tag_prob'][k] / UNITS:.4f}" for k in range(len(judged))]
        lines.append(
            (
                *(pictures.key(row), synsets[tag], name(tag)),
                *(" > ".join(map(name, judged)), " > ".join(probs)),
                *(synsets[seen], name(seen), _prob(inspection, image, seen), f"{score:.4f}"),
            )
        )
    write_csv(path, SUSPECT_COLUMNS, lines)


MISSING_COLUMNS = ("key", "tag", "tag_name", "wnid", "name", "path", "confidence", "score")
SUSPECT_COLUMNS = (
    *("key", "tag", "tag_name", "path", "confidence"),
    *("seen", "seen_name", "seen_confidence", "score"),
)


def write_cleaned(
    path: Path, inspection: Inspection, pictures: ListedImages, *, missing: bool, suspect: bool
) -> tuple[int, int, int]:
    """A sample list for `distill pretrain --samples`: suspect images out, missing tags filled in.

    Returns how many images it keeps, how many tags it fills in, how many images it leaves out.
    """
    tag_findings = inspection.tags
    wnid = np.full(len(inspection.labels), -1)
    kept = np.ones(len(inspection.labels), np.bool_)
    if missing:
        wnid[tag_findings.missing.rows] = tag_findings.missing.proposed
    if suspect:
        kept[tag_findings.suspect.rows] = False
    rows = np.flatnonzero(kept)
    synsets = inspection.hierarchy.synsets
    lines = (
        (pictures.key(row), synsets[wnid[row]] if wnid[row] >= 0 else "") for row in map(int, rows)
    )
    write_csv(path, ("key", "wnid"), lines)
    return len(rows), int((wnid[rows] >= 0).sum()), int((~kept).sum())


# -- against the truth ----------------------------------------------------------------------------


def score_missing(inspection: Inspection, truth: NDArray[np.int64]) -> dict[str, float | None]:
    """Precision and recall of single tags. truth: [rows], the true class of each image.

    A tag is missing where the true path goes on below a right tag, in hierarchies that have a
    softmax. Precision: share of added tags on the true path; recall: of missing ones, supplied.
    None of nothing.
    """
    hierarchy, labels, tag_findings = (
        inspection.hierarchy,
        inspection.labels,
        inspection.tags.missing,
    )
    proposed = labels.copy()
    proposed[tag_findings.rows] = tag_findings.proposed
    tagged, added, true = (hierarchy.label_table[c] for c in (labels, proposed, truth))
    new = (tagged < 0) & (added >= 0)
    right = new & (added == true)
    sound = ((tagged < 0) | (tagged == true)).all(1, keepdims=True)
    wanted = (tagged < 0) & (true >= 0) & sound & inspection.judged_rows[:, None]
    return {
        "images": len(tag_findings),
        "added": int(new.sum()),
        "missing": int(wanted.sum()),
        "precision": _share(right, new),
        "recall": _share(right & wanted, wanted),
    }


def score_suspect(inspection: Inspection, truth: NDArray[np.int64]) -> dict[str, float | None]:
    """Precision and recall of the list, average precision of all judged images by their score.

    A tag is wrong where it is neither the true class nor one of its ancestors.
    """
    from torchmetrics.functional.classification import binary_average_precision

    labels, tag_findings, hierarchy = (
        inspection.labels,
        inspection.tags.suspect,
        inspection.hierarchy,
    )
    tagged, true = hierarchy.label_table[labels], hierarchy.label_table[truth]
    judged = inspection.judged_rows
    wrong = ((tagged >= 0) & (tagged != true)).any(1) & judged
    listed = np.zeros(len(labels), np.bool_)
    listed[tag_findings.rows] = True
    ranking = None
    if wrong.any():
        scores = torch.from_numpy(contradictions(inspection)[judged])
        ranking = float(binary_average_precision(scores, torch.from_numpy(wrong[judged]).int()))
    return {
        "images": len(tag_findings),
        "wrong": int(wrong.sum()),
        "precision": _share(listed & wrong, listed),
        "recall": _share(listed & wrong, wrong),
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
