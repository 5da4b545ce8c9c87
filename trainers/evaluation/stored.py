"""Judge what a store holds, as a model is judged: its teacher, without running it again."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import find_rows
from distill.data.source import ImageSource, label_indices
from distill.data.view_policy import ViewPolicy
from distill.errors import DataError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.losses.accuracy import SemanticAccuracy
from distill.store.logit_store import LogitStore
from distill.trainers.sources.replay import check_replay
from distill.trainers.sources.store import stored_proofs


def evaluate_store(
    store: LogitStore, source: ImageSource, *, true: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Semantic top-1 of the store's first view on the images of `source` that it holds.

    true: [n] true classes; then also how many missing tags are supplied, as `MissingTagsMeter`.

    Raises:
        DataError: it holds none of them, or a label is outside its label set.
        StoreMismatchError: the teacher saw other images under these keys, as of another split.
        IncompleteStoreError: blocks are missing.
    """
    store.require_complete()
    hierarchy = SemanticHierarchy.from_json(store.hierarchy)
    labels = label_indices(source, hierarchy)
    rows = find_rows(store.sample_ids, source.ids)
    if not (rows >= 0).any():
        raise DataError(
            f"{store.location}: holds none of the {len(source)} images of {source.location}, "
            "expected those that it was made from; pass its --data and --split"
        )
    _require_same_images(store, source)
    expected = hierarchy.label_table[labels]
    tops = np.full_like(expected, -1)
    for held, answers in _most_probable(store, rows, hierarchy):
        tops[held] = answers
    seen = tops[:, :1] >= 0
    figures = _figures("semantic_top1", tops, np.where(seen, expected, -1))
    if true is not None:
        wanted = hierarchy.label_table[true]
        right_so_far = ((expected < 0) | (expected == wanted)).all(1, keepdims=True)
        missing = (expected < 0) & (wanted >= 0) & right_so_far & seen
        figures |= _figures("missing_tag_recovery", tops, np.where(missing, wanted, -1))
    judged, known = int(seen.sum()), int((rows >= 0).sum())
    return {
        "images": judged,
        "unreadable": known - judged,
        "not_in_store": len(source) - known,
        **figures,
    }


def _require_same_images(store: LogitStore, source: ImageSource) -> None:
    """Keys leave the split out, so those of another split may be the same."""
    proofs = stored_proofs(store)
    if not proofs:
        return
    stored = np.array([int(row) for row in proofs.proofs], np.int64)
    held = find_rows(source.ids, store.sample_ids[stored]).tolist()
    here = {
        str(row): proofs.proofs[str(there)]
        for row, there in zip(held, stored.tolist(), strict=True)
        if row >= 0
    }
    if here:
        policy = ViewPolicy.from_json(store.manifest.views.policy)
        check_replay(replace(proofs, proofs=here), source, policy)


def _most_probable(
    store: LogitStore, rows: NDArray[np.int64], hierarchy: SemanticHierarchy
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Block by block, which of `rows` it holds, and their first choices [., K]."""
    manifest, commits = store.manifest, store.block_commits()
    starts = np.concatenate([[0], np.cumsum(manifest.slots)[:-1]]).astype(np.int64)
    for block in np.unique(rows[rows >= 0] // manifest.block_rows):
        answers = manifest.coding.dequantise(store.read_codes(int(block), 0, commits[int(block)]))
        held = np.flatnonzero((rows >= 0) & (rows // manifest.block_rows == block))
        places = rows[held] % manifest.block_rows
        good = answers.valid[places]
        yield held[good], answers.index[places[good]][:, starts].astype(np.int64)


def _figures(name: str, tops: NDArray[np.int64], expected: NDArray[np.int64]) -> dict[str, Any]:
    known = expected >= 0
    counts = known.sum(0).tolist()
    right = ((tops == expected) & known).sum(0).tolist()
    shares = [r / n if n else None for r, n in zip(right, counts, strict=True)]
    accuracy = SemanticAccuracy(
        tuple(float("nan") if share is None else share for share in shares), tuple(counts)
    )
    return {
        name: accuracy.total if sum(counts) else None,
        f"{name}_per_hierarchy": shares,
        f"{name}_counts": counts,
    }
