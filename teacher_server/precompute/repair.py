"""Repair a store: put right what can be, let the teacher compute the bad blocks again."""

from collections.abc import Mapping
from dataclasses import dataclass

from distill.data.sample_ids import samples_digest
from distill.data.source import ImageSource, label_indices
from distill.data.view_policy import ViewPolicy
from distill.errors import StoreError
from distill.events import Journal
from distill.store.format.manifest import DatasetIdentity
from distill.store.format.root import Root, read_root_or_copy
from distill.store.logit_store import LogitStore
from distill.store.upkeep.repair import Dataset, fill_from, restore, revoke_bad
from distill.teacher_server.precompute.bad_images import BadImages
from distill.teacher_server.precompute.options import PrecomputeOptions
from distill.teacher_server.precompute.pipeline import Pipeline
from distill.teacher_server.precompute.run import fill, finish_if_complete
from distill.teacher_server.teacher.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """restored: a line each. taken: blocks of a replica. recomputed: those of the teacher."""

    restored: tuple[str, ...]
    taken: tuple[int, ...]
    recomputed: tuple[int, ...]
    bad: Mapping[str, int]


def repair(
    location: str,
    *,
    source: ImageSource | None = None,
    teacher: Teacher | None = None,
    replica: LogitStore | None = None,
    batch_size: int | None = None,
    workers: int = 2,
) -> RepairReport:
    """Leave a store that `verify` finds nothing wrong with. replica: another copy of it.

    Raises:
        StoreMismatchError: teacher or data set are not the store's.
        StoreError: blocks are bad and there is no teacher to compute them.
    """
    root = read_root_or_copy(location)
    dataset = None
    if source and teacher:
        labels = label_indices(source, teacher.hierarchy)
        root.manifest.require(
            location,
            teacher_fingerprint=teacher.identity.fingerprint,
            hierarchy_digest=teacher.hierarchy.digest,
            dataset=DatasetIdentity(digest=samples_digest(source.ids, labels), rows=len(source)),
        )
        dataset = Dataset(ids=source.ids, labels=labels, hierarchy=teacher.hierarchy.to_json())
    if replica and replica.manifest.identity == root.manifest.identity:
        dataset = Dataset(
            ids=replica.sample_ids, labels=replica.labels, hierarchy=replica.hierarchy
        )
    restored = restore(location, dataset)
    store = LogitStore.open(location)
    known = store.block_commits()
    revoke_bad(location)
    taken = fill_from(store, replica, known) if replica else []
    pending = store.pending_blocks()
    if pending and not (source and teacher):
        raise StoreError(
            f"{location}: {len(pending)} blocks are bad or missing (first {pending[0]}), expected "
            "none; pass the --teacher and --data they were computed with, or a copy --from which "
            "to take them"
        )
    bad: Mapping[str, int] = {}
    if source and teacher:
        bad_images = BadImages(store, source, 1.0)
        pipeline = Pipeline(
            store=store,
            source=source,
            teacher=teacher,
            options=options_of(root, batch_size, workers),
            journal=Journal(),
        )
        fill(pipeline, bad_images=bad_images)
        bad = bad_images.bad
    if store.certificate is None:
        finish_if_complete(store, Journal())
    return RepairReport(
        restored=tuple(restored), taken=tuple(taken), recomputed=tuple(pending), bad=bad
    )


def options_of(root: Root, batch_size: int | None, workers: int) -> PrecomputeOptions:
    """Compute as the store says."""
    manifest = root.manifest
    return PrecomputeOptions(
        policy=ViewPolicy.from_json(manifest.views.policy),
        views=manifest.views.count,
        first_view=manifest.views.first,
        batch_size=batch_size,
        block_rows=manifest.block_rows,
        workers=workers,
    )
