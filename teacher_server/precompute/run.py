"""Run the teacher once over a data set and write its predictions into a store.

Blocks that are committed already are left alone, so running the same command again goes on where
the last run stopped; and any number of processes can share the blocks of one store.
"""

import random
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import samples_digest
from distill.data.source import ImageSource, label_indices
from distill.errors import DISTRIBUTION, IncompleteStoreError, StoreMismatchError
from distill.events import Journal
from distill.progress import progress
from distill.store.format.manifest import DatasetIdentity, HierarchyIdentity, Manifest, ViewIdentity
from distill.store.logit_store import LogitStore, has_store
from distill.store.summary import StoreSummary, summarise
from distill.store.upkeep.changed_data import changed_data
from distill.store.upkeep.repair import Dataset, mend_root
from distill.targets.agreement import TagAgreement
from distill.targets.encoding import EncodingSpec
from distill.teacher_server.inspect.agreement import agreement_of_store
from distill.teacher_server.precompute.bad_images import BadImages
from distill.teacher_server.precompute.options import PrecomputeOptions, Share, block_rows_for
from distill.teacher_server.precompute.pipeline import Pipeline
from distill.teacher_server.teacher.batch_size import Throughput
from distill.teacher_server.teacher.stages import StageSeconds
from distill.teacher_server.teacher.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class PrecomputeReport:
    """images: computed in this run, each in all its views. images_per_s: of those, wall clock.

    bad: images by kind of damage, over all runs. blocks_left: for others, or for later.
    agreement: of the teacher with the tags, on a sample; None before the first block.
    """

    store: StoreSummary
    images: int
    seconds: float
    images_per_s: float
    blocks_left: int
    speed: Throughput | None
    stages: StageSeconds
    bottleneck: str
    bad: Mapping[str, int]
    agreement: TagAgreement | None


