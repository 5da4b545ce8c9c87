"""A teacher: one timm model or several, each with its input and its head, behind one answer.

Loading is in `distill.teacher_server.teacher.loading`, running it fast in
`distill.teacher_server.teacher.forward_pass`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from distill.data.views import Size
from distill.hierarchy.flat_heads import FlatHead, RawHead, TagHead
from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import Ranked, hierarchy_probs, ranked_probs, top_mass
from distill.models.card import ModelInput
from distill.models.frames import logits_of
from distill.store.format.manifest import TeacherIdentity
from distill.targets.encoding import Answers, EncodingSpec
from distill.targets.tensors import DenseTargets, SparseTargets, raw_targets, sparsify

Precision = Literal["float32", "bfloat16"]
Confidence = Literal["top", "reach"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One model. head: None where its logits are grouped by hierarchy already.

    about: what a user should know of it: weights, head, input.
    """

    name: str
    model: nn.Module
    input: ModelInput
    head: FlatHead | TagHead | RawHead | None
    precision: Precision
    fingerprint: str
    about: tuple[str, ...] = ()

    @property
    def answers(self) -> Answers:
        """What the head's probabilities are."""
        return self.head.answers if isinstance(self.head, RawHead) else "softmax"

    def logits(
        self, pixels: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch own"]:
        """float32 logits of the model's own classes, on the pixels' device; `logits_of` clips."""
        with self._autocast(pixels.device):
            return logits_of(self.model, self.input.normalise(pixels)).float()

    def probs_and_reach(
        self, logits: Float[Tensor, "batch own"], hierarchy: SemanticHierarchy
    ) -> tuple[Float[Tensor, "batch members"], Float[Tensor, "batch hierarchies"]]:
        """What the head says; reach is 1 where nothing tells more or less of it."""
        if isinstance(self.head, FlatHead | TagHead):
            return self.head.probs_and_reach(logits)
        reach = logits.new_ones(len(logits), hierarchy.num_hierarchies)
        return self.head.probs(logits) if self.head else hierarchy_probs(logits, hierarchy), reach

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.precision == "float32":
            return nullcontext()
        # Without its cache, which several threads would share: two of them can block each other for
        # good while a model is compiled. Each pass uses a weight once, so nothing is lost.
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """Ready to answer, in evaluation mode on its device."""

    members: tuple[Member, ...]
    hierarchy: SemanticHierarchy
    device: torch.device
    identity: TeacherIdentity

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The image sizes that the members need, each once; the first member's first."""
        return tuple(dict.fromkeys(member.input.size for member in self.members))

    @property
    def answers(self) -> Answers:
        """What its probabilities are; the same for all members."""
        return self.members[0].answers

    @torch.inference_mode()
    def logits(
        self, pixels: Sequence[UInt8[Tensor, "batch channels _ _"]]
    ) -> tuple[Float[Tensor, "batch _"], ...]:
        """Each member's own logits. pixels: on the device, one tensor for each of `sizes`."""
        of_size = dict(zip(self.sizes, pixels, strict=True))
        return tuple(member.logits(of_size[member.input.size]) for member in self.members)

    @torch.inference_mode()
    def answer(self, logits: Sequence[Float[Tensor, "batch _"]]) -> DenseTargets:
        """What those logits mean: probabilities averaged over the members, and confidence in them.

        Confidence is the sum of the top 5% (rule "top"), or the mass that reached each hierarchy
        (rule "reach"); of raw answers what `raw_targets` says. Rows for which a member's logits are
        not finite are NaN.
        """
        return self._answer(logits, None)[0]

    @torch.inference_mode()
    def encoded(
        self, logits: Sequence[Float[Tensor, "batch _"]], spec: EncodingSpec
    ) -> tuple[DenseTargets, SparseTargets]:
        """`answer`, and what `spec` keeps of it; probabilities are ranked once for both."""
        dense, ranked = self._answer(logits, spec)
        return dense, sparsify(dense, self.hierarchy, spec, ranked)

    def _answer(
        self, logits: Sequence[Float[Tensor, "batch _"]], spec: EncodingSpec | None
    ) -> tuple[DenseTargets, Ranked | None]:
        outputs = [
            member.probs_and_reach(own, self.hierarchy)
            for member, own in zip(self.members, logits, strict=True)
        ]
        probs, ranked = _mean([probs for probs, _ in outputs]), None
        finite = torch.stack([own.isfinite().all(1) for own in logits]).all(0)
        if self.answers != "softmax":
            targets = raw_targets(probs, self.hierarchy, self.answers)
        elif self.identity.confidence == "reach":
            targets = DenseTargets(probs=probs, confidence=_mean([reach for _, reach in outputs]))
        else:
            if spec:
                ranked = ranked_probs(probs, self.hierarchy, spec.entries)
            targets = DenseTargets(probs=probs, confidence=top_mass(probs, self.hierarchy, ranked))
        confidence = targets.confidence.masked_fill(~finite[:, None], float("nan"))
        return replace(targets, confidence=confidence), ranked

    def targets(self, pixels: Sequence[UInt8[Tensor, "batch channels _ _"]]) -> DenseTargets:
        """`answer` to `logits`, from pixels anywhere."""
        return self.answer(self.logits([each.to(self.device) for each in pixels]))

    def reference(
        self, pixels: Sequence[UInt8[Tensor, "batch channels _ _"]]
    ) -> DenseTargets | None:
        """`targets` in float32; None where those are."""
        if all(member.precision == "float32" for member in self.members):
            return None
        members = tuple(replace(member, precision="float32") for member in self.members)
        return replace(self, members=members).targets(pixels)

    def compiled(self) -> "Teacher":
        """The same teacher with compiled models: the first answer takes a minute."""
        members = tuple(replace(m, model=_compiled(m.model)) for m in self.members)
        return replace(self, members=members)


def _compiled(model: nn.Module) -> nn.Module:
    compiled: Any = torch.compile(model, dynamic=False)
    return compiled  # type: ignore[no-any-return]


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).mean(0)
