"""What a model's logits mean, which its training decides; everybody reads them through this."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import class_log_probs, subtree_probs
from distill.targets.protocol import TrainingTargets
from distill.trainers.recipe import Scheme


def is_taught(targets: TrainingTargets | None, kd_weight: float | str) -> bool:
    """Whether a student of these answers learns of every hierarchy, and not of its labels alone.

    Raw answers say what labels say: of one softmax, classes above the labels hardly occur.
    """
    return targets is not None and kd_weight != 0 and targets.answers == "softmax"


@dataclass(frozen=True)
class LogitsMeaning:
    """What the logits of a model mean.

    taught: it learned from answers of a teacher, which have a share for every hierarchy. Without, a
    softmax has learned nothing of classes above the labels, and says it by those below.
    """

    scheme: Scheme
    taught: bool = False

    def __str__(self) -> str:
        """In words."""
        return f"logits read as {self.scheme}{', taught by a teacher' if self.taught else ''}"

    def scores(
        self, logits: Float[Tensor, "batch classes"], hierarchy: SemanticHierarchy
    ) -> Float[Tensor, "batch classes"]:
        """One score a class that can be compared with those of all others.

        A semantic model's walk down the tree (`class_log_probs`), else the logits.
        """
        return class_log_probs(logits, hierarchy) if self.scheme == "semantic" else logits

    def scores_within(
        self, logits: Float[Tensor, "batch classes"], hierarchy: SemanticHierarchy
    ) -> Float[Tensor, "batch classes"]:
        """Scores that can be compared within a hierarchy: logits, or `subtree_probs` of one
        softmax.
        """
        untaught = self.scheme == "single-label" and not self.taught
        return subtree_probs(logits, hierarchy) if untaught else logits

    def probs(
        self, logits: Float[Tensor, "batch classes"], hierarchy: SemanticHierarchy
    ) -> Float[Tensor, "batch classes"]:
        """Probabilities that a class is there, itself or by one below it.

        Of a semantic model's walk down the tree, of one softmax, of each sigmoid.
        """
        if self.scheme == "semantic":
            return class_log_probs(logits, hierarchy).exp()
        if self.scheme == "multi-label":
            return logits.float().sigmoid()
        return logits.float().softmax(1) if self.taught else subtree_probs(logits, hierarchy)
