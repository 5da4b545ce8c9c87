"""The audit of a block: how faithful the encoding is, and proofs of the views that were drawn.

The first rows of a block are a fair sample of it, because rows stand in hashed order. What is
measured on them is kept in the block's commit record, so it survives a kill as the block does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.data.loader import ViewBatch, in_batches, load_views
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.losses.fidelity import gradient_angles, others_of, precision_angle
from distill.store.format.audit import PRECISION, AuditedViews, audited_rows
from distill.store.format.codes import Codes
from distill.store.logit_store import LogitStore
from distill.targets.tensors import DenseTargets, SparseTargets
from distill.teacher_server.teacher.teacher import Teacher

REPLAY_ROWS = 32  # the first rows of a store, whose views are proved
ROWS_A_BATCH = 16


class Audit:
    """Collects measurements while a block is computed."""

    def __init__(self, store: LogitStore, teacher: Teacher) -> None:
        self.store, self.teacher = store, teacher
        self.views: list[AuditedViews] = []
        self.replay: dict[str, list[str]] = {}

    def add_proofs(self, batch: ViewBatch) -> None:
        """Keep the replay proofs of a batch."""
        self.replay |= {str(row): proofs for row, proofs in batch.proofs.items()}

    def add_answers(
        self,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        *,
        exact: DenseTargets,
        reference: DenseTargets | None,
        codes: Codes,
    ) -> None:
        """Compare what the teacher said with what the store will give back, on its device.

        reference: what it says in float32, where it computes in less.
        """
        manifest, device = self.store.manifest, exact.probs.device
        stored = manifest.coding.dequantise(codes)
        labels = torch.from_numpy(self.store.labels[rows]).to(device)
        hierarchy = self.teacher.hierarchy
        angles = gradient_angles(
            exact=exact,
            sparse=SparseTargets.from_rows(stored, manifest.slots, manifest.answers).to(device),
            others=others_of(rows.tolist(), exact.probs),
            labels=labels,
            hierarchy=hierarchy,
        )
        if reference:
            angles[PRECISION] = precision_angle(
                exact=exact, reference=reference, labels=labels, hierarchy=hierarchy
            )
        of_each = {name: values.cpu().numpy() for name, values in angles.items()}
        self.views.append(AuditedViews(row=rows, view=views, angles=of_each))

    def to_json(self) -> dict[str, Any]:
        """What the block's commit record holds of it."""
        audit = {"audit": AuditedViews.together(self.views).to_json()} if self.views else {}
        return {**audit, **({"replay": self.replay} if self.replay else {})}


def audit_stored(
    store: LogitStore, source: ImageSource, teacher: Teacher, block: int, views: Sequence[Codes]
) -> dict[str, Any]:
    """The audit of a block whose answers are at hand: the teacher answers its first rows again."""
    manifest, rows = store.manifest, store.manifest.rows_of_block(block)
    first = range(rows.start, rows.start + audited_rows(len(rows), manifest.num_blocks))
    drawn = manifest.views.drawn
    policy = ViewPolicy.from_json(manifest.views.policy)
    audit = Audit(store, teacher)
    requests = in_batches(first, drawn, ROWS_A_BATCH, prove_below=REPLAY_ROWS)
    for batch in load_views(source, policy, teacher.sizes, requests, workers=0):
        audit.add_proofs(batch)
        for view in range(len(drawn)):
            pixels = [each[:, view] for each in batch.pixels]
            here = np.array(batch.rows, np.int64)
            stored = views[view].select(here - rows.start)
            answered = torch.from_numpy(stored.valid)
            if not stored.valid.any():
                continue
            exact, reference = teacher.targets(pixels), teacher.reference(pixels)
            seen = np.flatnonzero(stored.valid)
            audit.add_answers(
                here[seen],
                np.full(len(seen), view),
                exact=exact.select(answered.to(exact.probs.device)),
                reference=reference and reference.select(answered.to(exact.probs.device)),
                codes=Codes(**vars(stored.select(seen))),
            )
    return audit.to_json()
