"""A store of the figures whose teacher knows the true classes, but for one image in ten."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from distill.data.sample_ids import samples_digest
from distill.data.source import label_indices, open_source
from distill.data.view_policy import PLAIN
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
from distill.targets.tensors import encode

BLOCK, VIEWS = 16, 2
ANGLES = {"median": 0.1, "p99": 0.2, "max": 0.3}
FIDELITY = {
    "views": 32,
    "angle_deg": {f"{a}_{b}": ANGLES for a in ("mse", "kl") for b in ("fresh", "middle", "near")},
    "how": "made up",
}


def make_knowing(location: Path, figures: Path) -> LogitStore:
    """As `distill precompute` of the figures would make it, with answers from labels.csv."""
    with (figures / "labels.csv").open() as file:
        true = {row["key"]: row["true_wnid"] for row in csv.DictReader(file)}
    return make_store(location, figures, SemanticHierarchy.bundled("plane-figures"), true)


def make_store(
    location: Path,
    data: Path,
    hierarchy: SemanticHierarchy,
    true: Mapping[str, str],
    blocks: Sequence[int] | None = None,
) -> LogitStore:
    """A store of those images. true: synset by key. blocks: all by default; else not finished."""
    source = open_source(data)
    labels = label_indices(source, hierarchy)
    sizes = hierarchy.classes_per_hierarchy
    spec = EncodingSpec(entries=tuple(min(4, n) for n in sizes))
    manifest = Manifest(
        teacher=TeacherIdentity(
            name="knowing", fingerprint="a" * 64, input_size=(32, 32), precision="float32"
        ),
        hierarchy=HierarchyIdentity(
            name=hierarchy.name,
            digest=hierarchy.digest,
            num_classes=hierarchy.num_classes,
            classes_per_hierarchy=sizes,
        ),
        dataset=DatasetIdentity(digest=samples_digest(source.ids, labels), rows=len(source)),
        views=ViewIdentity(count=VIEWS, policy=PLAIN.to_json()),
        encoding=spec,
        block_rows=BLOCK,
    )
    store = LogitStore.create(
        location, manifest, ids=source.ids, labels=labels, hierarchy=hierarchy.to_json()
    )
    random = np.random.default_rng(0)
    logits = random.normal(size=(VIEWS, len(source), hierarchy.num_classes)).astype(np.float32)
    for row, sample in enumerate(source.samples):
        seen = true[sample.key]
        if random.random() < 0.1:
            seen = hierarchy.synsets[int(random.integers(hierarchy.num_classes))]
        for synset in (seen, *hierarchy.ancestors(seen)):
            logits[:, row, hierarchy.index(synset)] += 6
    for block in range(manifest.num_blocks) if blocks is None else blocks:
        rows = manifest.rows_of_block(block)
        said = [torch.from_numpy(view[rows.start : rows.stop]) for view in logits]
        views = [encode(each, hierarchy, spec).to_rows() for each in said]
        store.write_block(block, views, {"bad": [], **({} if block else {"inherited": FIDELITY})})
    if blocks is None:
        store.finish()
    return store
