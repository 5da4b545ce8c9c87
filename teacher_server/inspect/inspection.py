"""A store as it is inspected: opened once, summed up once, asked many times."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import SampleIds, find_rows
from distill.errors import StoreError, StoreMismatchError
from distill.files import CACHE
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.logit_store import LogitStore
from distill.store.summary import StoreSummary, summarise
from distill.store.views.cache import Cache, Put
from distill.targets.rows import TargetRows
from distill.teacher_server.inspect.findings import (
    FORMAT,
    VERDICTS,
    Rules,
    TagFindings,
    Verdict,
    find_tags,
)
from distill.teacher_server.inspect.overview import HierarchyFigures, figures_by_hierarchy
from distill.teacher_server.inspect.statistics import (
    UNITS,
    Beliefs,
    RowState,
    digest_of,
    open_beliefs,
)
from distill.teacher_server.inspect.subtrees import SUMS, Subtrees, sums_by_subtree
from distill.teacher_server.inspect.tree import ClassTree

PLAIN_INSTEAD = (
    "judge by a store of plain views, `distill precompute … --view-policy plain --store PLAIN`, "
    "and inspect that, or pass it as --folds"
)


@dataclass(frozen=True)
class Proposal:
    """kind: missing or suspect. proposed: class index; prob: of it; score: of the finding."""

    kind: str
    proposed: int
    prob: float
    score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """beliefs: of the store's teacher. judged: by which tags are judged, of other teachers perhaps.

    summary: of the store as it was when it was opened. folds: by their location.
    cache: for what is made of the beliefs. augmented: stores that tags are judged by although their
    views are augmented, of which the teacher is less sure than of plain ones.
    """

    store: LogitStore
    summary: StoreSummary
    tree: ClassTree
    beliefs: Beliefs
    judged: Beliefs
    folds: Mapping[str, Beliefs]
    rules: Rules
    cache: Cache
    augmented: tuple[str, ...]

    @property
    def hierarchy(self) -> SemanticHierarchy:
        """Hierarchy of the store."""
        return self.tree.hierarchy

    @property
    def labels(self) -> NDArray[np.int64]:
        """[rows]: class index of each image's tag, -1 where it has none."""
        return self.store.labels

    @cached_property
    def overview(self) -> list[HierarchyFigures]:
        """Per hierarchy."""
        return figures_by_hierarchy(self.beliefs, self.hierarchy)

    @cached_property
    def judged_rows(self) -> NDArray[np.bool_]:
        """[rows]: the images that have a tag and an answer to judge it by."""
        judged: NDArray[np.bool_] = self.tags.verdicts["verdict"] != Verdict.NOT_JUDGED
        return judged

    @cached_property
    def tags(self) -> TagFindings:
        """Missing and suspect ones."""

        def fill(put: Put) -> None:
            for first, verdicts in find_tags(self.judged, self.labels, self.hierarchy, self.rules):
                put(first, verdicts)

        return TagFindings(self._kept("verdicts", VERDICTS, len(self.labels), fill))

    @cached_property
    def subtrees(self) -> Subtrees:
        """Per class and subtree."""

        def fill(put: Put) -> None:
            put(0, sums_by_subtree(self.beliefs, self.labels, self.tree, self.tags))

        return Subtrees(self.tree, self._kept("subtrees", SUMS, self.hierarchy.num_classes, fill))

    def _kept(
        self, file_name: str, dtype: np.dtype[Any], rows: int, fill: Callable[[Put], None]
    ) -> NDArray[Any]:
        """In the cache, where it will be of use: a store that grows soon says something else."""
        if self.beliefs.is_complete:
            name = digest_of([FORMAT, self.beliefs.name, self.judged.name, repr(self.rules)])
            return self.cache.open(f"{name}-{file_name}", dtype, rows, fill)
        made = np.zeros(rows, dtype)

        def put(first: int, values: NDArray[Any]) -> None:
            made[first : first + len(values)] = values

        fill(put)
        return made

    @property
    def gaps(self) -> list[str]:
        """What is not there, in words; empty for a whole store."""
        gaps = _gaps(self.store.location, self.beliefs)
        for location, fold in self.folds.items():
            gaps += [f"fold {location}: {gap}" for gap in _gaps(location, fold)]
        in_folds = sum(fold.rows for fold in self.folds.values())
        if self.folds and in_folds < len(self.labels):
            gaps.append(
                f"{len(self.labels) - in_folds} of {len(self.labels)} images are in no fold, so "
                "their tags are not judged: compute the other folds, and pass them as --folds too"
            )
        return gaps

    @property
    def doubt(self) -> str:
        """Why its findings of tags are not to be trusted; empty where they are."""
        if not self.augmented:
            return ""
        return (
            f"{', '.join(self.augmented)}: augmented views, by which few missing and many wrong "
            f"suspect tags are found; {PLAIN_INSTEAD}"
        )

    def row_of(self, ids: SampleIds, key: str) -> int:
        """The row of one sample, [1, 2].

        Raises:
            StoreError: the store has no such sample.
        """
        row = int(find_rows(self.store.sample_ids, ids)[0])
        if row < 0:
            raise StoreError(
                f"{self.store.location}: holds no sample {key!r}, expected a key of the data it "
                "was computed from: a file's path without split and extension"
            )
        return row

    def proposal(self, row: int) -> Proposal | None:
        """What the teacher would change of an image's tag."""
        verdict, proposed, score = self.tags.verdicts[row].item()
        if verdict not in (Verdict.MISSING, Verdict.SUSPECT):
            return None
        image = self.judged.images(np.array([row]))[0]
        prob = float(image["top_prob"][self.hierarchy.levels[proposed]] / UNITS)
        return Proposal(Verdict(verdict).name.lower(), proposed, prob, score)

    def question(self, row: int, proposal: Proposal) -> int:
        """The class that decides whether a proposal is right: the one it adds, or the tag."""
        return proposal.proposed if proposal.kind == "missing" else int(self.labels[row])

    def confirmed(self, verdict: Callable[[int, int], str | None]) -> "Inspection":
        """With those of its findings that people confirm. verdict: of a row and a class."""
        verdicts, tags = self.tags.verdicts.copy(), self.tags
        for found, classes, answer in (
            (tags.missing, tags.missing.proposed, "yes"),
            (tags.suspect, self.labels[tags.suspect.rows], "no"),
        ):
            for row, c in zip(map(int, found.rows), map(int, classes), strict=True):
                if verdict(row, c) != answer:
                    verdicts[row] = (Verdict.GOOD, 0, 0)
        narrowed = replace(self)
        narrowed.__dict__["tags"] = TagFindings(verdicts)
        return narrowed

    def answers(self, row: int, view: int | None = None) -> TargetRows:
        """What the teacher says of one image: a row a view, or of one view. Reads a block a view.

        Raises:
            CorruptStoreError: the block is damaged.
            StoreError: it is not computed yet.
        """
        manifest = self.store.manifest
        block, place = divmod(row, manifest.block_rows)
        commit = self.store.block_commits().get(block)
        if commit is None:
            raise StoreError(
                f"{self.store.location}: block {block} is not computed yet, expected it for this "
                "sample; run the same `distill precompute` again"
            )
        views = range(manifest.views.count) if view is None else [view]
        here = np.array([place])
        codes = [self.store.read_codes(block, v, commit).select(here) for v in views]
        return manifest.coding.dequantise(TargetRows.concatenate(codes))


