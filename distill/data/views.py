"""Views: augmented renderings that teacher and student draw alike, without storing a pixel.

A policy and a sample id give explicit parameters through a counter-based generator; torchvision's
functional transforms apply them. Lengths are relative to the image, so a student may train at
another resolution than the teacher saw.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from distill.data.images import squish
from distill.data.view_policy import CentreCrop, ViewPolicy

Pixels = UInt8[Tensor, "3 height width"]
Size = tuple[int, int]  # height, width


@dataclass(frozen=True, kw_only=True)
class ViewParams:
    """What is done to one view. crop: left, top, right, bottom; cutout: centre x, centre y, side.

    All relative to the image, None for none. frames: when those of a clip are shown, as shares of
    its time; none of an image.
    """

    crop: tuple[float, float, float, float] | None = None
    flip: bool = False
    operations: tuple[tuple[str, float], ...] = ()
    cutout: tuple[float, float, float] | None = None
    frames: tuple[float, ...] = ()


def draw_view(policy: ViewPolicy, sample_id: NDArray[np.uint64], view: int) -> ViewParams:
    """The parameters of one view; the same on every machine, in any order, in any process."""
    if policy.name == "plain":
        return ViewParams(frames=_parts(policy.frames, lambda: 0.5))
    uniform = _uniforms(policy.seed, sample_id, view)
    operations = []
    for _ in range(policy.randaugment_ops):
        name, strength = tuple(OPERATIONS.items())[int(uniform() * len(OPERATIONS))]
        sign = -1.0 if uniform() < 0.5 else 1.0
        operations.append((name, sign * strength * policy.randaugment_magnitude / 10))
    flip = uniform() < 0.5
    cutout = (uniform(), uniform(), policy.cutout) if policy.cutout else None
    crop = _crop(policy.crop_scale, uniform) if policy.crop_scale < 1 else None
    return ViewParams(
        crop=crop,
        flip=flip,
        operations=tuple(operations),
        cutout=cutout,
        frames=_parts(policy.frames, uniform),
    )


def _parts(frames: int, within: Callable[[], float]) -> tuple[float, ...]:
    """One moment of each of so many equal parts, as "Temporal Segment Networks" (Wang et al. 2016,
    arXiv 1608.00859) draw them.
    """
    return tuple((i + within()) / frames for i in range(frames))


def _crop(smallest: float, uniform: Callable[[], float]) -> tuple[float, float, float, float]:
    """As "Going deeper with convolutions" (Szegedy et al. 2014, arXiv 1409.4842) draws them.

    Relative to the image, so that its own aspect ratio is the middle one.
    """
    area = smallest + (1 - smallest) * uniform()
    ratio = MOST_RATIO ** (2 * uniform() - 1)
    width, height = min(1.0, (area * ratio) ** 0.5), min(1.0, (area / ratio) ** 0.5)
    left, top = uniform() * (1 - width), uniform() * (1 - height)
    return left, top, left + width, top + height


def resized(image: Image.Image, policy: ViewPolicy, size: Size) -> Image.Image:
    """What all views of an image are rendered of: itself where each crops it, else at `size`.

    Squished, or cropped where the policy is `CentreCrop`.
    """
    if policy.crop_scale < 1:
        return image
    if not isinstance(policy, CentreCrop):
        return squish(image, size)
    height, width = size
    factor = max(height / image.height, width / image.width) / policy.share
    large = (max(width, round(image.width * factor)), max(height, round(image.height * factor)))
    image = image.resize(large, Image.Resampling[policy.interpolation.upper()])
    cropped: Image.Image = tv.center_crop(image, [height, width])
    return cropped


def view_steps(
    image: Image.Image, params: ViewParams, size: Size
) -> Iterator[tuple[str, NDArray[np.uint8] | Image.Image]]:
    """A view as it comes about: each step's name and what it leaves, the last being the view."""
    yield "decode", image
    if params.crop:
        (left, top, right, bottom), (width, height) = params.crop, image.size
        box = (left * width, top * height, right * width, bottom * height)
        image = image.resize(size[::-1], Image.Resampling.BILINEAR, box=box)
        yield f"crop({left:.3f},{top:.3f},{right:.3f},{bottom:.3f})", image
    else:
        image = squish(image, size)
        yield "resize", image
    if params.flip:
        image = tv.hflip(image)
        yield "flip", image
    for name, amount in params.operations:
        image = APPLY[name](image, amount)
        yield f"{name}({amount:.3f})", image
    if params.cutout:
        x, y, side = params.cutout
        yield f"cutout({x:.3f},{y:.3f},{side:.3f})", _cut_out(np.array(image), x, y, side)


