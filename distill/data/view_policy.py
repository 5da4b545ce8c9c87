"""View policies: the numbers that say how views are drawn. Imports no torch; `views` draws them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distill.errors import ConfigError

POLICIES = ("plain", "augmented")
MOST_FRAMES = 256


@dataclass(frozen=True, kw_only=True)
class ViewPolicy:
    """How views are drawn. `plain` is the squish-resize alone; `augmented` adds the paper's.

    seed: of the counter-based generator.
    randaugment_ops: transforms drawn a view (RandAugment's N).
    randaugment_magnitude: their strength, 0 to 10 (RandAugment's M).
    cutout: side of the grey square, as a share of the image's side.
    crop_scale: smallest share of the image's area that a view shows, of an aspect ratio of 3/4 to
    4/3 beside the image's own (random resized crops); 1 shows all of it, as the paper does.
    frames: of each clip, one from each of so many equal parts of it, `augmented` anywhere in its
    part and `plain` from the middle; all get the same transforms. 0 is for images.
    """

    name: str = "augmented"
    seed: int = 0
    randaugment_ops: int = 2
    randaugment_magnitude: float = 9.0
    cutout: float = 0.5
    crop_scale: float = 1.0
    frames: int = 0

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise ConfigError(f"view policy {self.name!r} found, expected {' or '.join(POLICIES)}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"view seed {self.seed} found, expected 0 to 2^64 - 1")
        if not 0 <= self.randaugment_magnitude <= 10:
            raise ConfigError(
                f"RandAugment magnitude {self.randaugment_magnitude} found, expected 0 to 10"
            )
        if not 0 <= self.randaugment_ops <= 16:
            raise ConfigError(f"RandAugment ops {self.randaugment_ops} found, expected 0 to 16")
        if not 0 <= self.cutout <= 1:
            raise ConfigError(f"cutout {self.cutout} found, expected 0 to 1")
        if not 0 < self.crop_scale <= 1:
            raise ConfigError(f"crop_scale {self.crop_scale} found, expected above 0 to 1")
        if type(self.frames) is not int or not 0 <= self.frames <= MOST_FRAMES:
            raise ConfigError(f"frames {self.frames} found, expected 0 to {MOST_FRAMES}")
        settings = ("randaugment_ops", "randaugment_magnitude", "cutout", "crop_scale")
        changed = [name for name in settings if getattr(self, name) != getattr(ViewPolicy, name)]
        if self.name == "plain" and changed:
            raise ConfigError(
                "view policy plain found with settings of RandAugment, Cutout or crops, expected "
                "none; "
                "choose the policy augmented"
            )

    def to_json(self) -> dict[str, Any]:
        """Return a document for a manifest; without crops and frames as before there were any."""
        document = asdict(self)
        if not self.frames:
            del document["frames"]
        if self.crop_scale == 1:
            del document["crop_scale"]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ViewPolicy":
        """From a manifest.

        Raises:
            ConfigError: it is not a policy that this version draws.
        """
        try:
            return cls(
                name=str(document["name"]),
                seed=int(document["seed"]),
                randaugment_ops=int(document["randaugment_ops"]),
                randaugment_magnitude=float(document["randaugment_magnitude"]),
                cutout=float(document["cutout"]),
                crop_scale=float(document.get("crop_scale", 1.0)),
                frames=int(document.get("frames", 0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"view policy {dict(document)} found, expected what `distill precompute` writes; "
                "use the distill version that wrote it"
            ) from error


PLAIN = ViewPolicy(name="plain")


@dataclass(frozen=True, kw_only=True)
class CentreCrop(ViewPolicy):
    """Plain views as timm judges its own weights: the shorter side resized, the centre cut out.

    share: of the resized image that remains (crop_pct). interpolation: bilinear or bicubic. Only
    for judging; stores hold squished views.
    """

    name: str = "plain"
    share: float = 0.875
    interpolation: str = "bicubic"
