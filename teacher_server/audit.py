"""The audit sample of a precompute: how faithful the encoding is, and proof of the views drawn.

The first rows of a store are a fair sample of its dataset, because rows stand in hashed order. What
is measured on them is kept in the commit record of block 0, so it survives a kill like any block.
"""

from typing import Any

import torch

from distill.fidelity import FidelityErrors, fidelity_errors, fidelity_figures
from distill.hierarchy import SemanticHierarchy
from distill.loader import ViewBatch
from distill.targets import DenseTargets, SparseTargets
from store.logit_store import LogitStore

FIDELITY_ROWS = 1024
REPLAY_ROWS = 32


class Audit:
    """Collects measurements while block 0 is computed."""

    def __init__(self, store: LogitStore, hierarchy: SemanticHierarchy) -> None:
        self.store, self.hierarchy = store, hierarchy
        self.errors: list[FidelityErrors] = []
        self.replay: dict[str, list[str]] = {}

    def add_batch(self, batch: ViewBatch) -> None:
        """Keep the pixel digests of the replay rows."""
        self.replay |= {str(row): digests for row, digests in batch.digests.items()}

    def add_answers(self, rows: list[int], *, exact: DenseTargets, sparse: SparseTargets) -> None:
        """Compare what the teacher said with what the store will give back."""
        sampled = [i for i, row in enumerate(rows) if row < FIDELITY_ROWS]
        if not sampled:
            return
        coding = self.store.manifest.coding
        stored = coding.dequantise(coding.quantise(sparse.to_answers()))
        errors = fidelity_errors(
            exact=DenseTargets(probs=exact.probs.cpu(), confidence=exact.confidence.cpu()),
            sparse=SparseTargets.from_answers(stored, sparse.slots),
            hierarchy=self.hierarchy,
        )
        keep = torch.tensor(sampled)
        self.errors.append(
            FidelityErrors(**{name: values[keep] for name, values in vars(errors).items()})
        )

    def to_json(self) -> dict[str, Any]:
        """For the commit record of block 0."""
        fidelity = fidelity_figures(self.errors) if self.errors else None
        return {"fidelity": fidelity, "replay": self.replay}


def certificate(store: LogitStore) -> dict[str, Any]:
    """What `LogitStore.finish` puts into the root attributes."""
    records = store.records()
    return dict(records[0]["audit"]) if 0 in records else {"fidelity": None, "replay": {}}