def render_view(image: Image.Image, params: ViewParams, size: Size) -> Pixels:
    """uint8 [3, height, width]: `render_pixels` as a tensor, channels first."""
    return torch.from_numpy(render_pixels(image, params, size)).permute(2, 0, 1).contiguous()


def render_pixels(image: Image.Image, params: ViewParams, size: Size) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: squished to `size` (height, width), then what `params` says."""
    *_, (_, view) = view_steps(image, params, size)
    return np.array(view, dtype=np.uint8)


def view_proof(image: Image.Image, params: ViewParams, size: Size) -> str:
    """The replay proof of a view: every step with a digest of the pixels that it leaves.

    "decode:9f86d081 resize:60303ae2 rotate(-27.000):fd61a03a", 32 bits of SHA-256 each.
    """
    return " ".join(
        f"{name}:{_digest(np.asarray(left))}" for name, left in view_steps(image, params, size)
    )


def _digest(pixels: NDArray[np.uint8]) -> str:
    content = repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()
    return hashlib.sha256(content).hexdigest()[:8]


def _uniforms(seed: int, sample_id: NDArray[np.uint64], view: int) -> Callable[[], float]:
    """Floats in [0, 1) from raw Philox words: NumPy keeps those the same in every release."""
    words = np.random.Philox(
        key=np.array([seed, 0], np.uint64),
        counter=np.array([0, view, sample_id[0], sample_id[1]], np.uint64),
    )
    return lambda: (int(words.random_raw()) >> 11) * 2.0**-53


def _affine(
    image: Image.Image,
    *,
    shear: tuple[float, float] = (0.0, 0.0),
    angle: float = 0.0,
) -> Image.Image:
    moved: Image.Image = tv.affine(
        image,
        angle=angle,
        translate=[0, 0],
        scale=1.0,
        shear=list(shear),
        interpolation=InterpolationMode.BILINEAR,
        fill=[GREY, GREY, GREY],
    )
    return moved


def _shifted(image: Image.Image, x: float, y: float) -> Image.Image:
    """By whole pixels: what `tv.affine` gives, at a twentieth of its price."""
    shifted = Image.new("RGB", image.size, (GREY, GREY, GREY))
    shifted.paste(image, (round(x * image.width), round(y * image.height)))
    return shifted


def _cut_out(pixels: NDArray[np.uint8], x: float, y: float, side: float) -> NDArray[np.uint8]:
    height, width, _ = pixels.shape
    top, bottom = round((y - side / 2) * height), round((y + side / 2) * height)
    left, right = round((x - side / 2) * width), round((x + side / 2) * width)
    pixels[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = GREY
    return pixels


GREY = 128
MOST_RATIO = 4 / 3

# RandAugment (Cubuk et al. 2019, arXiv 1909.13719): the strength of each operation at magnitude 10.
# Degrees for shears and rotation, shares of the side for shifts, relative change for enhancements.
OPERATIONS: dict[str, float] = {
    "identity": 0.0,
    "shear_x": 17.0,
    "shear_y": 17.0,
    "translate_x": 0.45,
    "translate_y": 0.45,
    "rotate": 30.0,
    "brightness": 0.9,
    "saturation": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
    "posterize": 4.0,
    "solarize": 1.0,
    "autocontrast": 0.0,
    "equalize": 0.0,
}

APPLY: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, amount: image,
    "shear_x": lambda image, amount: _affine(image, shear=(amount, 0.0)),
    "shear_y": lambda image, amount: _affine(image, shear=(0.0, amount)),
    "translate_x": lambda image, amount: _shifted(image, amount, 0.0),
    "translate_y": lambda image, amount: _shifted(image, 0.0, amount),
    "rotate": lambda image, amount: _affine(image, angle=amount),
    "brightness": lambda image, amount: tv.adjust_brightness(image, 1 + amount),
    "saturation": lambda image, amount: tv.adjust_saturation(image, 1 + amount),
    "contrast": lambda image, amount: tv.adjust_contrast(image, 1 + amount),
    "sharpness": lambda image, amount: tv.adjust_sharpness(image, 1 + amount),
    "posterize": lambda image, amount: tv.posterize(image, 8 - round(abs(amount))),
    "solarize": lambda image, amount: tv.solarize(image, round(255 * (1 - abs(amount)))),
    "autocontrast": lambda image, amount: tv.autocontrast(image),
    "equalize": lambda image, amount: tv.equalize(image),
}
