"""Report on a data set: counts, labels, damage, duplicates, tagging.

Every image or clip is read and decoded once, by several processes. Knows no teacher; what one
thinks of the tags is `distill inspect`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distill.curate.duplicates import equal_groups, near_groups, pairs_of
from distill.curate.image_check import CheckUnit, check_unit
from distill.data.formats.samples import Sample
from distill.data.source import OUTSIDE, ImageSource, labels_or_outside
from distill.errors import optional
from distill.hierarchy.semantic import SemanticHierarchy
from distill.process_pool import map_in_processes
from distill.progress import progress

UNIT_IMAGES, UNIT_CLIPS = 500, 10


@dataclass(frozen=True, eq=False)
class CheckedImages:
    """The images of all splits, one after another; rows count through them.

    labels: class index, -1 for none, -2 for one outside the label set. reasons: of images that
    cannot be read, by row. bytes_total: of the files of images. groups: rows of equal images; near:
    of images that look alike.
    """

    sources: Mapping[str, ImageSource]
    hierarchy: SemanticHierarchy
    labels: NDArray[np.int64]
    reasons: Mapping[int, str]
    bytes_total: int
    groups: Sequence[NDArray[np.int64]]
    near: Sequence[NDArray[np.int64]] | None

    def sample(self, row: int) -> tuple[str, Sample]:
        """The split and the sample of a row."""
        for split, source in self.sources.items():
            if row < len(source):
                return split, source.samples[row]
            row -= len(source)
        raise IndexError(row)

    @property
    def split_of_rows(self) -> NDArray[np.int64]:
        """[n]: the number of the split of each row."""
        return np.repeat(np.arange(len(self.sources)), [len(s) for s in self.sources.values()])


def check_images(
    sources: Mapping[str, ImageSource],
    hierarchy: SemanticHierarchy,
    *,
    near_bits: int | None,
    workers: int,
    shown: bool = True,
) -> CheckedImages:
    """Read all images. near_bits: of 64 that perceptual hashes may differ in; None does not hash.

    Raises:
        DataUnavailableError: the disk or the network does not answer now.
        DataError: imagehash is not installed, which `near_bits` needs.
    """
    if near_bits is not None:
        _require_imagehash()
    total = sum(len(source) for source in sources.values())
    digests = np.zeros((total, 2), np.uint64)
    hashes = np.zeros(total, np.uint64)
    reasons: dict[int, str] = {}
    size = 0
    things = next(iter(sources.values())).things
    with progress("checking", total, things, shown=shown) as tick:
        for unit in map_in_processes(check_unit, _units(sources, near_bits is not None), workers):
            rows = slice(unit.first, unit.first + len(unit.digests))
            digests[rows], hashes[rows] = unit.digests, unit.hashes
            reasons |= {unit.first + i: reason for i, reason in unit.reasons.items()}
            size += unit.bytes_total
            tick(len(unit.digests))
    readable = np.setdiff1d(np.arange(total), np.fromiter(reasons, np.int64, len(reasons)))
    return CheckedImages(
        sources=sources,
        hierarchy=hierarchy,
        labels=np.concatenate([labels_or_outside(each, hierarchy) for each in sources.values()]),
        reasons=dict(sorted(reasons.items())),
        bytes_total=size,
        groups=[readable[rows] for rows in equal_groups(digests[readable])],
        near=None if near_bits is None else near_groups(hashes[readable], readable, near_bits),
    )


def _units(sources: Mapping[str, ImageSource], hashed: bool) -> Iterator[CheckUnit]:
    first = 0
    for source in sources.values():
        size = UNIT_CLIPS if source.frames else UNIT_IMAGES
        for start in range(0, len(source), size):
            rows = range(start, min(start + size, len(source)))
            samples = [source.samples[row] for row in rows]
            yield CheckUnit(
                first=first + start, samples=samples, hashed=hashed, frames=source.frames
            )
        first += len(source)


def _require_imagehash() -> None:
    with optional("near", "--near"):
        import imagehash  # noqa: F401


# -- the report -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tagging:
    """How pairs of the same picture are tagged.

    same: alike. general: one tag is an ancestor of the other. contradicting: neither; unknown: at
    least one has no tag of the label set.
    """

    pairs: int = 0
    same: int = 0
    general: int = 0
    contradicting: int = 0
    unknown: int = 0
    across_splits: int = 0


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """per_hierarchy: images with a label there, and those tagged with a class of that level.

    bytes_total: of the files of images. outside: images of each label that the label set lacks.
    inner: images tagged with a class that
    has subclasses in the label set; each of them may lack a more precise tag.
    """

    location: str
    images: Mapping[str, int]
    bytes_total: int
    label_set: str
    classes: int
    classes_present: int
    images_per_class: Mapping[str, float]
    unlabelled: int
    outside: Mapping[str, int]
    per_hierarchy: Sequence[Mapping[str, int]]
    inner: int
    unreadable: int
    unreadable_by_kind: Mapping[str, int]
    duplicates: Tagging
    near_duplicates: Tagging | None = field(default=None)


def report_of(location: str, checked: CheckedImages) -> DataReport:
    """The figures."""
    hierarchy, labels = checked.hierarchy, checked.labels
    tagged = labels[labels >= 0]
    per_class = np.bincount(tagged, minlength=hierarchy.num_classes)
    present = per_class[per_class > 0]
    table = hierarchy.label_table[tagged]
    levels = hierarchy.levels[tagged]
    quantiles = np.quantile(present, [0, 0.5, 1]) if len(present) else np.zeros(3)
    kinds = Counter(reason.partition(":")[0] for reason in checked.reasons.values())
    return DataReport(
        location=location,
        images={split: len(source) for split, source in checked.sources.items()},
        bytes_total=checked.bytes_total,
        label_set=hierarchy.name,
        classes=hierarchy.num_classes,
        classes_present=len(present),
        images_per_class=dict(zip(("min", "median", "max"), map(float, quantiles), strict=True)),
        unlabelled=int((labels == -1).sum()),
        outside=_outside(checked),
        per_hierarchy=[
            {
                "hierarchy": k,
                "classes": hierarchy.level_sizes[k],
                "labelled": int((table[:, k] >= 0).sum()),
                "tagged_here": int((levels == k).sum()),
            }
            for k in range(hierarchy.num_hierarchies)
        ],
        inner=int(hierarchy.inner[tagged].sum()),
        unreadable=len(checked.reasons),
        unreadable_by_kind=dict(kinds.most_common()),
        duplicates=_tagging(checked, checked.groups),
        near_duplicates=None if checked.near is None else _tagging(checked, checked.near),
    )


def _outside(checked: CheckedImages) -> dict[str, int]:
    rows = np.flatnonzero(checked.labels == OUTSIDE)
    return dict(Counter(str(checked.sample(int(row))[1].label) for row in rows).most_common())


def _tagging(checked: CheckedImages, groups: Sequence[NDArray[np.int64]]) -> Tagging:
    pairs = pairs_of(groups)
    hierarchy = checked.hierarchy
    a, b = checked.labels[pairs[:, 0]], checked.labels[pairs[:, 1]]
    known = (a >= 0) & (b >= 0)
    general = np.array(
        [
            hierarchy.synsets[x] in hierarchy.ancestors(hierarchy.synsets[y])
            or hierarchy.synsets[y] in hierarchy.ancestors(hierarchy.synsets[x])
            for x, y in zip(a[known], b[known], strict=True)
        ],
        np.bool_,
    )
    same = int((known & (a == b)).sum())
    splits = checked.split_of_rows
    return Tagging(
        pairs=len(pairs),
        same=same,
        general=int(general.sum()),
        contradicting=int(known.sum()) - same - int(general.sum()),
        unknown=int((~known).sum()),
        across_splits=int((splits[pairs[:, 0]] != splits[pairs[:, 1]]).sum()),
    )