def open_inspection(
    location: str,
    *,
    rules: Rules,
    folds: Sequence[str] = (),
    cache: Path | None = None,
    read_block: Callable[[int], None] = lambda blocks: None,
) -> Inspection:
    """Open a store, complete or not, and read it where the cache has nothing of it.

    folds: stores of teachers that did not train on the images in them; each image's tag is judged
    by the one that has it. cache: None is beside the store, or the user's own for a bucket.

    Raises:
        StoreError: nothing is there, it cannot be read, or it holds raw answers.
        CorruptStoreError: it is damaged in more than its answers.
        StoreMismatchError: a fold has other classes, images or tags, or two folds have an image.
    """
    store = LogitStore.open(location)
    if store.manifest.answers != "softmax":
        raise StoreError(
            f"{location}: holds answers {store.manifest.answers!r}, which have no confidence per "
            f"hierarchy; expected a softmax for each; `distill evaluate {location} --data …` judges"
            " these"
        )
    hierarchy = SemanticHierarchy.from_json(store.hierarchy)
    store.manifest.require(location, hierarchy_digest=hierarchy.digest)
    beliefs = open_beliefs(store, hierarchy, _cache(location, cache), read_block=read_block)
    judged, opened = beliefs, [_fold(store, fold, hierarchy, cache) for fold in folds]
    if folds:
        rows = np.concatenate([each for each, _ in opened])
        if len(np.unique(rows)) < len(rows):
            raise StoreMismatchError(
                f"{', '.join(folds)}: an image stands in two of them, expected each in one; "
                "compute every fold with a list of its own (`distill data folds`)"
            )
        judged = beliefs.with_images(
            [(rows, part.images(np.arange(len(rows)))) for rows, part in opened],
            [part.name for _, part in opened],
        )
    return Inspection(
        store=store,
        summary=summarise(store),
        tree=ClassTree(hierarchy),
        beliefs=beliefs,
        judged=judged,
        folds={location: fold for location, (_, fold) in zip(folds, opened, strict=True)},
        rules=rules,
        cache=_cache(location, cache),
        augmented=tuple(
            each
            for each in folds or (location,)
            if LogitStore.open(each).manifest.views.policy["name"] != "plain"
        ),
    )


