"""Run the teacher once over a dataset and write what it says into a store, block by block.

Reads images, draws views, asks the teacher, encodes, writes. Blocks that are committed already are
left alone, so running the same command again goes on where the last run stopped.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from distill.answers import Answers
from distill.data import ImageSource, label_indices
from distill.encoding import EncodingSpec
from distill.errors import DataError, TeacherError
from distill.loader import ViewBatch, ViewRequest, load_views
from distill.progress import progress
from distill.sample_id import samples_digest
from distill.targets import dense_targets, sparsify
from distill.views import ViewPolicy
from store.logit_store import LogitStore, has_store
from store.manifest import DatasetIdentity, HierarchyIdentity, Manifest, ViewIdentity
from store.summary import StoreSummary, summarise
from teacher_server.audit import REPLAY_ROWS, Audit, certificate
from teacher_server.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class PrecomputeOptions:
    """encoding: as `EncodingSpec.named` takes it. first_view: the number of the first view drawn.

    batch_size: views in one forward pass. block_rows: images between two commits.

    workers: processes that decode. max_bad_fraction: share of unreadable images beyond which the
    run stops.
    """

    policy: ViewPolicy
    views: int = 1
    first_view: int = 0
    encoding: str = "standard"
    batch_size: int = 64
    block_rows: int = 8192
    workers: int = 2
    max_bad_fraction: float = 0.001


@dataclass(frozen=True, kw_only=True)
class PrecomputeReport:
    """images: computed in this run, each in all its views. images_per_s: of those, wall clock."""

    store: StoreSummary
    images: int
    seconds: float
    images_per_s: float
    bad: Mapping[str, int]  # images by reason, over all runs


def precompute(
    *, source: ImageSource, teacher: Teacher, path: str | Path, options: PrecomputeOptions
) -> PrecomputeReport:
    """Fill the store at `path`, making it if it is not there.

    Raises:
        StoreMismatchError: the store there is of another teacher, hierarchy, dataset or views.
        DataError: a label lies outside the label set, or too many images are bad.
        TeacherError: an answer of the teacher is not finite.
    """
    store = _open_or_create(source, teacher, path, options)
    todo = sum(len(store.manifest.rows_of_block(block)) for block in store.pending_blocks())
    started = time.monotonic()
    bad = fill(store, source, teacher, options)
    seconds = time.monotonic() - started
    return PrecomputeReport(
        store=summarise(store),
        images=todo,
        seconds=seconds,
        images_per_s=todo / max(seconds, 1e-9),
        bad=bad,
    )


def fill(
    store: LogitStore,
    source: ImageSource,
    teacher: Teacher,
    options: PrecomputeOptions,
    certified: Mapping[str, Any] | None = None,
) -> Counter[str]:
    """Compute the pending blocks of a store of this very source and teacher, and finish it.

    certified: what an earlier certificate said; None takes the audit of block 0.

    Returns the bad images by reason, over all runs.
    """
    blocks = store.pending_blocks()
    todo = sum(len(store.manifest.rows_of_block(block)) for block in blocks)
    allowed_bad = options.max_bad_fraction * len(source)
    bad = Counter(_reasons(store))
    with progress("precompute", len(source), "images", done=len(source) - todo) as tick:
        for block, batches in _batches_by_block(store, source, teacher, blocks, options):
            unwritten = _Block(block, store, source, teacher)
            for batch in batches:
                unwritten.add(batch)
                bad.update(batch.bad.values())
                if bad.total() > allowed_bad:
                    raise _too_many_bad(source, batch, bad, options.max_bad_fraction)
                tick(len(batch.rows) + len(batch.bad), f"{bad.total()} bad" if bad else "")
            store.write_block(block, unwritten.views, unwritten.facts())
    store.finish(certified or certificate(store))
    return bad


class _Block:
    """The answers of one block while they come in."""

    def __init__(
        self, block: int, store: LogitStore, source: ImageSource, teacher: Teacher
    ) -> None:
        self.store, self.source, self.teacher = store, source, teacher
        self.rows = store.manifest.rows_of_block(block)
        slots, hierarchies = sum(store.manifest.slots), teacher.hierarchy.num_hierarchies
        self.views = [
            Answers.empty(len(self.rows), slots, hierarchies)
            for _ in range(store.manifest.views.count)
        ]
        self.bad: list[dict[str, str]] = []
        self.audit = Audit(store, teacher.hierarchy) if block == 0 else None

    def add(self, batch: ViewBatch) -> None:
        """Ask the teacher about a batch and keep its answers."""
        self.bad += [
            {"key": self.source.samples[row].key, "reason": reason}
            for row, reason in batch.bad.items()
        ]
        if self.audit:
            self.audit.add_batch(batch)
        places = np.array(batch.rows, np.int64) - self.rows.start
        for view in range(len(self.views) if batch.rows else 0):
            logits = self._logits(batch, batch.pixels[:, view])
            exact = dense_targets(logits, self.teacher.hierarchy)
            sparse = sparsify(exact, self.teacher.hierarchy, self.store.manifest.encoding)
            self.views[view].put(places, sparse.to_answers())
            if self.audit:
                self.audit.add_answers(batch.rows, exact=exact, sparse=sparse)

    def facts(self) -> dict[str, Any]:
        """For the commit record."""
        return {"bad": self.bad, **({"audit": self.audit.to_json()} if self.audit else {})}

    def _logits(self, batch: ViewBatch, pixels: UInt8[Tensor, "images 3 height width"]) -> Tensor:
        logits = self.teacher.logits(pixels)
        finite = logits.isfinite().all(1)
        if not bool(finite.all()):
            wrong = [batch.rows[i] for i in torch.nonzero(~finite)[:, 0].tolist()]
            keys = ", ".join(self.source.samples[row].key for row in wrong[:5])
            raise TeacherError(
                f"teacher {self.teacher.identity.name}: NaN or Inf for {len(wrong)} images "
                f"({keys}), expected finite logits; check the weights, or try --precision float32"
            )
        return logits


def manifest_for(
    source: ImageSource,
    labels: NDArray[np.int64],
    teacher: Teacher,
    options: PrecomputeOptions,
) -> Manifest:
    """What a store of these answers says of itself."""
    hierarchy = teacher.hierarchy
    return Manifest(
        teacher=teacher.identity,
        hierarchy=HierarchyIdentity(
            name=hierarchy.name,
            digest=hierarchy.digest,
            num_classes=hierarchy.num_classes,
            classes_per_hierarchy=hierarchy.classes_per_hierarchy,
        ),
        dataset=DatasetIdentity(digest=samples_digest(source.ids, labels), rows=len(source)),
        views=ViewIdentity(
            count=options.views, policy=options.policy.to_json(), first=options.first_view
        ),
        encoding=EncodingSpec.named(options.encoding, hierarchy.classes_per_hierarchy),
        block_rows=min(options.block_rows, len(source)),
        provenance={
            name: version(name) for name in ("distill", "torch", "torchvision", "timm", "pillow")
        },
    )


def _open_or_create(
    source: ImageSource, teacher: Teacher, path: str | Path, options: PrecomputeOptions
) -> LogitStore:
    labels = label_indices(source, teacher.hierarchy)
    manifest = manifest_for(source, labels, teacher, options)
    if not has_store(path):
        return LogitStore.create(
            path, manifest, ids=source.ids, labels=labels, hierarchy=teacher.hierarchy.to_json()
        )
    store = LogitStore.open(path)
    store.manifest.require(
        str(path),
        teacher_fingerprint=manifest.teacher.fingerprint,
        hierarchy_digest=manifest.hierarchy.digest,
        dataset=manifest.dataset,
        views=manifest.views,
        encoding=manifest.encoding,
    )
    return store


def _batches_by_block(
    store: LogitStore,
    source: ImageSource,
    teacher: Teacher,
    blocks: list[int],
    options: PrecomputeOptions,
) -> Iterator[tuple[int, Iterator[ViewBatch]]]:
    """Batches never cross a block's end: its answers do not depend on where a run began."""
    views = store.manifest.views.drawn
    images = max(1, options.batch_size // options.views)
    requests = []
    for block in blocks:
        rows = store.manifest.rows_of_block(block)
        for first in range(rows.start, rows.stop, images):
            batch = range(first, min(first + images, rows.stop))
            requests.append([ViewRequest(row, views, prove=row < REPLAY_ROWS) for row in batch])
    loaded = load_views(
        source,
        options.policy,
        teacher.input.size,
        requests,
        workers=options.workers,
        pin_memory=teacher.device.type == "cuda",
    )
    numbered = zip((r[0].row // store.manifest.block_rows for r in requests), loaded, strict=True)
    for block, group in groupby(numbered, key=lambda pair: pair[0]):
        yield block, (batch for _, batch in group)


def _reasons(store: LogitStore) -> list[str]:
    return [bad["reason"] for record in store.records().values() for bad in record["bad"]]


def _too_many_bad(
    source: ImageSource, batch: ViewBatch, bad: Counter[str], fraction: float
) -> DataError:
    row, reason = next(iter(batch.bad.items()))
    return DataError(
        f"{source.location}: {bad.total()} of {len(source)} images are bad (last: "
        f"{source.samples[row].key!r}: {reason}), expected at most a share of {fraction:g}; "
        "repair or remove them, or raise --max-bad-fraction"
    )
