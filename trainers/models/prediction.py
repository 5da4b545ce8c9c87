"""Predictions of a trained student for one image, shown beside its teacher's."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from distill.data.views import ViewParams, render_view
from distill.errors import ConfigError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import hierarchy_probs, subtree_probs
from distill.models.devices import pick_device
from distill.trainers.models.trained import TrainedModel, open_trained


class StudentOpinion:
    """trained: with the classes of `hierarchy`. A single-label student that no teacher taught is
    read by what is below a class, a multi-label one by its sigmoids.
    """

    def __init__(self, trained: TrainedModel, device: torch.device) -> None:
        if trained.hierarchy is None:
            raise ValueError("its classes have no names")
        self.name, self.trained, self.device = trained.name, trained, device
        self.hierarchy = trained.hierarchy
        self.trained.model.to(device)

    @classmethod
    def of(cls, where: str, hierarchy: SemanticHierarchy, device: str) -> "StudentOpinion":
        """A folder of a run, or a weight file with its card.

        Raises:
            ConfigError: it is no trained model, or has other classes.
        """
        trained = open_trained(where)
        if trained.hierarchy and trained.hierarchy.digest != hierarchy.digest:
            raise ConfigError(
                f"{where}: trained on hierarchy {trained.hierarchy.digest[:12]}, expected the "
                f"teacher's, {hierarchy.digest[:12]}; pass a student of these classes"
            )
        return cls(trained.with_hierarchy(hierarchy), pick_device(device))

    @torch.inference_mode()
    def probs(self, image: Image.Image) -> NDArray[np.float32]:
        """[ΣN_k] in hierarchy order. The image is squished to the student's size."""
        pixels = render_view(image, ViewParams(), self.trained.input.size)[None].to(self.device)
        logits = self.trained.model(self.trained.input.normalise(pixels)).float()
        probs: NDArray[np.float32] = self._read(logits)[0].cpu().numpy()
        return probs

    def _read(self, logits: Float[torch.Tensor, "1 classes"]) -> Float[torch.Tensor, "1 members"]:
        if self.trained.scheme == "multi-label":
            scores = logits.sigmoid()
        elif self.trained.scheme == "single-label" and not self.trained.taught:
            scores = subtree_probs(logits, self.hierarchy)
        else:
            return hierarchy_probs(logits, self.hierarchy)
        return scores[:, self.hierarchy.tensors(logits.device).class_order]