def _fold(
    store: LogitStore, location: str, hierarchy: SemanticHierarchy, cache: Path | None
) -> tuple[NDArray[np.int64], Beliefs]:
    """Where the images of a fold stand in `store`, and what its teacher believes of them."""
    fold = LogitStore.open(location)
    fold.manifest.require(location, hierarchy_digest=hierarchy.digest)
    rows = find_rows(store.sample_ids, fold.sample_ids)
    if (rows < 0).any() or (store.labels[rows] != fold.labels).any():
        raise StoreMismatchError(
            f"{location}: images or tags found that are not those of {store.location}, expected "
            "a part of it; compute both from the same --data"
        )
    return rows, open_beliefs(fold, hierarchy, _cache(location, cache))


def _cache(location: str, folder: Path | None) -> Cache:
    """Beside a store on a disk; of a bucket, or where one may not write, the user's own."""
    if folder is None:
        beside = Path(f"{location.rstrip('/')}.inspect")
        place = beside if beside.exists() else beside.parent
        ours = "://" not in location and os.access(place, os.W_OK)
        folder = beside if ours else Path(CACHE)
    return Cache(folder.expanduser())


def _gaps(location: str, beliefs: Beliefs) -> list[str]:
    gaps, blocks = [], len(beliefs.blocks)
    missing, damaged = beliefs.blocks_that(RowState.NOTHING), beliefs.blocks_that(RowState.BAD)
    if missing:
        gaps.append(
            f"{len(missing)} of {blocks} blocks are not computed yet: run the same `distill "
            "precompute` again, it resumes where it stopped"
        )
    if damaged:
        named = ", ".join(map(str, damaged[:8])) + (" …" if len(damaged) > 8 else "")
        gaps.append(
            f"{len(damaged)} of {blocks} blocks are damaged ({named}): `distill store repair "
            f"{location}` computes them again"
        )
    return gaps
