"""The audit sample of a precompute: how faithful the encoding is, and proof of the views drawn.

The first rows of a store are a fair sample of its dataset, because rows stand in hashed order. What
is measured on them is kept in the commit record of block 0, so it survives a kill like any block.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.data.loader import ViewBatch
from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.fidelity import FidelityErrors, fidelity_errors, fidelity_figures
from distill.targets.rows import TargetRows
from distill.targets.tensors import DenseTargets, SparseTargets
from store.logit_store import LogitStore

FIDELITY_ROWS = 1024
REPLAY_ROWS = 32


class Audit:
    """Collects measurements while block 0 is computed."""

    def __init__(self, store: LogitStore, hierarchy: SemanticHierarchy) -> None:
        self.store, self.hierarchy = store, hierarchy
        self.errors: list[FidelityErrors] = []
        self.replay: dict[str, list[str]] = {}

    def add_proofs(self, batch: ViewBatch) -> None:
        """Keep the replay proofs of a batch."""
        self.replay |= {str(row): proofs for row, proofs in batch.proofs.items()}

    def add_answers(
        self, rows: NDArray[np.int64], *, exact: DenseTargets, predicted: TargetRows
    ) -> None:
        """Compare what the teacher said with what the store will give back, on its device."""
        sampled = np.flatnonzero(rows < FIDELITY_ROWS)
        if not len(sampled):
            return
        manifest, device = self.store.manifest, exact.probs.device
        stored = manifest.coding.dequantise(manifest.coding.quantise(predicted.select(sampled)))
        errors = fidelity_errors(
            exact=exact.select(torch.from_numpy(sampled).to(device)),
            sparse=SparseTargets.from_rows(stored, manifest.slots).to(device),
            hierarchy=self.hierarchy,
        )
        self.errors.append(errors.cpu())

    def to_json(self) -> dict[str, Any]:
        """Return a document for the commit record of block 0."""
        fidelity = fidelity_figures(self.errors) if self.errors else None
        return {"fidelity": fidelity, "replay": self.replay}


def certificate(store: LogitStore) -> dict[str, Any]:
    """What `LogitStore.finish` puts into the root attributes."""
    records = store.records()
    return dict(records[0]["audit"]) if 0 in records else {"fidelity": None, "replay": {}}
