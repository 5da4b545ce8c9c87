"""A teacher in the student's own process: it sees the very pixels that the student sees.

Costs a forward pass of the teacher in every step, which a store saves. Good for a short trial, for
views without end, and to see what a store leaves out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from distill.data.order import SampleOrder
from distill.data.sample_ids import SampleIds
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.data.views import Size
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.format.manifest import TeacherIdentity
from distill.targets.encoding import Answers
from distill.targets.protocol import ReplayProofs
from distill.targets.tensors import DenseTargets, View


@runtime_checkable
class DenseTeacher(Protocol):
    """What a teacher must offer; `distill.teacher_server.teacher.teacher.Teacher` does."""

    @property
    def identity(self) -> TeacherIdentity: ...

    @property
    def hierarchy(self) -> SemanticHierarchy: ...

    @property
    def answers(self) -> Answers: ...

    @property
    def sizes(self) -> tuple[Size, ...]: ...

    @property
    def device(self) -> torch.device: ...

    def logits(
        self, pixels: Sequence[UInt8[Tensor, "batch channels _ _"]]
    ) -> tuple[Float[Tensor, "batch _"], ...]:
        """Those of each of its models. pixels: in each of `sizes`."""
        ...

    def answer(self, logits: Sequence[Float[Tensor, "batch _"]]) -> DenseTargets:
        """Probabilities and confidence."""
        ...


class InProcessTargets:
    """Exact answers of `teacher`, on its device."""

    def __init__(self, teacher: DenseTeacher) -> None:
        self.teacher, self.answers = teacher, teacher.answers
        self.location = f"timm:{teacher.identity.name}"
        self.hierarchy = teacher.hierarchy
        self.identity = teacher.identity.fingerprint
        self.rows = 0
        self.fidelity: Mapping[str, Any] | None = None
        self.policy: ViewPolicy | None = None
        self.sizes: tuple[Size, ...] = teacher.sizes
        self.ahead = 0

    @property
    def input_size(self) -> Size:
        """Height and width that the teacher sees."""
        return self.teacher.sizes[0]

    def require_dataset(self, source: ImageSource, labels: NDArray[np.int64]) -> None:
        """It answers for any image."""

    def replay_proofs(self) -> ReplayProofs | None:
        """There is nothing to replay."""
        return None

    def view(self, epoch: int) -> int:
        """Every epoch has its own."""
        return epoch

    def drawn_view(self, epoch: int) -> int:
        """See `view`."""
        return epoch

    def sample_order(self, rows: int, seed: int) -> SampleOrder:
        """Any order is as fast."""
        return SampleOrder(rows, seed)

    def announce(
        self,
        sample_ids: SampleIds,
        view: View,
        pixels: Sequence[UInt8[Tensor, "batch channels _ _"]] = (),
    ) -> None:
        """The device has the student to compute."""

    def fetch(
        self,
        sample_ids: SampleIds,
        view: View,
        pixels: Sequence[UInt8[Tensor, "batch channels _ _"]] = (),
    ) -> DenseTargets:
        """See `distill.targets.tensors.TargetSource`.

        Where the teacher's logits are not finite, so are the targets: the loss shows it.
        """
        on_device = [each.to(self.teacher.device, non_blocking=True) for each in pixels]
        dense = self.teacher.answer(self.teacher.logits(on_device))
        # Copies outside of inference mode, so that gradients may flow past them.
        return replace(dense, probs=dense.probs.clone(), confidence=dense.confidence.clone())

    def prepare(self, epoch: int) -> None:
        """The next epoch needs nothing."""

    def close(self) -> None:
        """Nothing is held."""
