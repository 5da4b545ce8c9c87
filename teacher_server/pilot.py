"""The teacher on a few images, to see what it says of them and how long that takes."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distill.answers import Answers
from distill.data import ImageSource
from distill.encoding import EncodingSpec
from distill.errors import TeacherError
from distill.fidelity import FidelityErrors, fidelity_errors
from distill.loader import ViewBatch, ViewRequest, load_views
from distill.progress import progress
from distill.targets import DenseTargets, SparseTargets, sparsify
from distill.views import ViewPolicy
from teacher_server.audit import FIDELITY_ROWS, REPLAY_ROWS
from teacher_server.forward import Forward
from teacher_server.pipeline import answered
from teacher_server.teacher import Teacher
from teacher_server.tuning import Speed


@dataclass(frozen=True, eq=False)
class Pilot:
    """What the teacher said. answers, errors: by encoding; answers: of each view."""

    answers: dict[str, list[Answers]]
    errors: dict[str, list[FidelityErrors]]
    replay: dict[str, list[str]]
    unreadable: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PilotRuns:
    """Runs a teacher over small sources as a precompute would."""

    teacher: Teacher
    policy: ViewPolicy
    speed: Speed
    workers: int

    def seconds(self, source: ImageSource, *, views: int, spec: EncodingSpec) -> float:
        """What a precompute of that many views takes, without writing."""
        with self._forward(spec) as forward, progress("timing", len(source), "images") as tick:
            started = time.monotonic()
            batches = self._batches(source, views, prove=False)
            for batch, _ in answered(forward, batches, keep_exact=lambda batch: False):
                tick(len(batch.rows) + len(batch.bad))
            return time.monotonic() - started

    def answers(
        self, source: ImageSource, *, views: int, specs: Mapping[str, EncodingSpec]
    ) -> Pilot:
        """What the teacher says, in every encoding.

        Raises:
            TeacherError: it says NaN or Inf.
        """
        hierarchy = self.teacher.hierarchy
        pilot = Pilot(
            answers={
                name: [
                    Answers.empty(len(source), sum(spec.entries), hierarchy.num_hierarchies)
                    for _ in range(views)
                ]
                for name, spec in specs.items()
            },
            errors={name: [] for name in specs},
            replay={},
            unreadable=0,
        )
        unreadable, first_spec = 0, next(iter(specs.values()))
        with self._forward(first_spec) as forward, progress("pilot", len(source), "images") as tick:
            batches = self._batches(source, views, prove=True)
            for batch, parts in answered(forward, batches, keep_exact=lambda batch: True):
                unreadable += len(batch.bad)
                pilot.replay.update({str(row): proofs for row, proofs in batch.proofs.items()})
                rows = np.repeat(np.array(batch.rows, np.int64), views)
                drawn = np.tile(np.arange(views), len(batch.rows))
                first = 0
                for part in parts:
                    assert part.exact
                    here = slice(first, first + len(part.exact.probs))
                    self._keep(pilot, specs, part.exact, rows[here], drawn[here])
                    first = here.stop
                tick(len(batch.rows) + len(batch.bad))
        return Pilot(pilot.answers, pilot.errors, pilot.replay, unreadable)

    def _keep(
        self,
        pilot: Pilot,
        specs: Mapping[str, EncodingSpec],
        exact: DenseTargets,
        rows: NDArray[np.int64],
        drawn: NDArray[np.int64],
    ) -> None:
        if not bool(exact.confidence.isfinite().all()):
            raise TeacherError(
                f"teacher {self.teacher.identity.name}: NaN or Inf in the pilot, expected finite "
                "logits; check the weights, or try --precision float32"
            )
        for name, spec in specs.items():
            sparse = sparsify(exact, self.teacher.hierarchy, spec)
            said = sparse.to_answers()
            for view, kept in enumerate(pilot.answers[name]):
                of_view = np.flatnonzero(drawn == view)
                kept.put(rows[of_view], said.taken(of_view))
            audited = torch.from_numpy(np.flatnonzero(rows < FIDELITY_ROWS))
            if len(audited):
                pilot.errors[name].append(self._errors(exact, sparse, audited))

    def _errors(
        self, exact: DenseTargets, sparse: SparseTargets, rows: torch.Tensor
    ) -> FidelityErrors:
        at = rows.to(exact.probs.device)
        errors = fidelity_errors(
            exact=DenseTargets(probs=exact.probs[at], confidence=exact.confidence[at]),
            sparse=SparseTargets(
                index=sparse.index[at],
                prob=sparse.prob[at],
                confidence=sparse.confidence[at],
                sq_norm=sparse.sq_norm[at],
                slots=sparse.slots,
            ),
            hierarchy=self.teacher.hierarchy,
        )
        return FidelityErrors(**{name: values.cpu() for name, values in vars(errors).items()})

    def _forward(self, spec: EncodingSpec) -> Forward:
        return Forward(
            self.teacher, spec, batch_size=self.speed.batch_size, compiled=self.speed.compiled
        )

    def _batches(self, source: ImageSource, views: int, *, prove: bool) -> Iterator[ViewBatch]:
        images = max(1, self.speed.batch_size // views)
        drawn = tuple(range(views))
        requests = [
            [
                ViewRequest(row, drawn, prove=prove and row < REPLAY_ROWS)
                for row in range(first, min(first + images, len(source)))
            ]
            for first in range(0, len(source), images)
        ]
        return load_views(
            source,
            self.policy,
            self.teacher.sizes,
            requests,
            workers=self.workers,
            pin_memory=self.teacher.device.type == "cuda",
        )
