"""Knowledge distillation from a store of a teacher's answers.

What is listed here is public, and stays: `distill.open` gives a training loop its targets,
docs/your-own-loop.md shows one. `import distill` costs nothing; torch is imported with the first
name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.api.criterion import Criterion, Loss
    from distill.api.dataset import TargetDataset, TargetSampler
    from distill.api.opening import open_targets as open
    from distill.api.targets import Targets
    from distill.data.source import ImageSource, label_indices, open_source
    from distill.data.view_policy import ViewPolicy
    from distill.errors import DistillError
    from distill.hierarchy.semantic import SemanticHierarchy
    from distill.losses.baselines import (
        multi_label_kd_loss,
        multi_label_loss,
        single_label_kd_loss,
        single_label_loss,
    )
    from distill.losses.semantic import semantic_kd_loss, semantic_softmax_loss
    from distill.store.logit_store import LogitStore
    from distill.targets.tensors import DenseTargets, SparseTargets

_MODULES = {
    "Criterion": "api.criterion",
    "DenseTargets": "targets.tensors",
    "DistillError": "errors",
    "ImageSource": "data.source",
    "LogitStore": "store.logit_store",
    "Loss": "api.criterion",
    "SemanticHierarchy": "hierarchy.semantic",
    "SparseTargets": "targets.tensors",
    "TargetDataset": "api.dataset",
    "TargetSampler": "api.dataset",
    "Targets": "api.targets",
    "ViewPolicy": "data.view_policy",
    "label_indices": "data.source",
    "multi_label_kd_loss": "losses.baselines",
    "multi_label_loss": "losses.baselines",
    "open": "api.opening",
    "open_source": "data.source",
    "semantic_kd_loss": "losses.semantic",
    "semantic_softmax_loss": "losses.semantic",
    "single_label_kd_loss": "losses.baselines",
    "single_label_loss": "losses.baselines",
}

__all__ = [  # noqa: RUF022 - what a newcomer needs comes first
    "open",
    "Targets",
    "TargetDataset",
    "TargetSampler",
    "Criterion",
    "Loss",
    "SparseTargets",
    "DenseTargets",
    "SemanticHierarchy",
    "ImageSource",
    "open_source",
    "label_indices",
    "ViewPolicy",
    "LogitStore",
    "semantic_softmax_loss",
    "semantic_kd_loss",
    "single_label_loss",
    "single_label_kd_loss",
    "multi_label_loss",
    "multi_label_kd_loss",
    "DistillError",
]


if TYPE_CHECKING:
    __version__: str
else:  # or a type checker would believe in every name

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return import_module("importlib.metadata").version(__name__)
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_MODULES[name]}")
        return getattr(module, "open_targets" if name == "open" else name)


def __dir__() -> list[str]:
    return sorted(__all__)
