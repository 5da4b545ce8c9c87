"""The protocol between a training run and its source of targets.

A store, a live server and a teacher in the process each say whose answers theirs are, which views
they are of and whether they need to see the images; the trainer knows nothing else of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from distill.data.order import SampleOrder
from distill.data.sample_ids import SampleIds
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.data.views import Size
from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.encoding import Answers
from distill.targets.tensors import TargetSource, View


@dataclass(frozen=True, kw_only=True)
class ReplayProofs:
    """Proofs of views that the teacher saw, to be drawn again by the student.

    where: whose they are, for messages. proofs: by row of the data set, one for each of `views`, at
    `size`. provenance: versions that drew them.
    """

    where: str
    proofs: Mapping[str, Sequence[str]]
    views: tuple[int, ...]
    size: Size
    provenance: Mapping[str, Any]


@runtime_checkable
class TrainingTargets(TargetSource, Protocol):
    """hierarchy: of the answers. identity: what a run that goes on must find again.

    answers: a softmax for each hierarchy, sigmoids, or one softmax over all classes.

    rows: images that are known; 0 where it answers for any. policy: of the views; None takes the
    student's. fidelity: as a store's certificate has it, where there is one. sizes: in which
    `fetch` wants the images; none where ids suffice. ahead: how many batches before its `fetch` to
    announce one.
    """

    location: str
    hierarchy: SemanticHierarchy
    answers: Answers
    identity: str
    rows: int
    policy: ViewPolicy | None
    fidelity: Mapping[str, Any] | None
    sizes: tuple[Size, ...]
    ahead: int

    @property
    def input_size(self) -> Size:
        """Height and width that the teacher sees, the student's by default."""
        ...

    def require_dataset(self, source: ImageSource, labels: NDArray[np.int64]) -> None:
        """Raises StoreMismatchError where the answers are of other images or labels [n]."""
        ...

    def replay_proofs(self) -> ReplayProofs | None:
        """None where the teacher sees the student's own pixels, or nobody kept any."""
        ...

    def view(self, epoch: int) -> int:
        """The view of that epoch, as `fetch` counts them."""
        ...

    def drawn_view(self, epoch: int) -> int:
        """The number by which the policy draws it."""
        ...

    def sample_order(self, rows: int, seed: int) -> SampleOrder:
        """The order in which answers come fast."""
        ...

    def announce(
        self,
        sample_ids: SampleIds,
        view: View,
        pixels: Sequence[UInt8[Tensor, "batch channels _ _"]] = (),
    ) -> None:
        """A `fetch` of these is coming: work may begin."""
        ...

    def prepare(self, epoch: int) -> None:
        """That epoch comes next: its view may be made ready."""
        ...