def precompute(
    *,
    source: ImageSource,
    teacher: Teacher,
    path: str | Path,
    options: PrecomputeOptions,
    share: Share | None = None,
    journal: Journal | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> PrecomputeReport:
    """Fill the store at `path`, making it if it is not there.

    stopping: asked after each block whether to leave it at that.

    Raises:
        StoreMismatchError: the store there is of another teacher, hierarchy, dataset or views.
        DataError: a label lies outside the label set, or too many images are bad.
        TeacherError: an answer of the teacher is not finite, or its device was lost.
    """
    journal = journal or Journal()
    store = open_or_create(source, teacher, path, options)
    bad_images = BadImages(store, source, options.max_bad_fraction)
    pipeline = Pipeline(
        store=store,
        source=source,
        teacher=teacher,
        options=options,
        journal=journal,
        share=share or Share(),
    )
    speed, stages = fill(pipeline, bad_images=bad_images, stopping=stopping)
    left = store.pending_blocks()
    if not left and (left := finish(store, journal, stopping)) and not stopping():
        # A power cut damaged them; whose share they are, nobody may work on any more.
        everything = replace(pipeline, share=Share())
        speed, stages = fill(everything, bad_images=bad_images, stopping=stopping)
        left = finish_if_complete(store, journal, stopping)
    return report_of(store, bad_images, speed, stages, stages.wall, left)


def fill(
    pipeline: Pipeline,
    *,
    bad_images: BadImages,
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[Throughput | None, StageSeconds]:
    """Compute the pending blocks of a share, with progress.

    In any order, and without those that were written meanwhile: of two runs of the same command
    each computes about half.
    """
    store, share = pipeline.store, pipeline.share
    blocks = share.of(store.pending_blocks())
    random.shuffle(blocks)
    rows = rows_of(store.manifest, blocks)
    log_start(pipeline, blocks=len(blocks), rows=rows, share=asdict(share))
    if not blocks or stopping():
        return None, StageSeconds()
    shard_rows = rows_of(store.manifest, share.of(range(store.manifest.num_blocks)))
    with progress("precompute", shard_rows, "images", done=shard_rows - rows) as tick:

        def on_batch(images: int, bad: dict[str, str]) -> None:
            bad_images.add(images, bad)
            tick(images, bad_images.note)

        def still_pending() -> Iterator[int]:
            for block in blocks:
                if store.is_pending(block):
                    yield block
                else:
                    tick(rows_of(store.manifest, [block]), "written by another process")

        return pipeline.run(still_pending(), rows=rows, on_batch=on_batch, stopping=stopping)


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
        answers=teacher.answers,
        block_rows=block_rows_for(len(source), options.block_rows),
        provenance={**versions(), "teacher": [line for m in teacher.members for line in m.about]},
    )


def versions() -> dict[str, str]:
    """What decides an answer's last bits, beside the weights."""
    libraries = {name: version(name) for name in ("torch", "torchvision", "timm", "pillow")}
    return {"distill": version(DISTRIBUTION), **libraries}


def open_or_create(
    source: ImageSource, teacher: Teacher, path: str | Path, options: PrecomputeOptions
) -> LogitStore:
    """The store to fill.

    Raises:
        StoreMismatchError: another one is there.
    """
    labels, hierarchy = label_indices(source, teacher.hierarchy), teacher.hierarchy.to_json()
    manifest = manifest_for(source, labels, teacher, options)
    dataset = Dataset(ids=source.ids, labels=labels, hierarchy=hierarchy)
    mend_root(str(path), manifest, dataset)
    store = open_matching(path, manifest, source, labels) or LogitStore.create(
        path, manifest, ids=source.ids, labels=labels, hierarchy=hierarchy
    )
    if damaged := store.damaged_records():
        store.revoke(damaged)
    return store


def open_matching(
    path: str | Path, manifest: Manifest, source: ImageSource, labels: NDArray[np.int64]
) -> LogitStore | None:
    """The store at `path`; None where there is none.

    Raises:
        StoreMismatchError: it is not one of this manifest; its blocks may be other ones.
    """
    if not has_store(path):
        return None
    store = LogitStore.open(path)
    same_teacher = store.manifest.teacher.fingerprint == manifest.teacher.fingerprint
    same_classes = store.manifest.hierarchy.digest == manifest.hierarchy.digest
    changed = changed_data(store, source.ids, labels) if same_teacher and same_classes else ""
    if changed:
        raise StoreMismatchError(
            f"{store.location}: dataset of {len(store.sample_ids)} images found, this run has "
            f"{len(source)}: {changed}"
        )
    store.manifest.require(
        store.location,
        teacher_fingerprint=manifest.teacher.fingerprint,
        hierarchy_digest=manifest.hierarchy.digest,
        dataset=manifest.dataset,
        views=manifest.views,
        encoding=manifest.encoding,
    )
    return store


def finish_if_complete(
    store: LogitStore, journal: Journal, stopping: Callable[[], bool] = lambda: False
) -> list[int]:
    """Certify the store when its last block is there, whoever wrote it; the blocks that are not."""
    return store.pending_blocks() or finish(store, journal, stopping)


def finish(store: LogitStore, journal: Journal, stopping: Callable[[], bool]) -> list[int]:
    """Certify a store that has all blocks; those that it had to take back."""
    if store.certificate is not None:
        return []
    try:
        store.finish(stopping=stopping, say=lambda line: journal.note(line, "waits"))
    except IncompleteStoreError as error:
        left = store.pending_blocks()
        if not left:  # it was stopped
            return []
        journal.note(str(error), "blocks revoked", blocks=left)
        return left
    journal.event("store finished", blocks=store.manifest.num_blocks)
    return []


def report_of(
    store: LogitStore,
    bad_images: BadImages,
    speed: Throughput | None,
    stages: StageSeconds,
    seconds: float,
    left: Sequence[int],
) -> PrecomputeReport:
    """The end of a run."""
    return PrecomputeReport(
        store=summarise(store),
        images=bad_images.images,
        seconds=seconds,
        images_per_s=bad_images.images / max(seconds, 1e-9),
        blocks_left=len(left),
        speed=speed,
        stages=stages,
        bottleneck=stages.bottleneck,
        bad=bad_images.bad,
        agreement=agreement_of_store(store),
    )


def rows_of(manifest: Manifest, blocks: Iterable[int]) -> int:
    """How many rows those blocks have."""
    return sum(len(manifest.rows_of_block(block)) for block in blocks)


def log_start(pipeline: Pipeline, **fields: Any) -> None:
    """Log what runs, where and on what."""
    store, manifest = pipeline.store, pipeline.store.manifest
    pipeline.journal.event(
        "run started",
        host=socket.gethostname(),
        store=store.location,
        store_identity=manifest.identity,
        teacher=asdict(manifest.teacher),
        device=str(pipeline.teacher.device),
        views=asdict(manifest.views),
        versions=dict(manifest.provenance),
        **fields,
    )
