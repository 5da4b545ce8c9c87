"""A store of 50 rows, two views and four blocks, whose answers any test can compute again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data.sample_ids import ascending, sample_ids, samples_digest
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.format.manifest import (
    DatasetIdentity,
    HierarchyIdentity,
    Manifest,
    TeacherIdentity,
    ViewIdentity,
)
from distill.store.logit_store import LogitStore
from distill.targets.encoding import EncodingSpec
from distill.targets.rows import TargetRows
from distill.targets.tensors import encode

ROWS, VIEWS, BLOCK = 50, 2, 16
HIERARCHY = SemanticHierarchy.bundled("plane-figures")
ENCODING = EncodingSpec(entries=(4, 4, 4, 3), prob_steps=191)

_ids = sample_ids([f"key{i}" for i in range(ROWS)])
IDS = _ids[ascending(_ids)]
LABELS = np.arange(ROWS, dtype=np.int64) % 30 - 1


def make_manifest(**changes: Any) -> Manifest:
    manifest = Manifest(
        teacher=TeacherIdentity(
            name="t", fingerprint="f" * 64, input_size=(32, 32), precision="float32"
        ),
        hierarchy=HierarchyIdentity(
            name=HIERARCHY.name,
            digest=HIERARCHY.digest,
            num_classes=HIERARCHY.num_classes,
            classes_per_hierarchy=HIERARCHY.classes_per_hierarchy,
        ),
        dataset=DatasetIdentity(digest=samples_digest(IDS, LABELS), rows=ROWS),
        views=ViewIdentity(count=VIEWS, policy={"name": "augmented", "seed": 0}),
        encoding=ENCODING,
        block_rows=BLOCK,
    )
    return replace(manifest, **changes)


def answers_of(manifest: Manifest, block: int, view: int) -> TargetRows:
    """What the teacher says; a function of the rows' ids and the drawn view alone."""
    rows = manifest.rows_of_block(block)
    drawn = manifest.views.first + view
    logits = [
        torch.randn(29, generator=torch.Generator().manual_seed(1000 * row + drawn)) * 4
        for row in rows
    ]
    return encode(torch.stack(logits), HIERARCHY, manifest.encoding).to_rows()


def create(location: str | Path, manifest: Manifest | None = None) -> LogitStore:
    return LogitStore.create(
        location, manifest or make_manifest(), ids=IDS, labels=LABELS, hierarchy=HIERARCHY.to_json()
    )


def write(store: LogitStore, blocks: Any) -> None:
    for block in blocks:
        views = [
            answers_of(store.manifest, block, view) for view in range(store.manifest.views.count)
        ]
        store.write_block(block, views, {"bad": []})


def make_complete(location: str | Path, manifest: Manifest | None = None) -> LogitStore:
    store = create(location, manifest)
    write(store, range(store.manifest.num_blocks))
    store.finish()
    return store
