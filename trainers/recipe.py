"""The recipe of a student: every number that training depends on, in one frozen object."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from distill.data.view_policy import ViewPolicy
from distill.errors import ConfigError
from distill.losses.names import Divergence, HierarchyWeights, MultiLabelLoss

Scheme = Literal["single-label", "multi-label", "semantic"]
Schedule = Literal["cosine", "tanh", "poly", "step", "constant"]

CHOICES: dict[str, tuple[str, ...]] = {
    "scheme": get_args(Scheme),
    "multi_label_loss": get_args(MultiLabelLoss),
    "hierarchy_weights": get_args(HierarchyWeights),
    "divergence": get_args(Divergence),
    "schedule": get_args(Schedule),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults are those of Ridnik et al. 2021 (arXiv 2104.10972), appendix B, but for batch_size,
    hierarchy_weights and divergence (docs/decisions.md, 83 and 86).

    student: timm model name. image_size: pixels a side.
    scheme: what labels train. multi_label_loss: asymmetric, binary cross-entropy or focal.
    hierarchy_weights: W_k of semantic softmax: all 1 (even); eq. 4 (paper), which favours deep
    hierarchies; or its square roots (sqrt).
    kd_weight: of the KD term, which the paper does not tell; "auto" is one at which the teacher
    pulls at a new student as hard as `distill.trainers.training.balance` says.
    divergence: the distance to the teacher, in nats (kl), squared (mse, the paper's), or by how
    both rank classes and images (dist, of semantic students).
    batch_size: images a step, on all devices together. accumulate: parts of a device's share of it
    that are computed one after the other. drop_last: leave what fills no batch out of each epoch.
    optimizer: as timm names it; adamw is Adam with decoupled weight decay. optimizer_args: more of
    its arguments, as momentum. layer_decay: factor of the learning rate from each layer to the one
    below it. clip_grad: largest norm of the gradient; 0 clips none.
    lr: top of the schedule; cosine is the paper's one-cycle. min_lr: at its end. warmup: share of
    all steps. weight_decay: not on norms and biases.
    model: more arguments of timm's create_model, as drop_path_rate.
    init: "pretrained" (timm's hub), "random", a weight file or a run's folder.
    normalisation: "none" scales pixels to [0, 1]; "model" takes timm's mean and std of the model.
    ema_decay: of averaged weights, which are then judged and exported; 0 averages none. ema_warmup:
    begin with a smaller one, as timm does. sync_bn: batch norms see the images of all devices.
    precision: auto is bfloat16 on a GPU and float32 elsewhere.
    mixup, cutmix: α of both; images are mixed in pairs after their views are drawn.
    views: how images are augmented; targets that have views bring theirs along.
    """

    student: str
    image_size: int = 224
    scheme: Scheme = "semantic"
    multi_label_loss: MultiLabelLoss = "asl"
    hierarchy_weights: HierarchyWeights = "even"
    kd_weight: float | Literal["auto"] = "auto"
    divergence: Divergence = "kl"
    epochs: int = 80
    batch_size: int = 128
    accumulate: int = 1
    drop_last: bool = True
    optimizer: str = "adamw"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    layer_decay: float = 1.0
    clip_grad: float = 0.0
    schedule: Schedule = "cosine"
    lr: float = 3e-4
    min_lr: float = 0.0
    warmup: float = 0.1
    weight_decay: float = 1e-4
    label_smoothing: float = 0.2
    mixup: float = 0.0
    cutmix: float = 0.0
    init: str = "pretrained"
    normalisation: Literal["none", "model"] = "none"
    ema_decay: float = 0.0
    ema_warmup: bool = False
    sync_bn: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    views: ViewPolicy = field(default_factory=ViewPolicy)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} {getattr(self, name)!r} found, expected {', '.join(choices)}"
                )
        if self.divergence == "dist" and self.scheme != "semantic":
            raise ConfigError(
                f"divergence dist found with scheme {self.scheme}, expected mse or kl; only the "
                "softmaxes of semantic students learn by it"
            )
        for name in ("epochs", "batch_size", "accumulate", "lr", "image_size"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} {getattr(self, name)} found, expected more than 0")
        for name in ("label_smoothing", "warmup", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} found, expected a share below 1")
        numbers = ("weight_decay", "clip_grad", "min_lr", "mixup", "cutmix")
        for name in numbers if self.kd_weight == "auto" else ("kd_weight", *numbers):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} {getattr(self, name)} found, expected 0 or more")
        if self.ema_warmup and not self.ema_decay:
            raise ConfigError("ema_warmup found without ema_decay, expected both; pass ema_decay")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay {self.layer_decay} found, expected above 0 to 1")
        if self.min_lr > self.lr:
            raise ConfigError(f"min_lr {self.min_lr} found, expected at most lr {self.lr}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed {self.seed} found, expected 0 to 2^64 - 1")

    def to_json(self) -> dict[str, Any]:
        """Return a document for checkpoints."""
        return asdict(self)
