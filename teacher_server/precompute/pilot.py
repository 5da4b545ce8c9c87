"""Run the teacher on a few images to measure its time and its predictions."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distill.data.loader import ViewBatch, in_batches, load_views
from distill.data.source import ImageSource, label_indices
from distill.data.view_policy import ViewPolicy
from distill.errors import TeacherError
from distill.losses.fidelity import gradient_angles, others_of
from distill.progress import progress
from distill.store.format.audit import LEAST_ROWS, AuditedViews
from distill.targets.encoding import EncodingSpec
from distill.targets.rows import TargetRows
from distill.targets.tensors import DenseTargets, sparsify
from distill.teacher_server.precompute.audit import REPLAY_ROWS
from distill.teacher_server.precompute.block import located, put_by_view
from distill.teacher_server.precompute.pipeline import run_forward
from distill.teacher_server.teacher.batch_size import Throughput, images_together
from distill.teacher_server.teacher.forward_pass import Forward
from distill.teacher_server.teacher.teacher import Teacher


@dataclass(eq=False)
class Pilot:
    """What the teacher said. answers, audit: by encoding; answers: of each view."""

    answers: dict[str, list[TargetRows]]
    audit: dict[str, list[AuditedViews]]
    replay: dict[str, list[str]]
    unreadable: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class PilotRuns:
    """Runs a teacher over small sources as a precompute would."""

    teacher: Teacher
    policy: ViewPolicy
    speed: Throughput
    workers: int

    def seconds(self, source: ImageSource, *, views: int, spec: EncodingSpec) -> float:
        """What a precompute of that many views takes, without writing."""
        with self._forward(spec) as forward, progress("timing", len(source), "images") as tick:
            started = time.monotonic()
            batches = self._batches(source, views, prove=False)
            for batch, _ in run_forward(forward, batches, exact=lambda batch: 0):
                tick(len(batch.rows) + len(batch.bad))
            return time.monotonic() - started

    def decoding(self, source: ImageSource, *, views: int) -> float:
        """Seconds of one core for reading, decoding and drawing that many views of each image."""
        requests = in_batches(range(len(source)), tuple(range(views)), 16)
        begun = time.process_time()
        for _ in load_views(source, self.policy, self.teacher.sizes, requests, workers=0):
            pass
        return time.process_time() - begun

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
                    TargetRows.empty(len(source), sum(spec.entries), hierarchy.num_hierarchies)
                    for _ in range(views)
                ]
                for name, spec in specs.items()
            },
            audit={name: [] for name in specs},
            replay={},
        )
        first_spec = next(iter(specs.values()))
        labels = label_indices(source, hierarchy)
        with self._forward(first_spec) as forward, progress("pilot", len(source), "images") as tick:
            batches = self._batches(source, views, prove=True)
            every = lambda batch: views * len(batch.rows)  # noqa: E731
            for batch, parts in run_forward(forward, batches, exact=every):
                pilot.unreadable += len(batch.bad)
                pilot.replay |= {str(row): proofs for row, proofs in batch.proofs.items()}
                for part, rows, drawn in located(batch, parts, views):
                    assert part.exact
                    self._keep(pilot, specs, part.exact, rows, drawn, labels)
                tick(len(batch.rows) + len(batch.bad))
        return pilot

    def _keep(
        self,
        pilot: Pilot,
        specs: Mapping[str, EncodingSpec],
        exact: DenseTargets,
        rows: NDArray[np.int64],
        drawn: NDArray[np.int64],
        labels: NDArray[np.int64],
    ) -> None:
        if not bool(exact.confidence.isfinite().all()):
            raise TeacherError(
                f"teacher {self.teacher.identity.name}: NaN or Inf in the pilot, expected finite "
                "logits; check the weights, or try --precision float32"
            )
        here = np.flatnonzero(rows < LEAST_ROWS)
        audited = torch.from_numpy(here).to(exact.probs.device)
        for name, spec in specs.items():
            sparse = sparsify(exact, self.teacher.hierarchy, spec)
            put_by_view(pilot.answers[name], sparse.to_rows(), rows, drawn)
            if len(audited):
                angles = gradient_angles(
                    exact=exact.select(audited),
                    sparse=sparse.select(audited),
                    others=others_of(rows[here].tolist(), exact.probs[audited]),
                    labels=torch.from_numpy(labels[rows[here]]).to(exact.probs.device),
                    hierarchy=self.teacher.hierarchy,
                )
                of_each = {name: values.cpu().numpy() for name, values in angles.items()}
                views = AuditedViews(row=rows[here], view=drawn[here], angles=of_each)
                pilot.audit[name].append(views)

    def _forward(self, spec: EncodingSpec) -> Forward:
        return Forward(
            self.teacher,
            spec,
            batch_size=self.speed.batch_size,
            threads=self.speed.threads,
            compiled=self.speed.compiled,
        )

    def _batches(self, source: ImageSource, views: int, *, prove: bool) -> Iterator[ViewBatch]:
        images = images_together(self.speed.batch_size, views)
        requests = in_batches(
            range(len(source)),
            tuple(range(views)),
            images,
            prove_below=REPLAY_ROWS if prove else 0,
        )
        return load_views(
            source,
            self.policy,
            self.teacher.sizes,
            requests,
            workers=self.workers,
            pin_memory=self.teacher.device.type == "cuda",
        )
