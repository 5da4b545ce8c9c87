"""Some views of a sample, read, decoded, drawn and rendered: of an image, or of a clip's frames."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distill.data.clips import read_clip
from distill.data.formats.samples import Sample
from distill.data.images import decode_image, read_all, read_image
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.data.views import Size, ViewParams, draw_view, resized, view_proof, view_steps


@dataclass(frozen=True, eq=False)
class DrawnViews:
    """What each view shows, and how. pictures: the frames of each; of an image, itself."""

    policy: ViewPolicy
    params: list[ViewParams]
    pictures: list[list[Image.Image]]

    def pixels(self, size: Size) -> UInt8[Tensor, "views channels height width"]:
        """3 channels, last in memory; of a clip those of its frames, one after another."""
        rendered = np.empty((len(self.params), *size, 3 * len(self.pictures[0])), np.uint8)
        self.render_into(rendered)
        return torch.from_numpy(rendered).permute(0, 3, 1, 2)

    def render_into(self, out: NDArray[np.uint8]) -> None:
        """out: [views, height, width, channels], to be filled with `pixels` of that size."""
        size = out.shape[1], out.shape[2]
        small: dict[int, Image.Image] = {}  # each picture once, in however many views it is

        def at_size(picture: Image.Image) -> Image.Image:
            if id(picture) not in small:
                small[id(picture)] = resized(picture, self.policy, size)
            return small[id(picture)]

        for view, params, pictures in zip(out, self.params, self.pictures, strict=True):
            for i, picture in enumerate(pictures):
                *_, (_, shown) = view_steps(at_size(picture), params, size)
                view[..., 3 * i : 3 * i + 3] = np.asarray(shown)

    def pixels_at(self, sizes: Sequence[Size]) -> list[Tensor]:
        """As `pixels`, for each size; equal ones are rendered once, and share their memory."""
        rendered = {size: self.pixels(size) for size in dict.fromkeys(sizes)}
        return [rendered[size] for size in sizes]

    def proofs(self, size: Size) -> list[str]:
        """The replay proof of each view, frame after frame."""
        return [
            " ".join(view_proof(picture, params, size) for picture in pictures)
            for params, pictures in zip(self.params, self.pictures, strict=True)
        ]


def read_views(
    source: ImageSource, policy: ViewPolicy, wanted: Sequence[tuple[int, Sequence[int]]]
) -> list[Callable[[], DrawnViews]]:
    """A call for each row and views of it, that gives or raises what was decoded for them.

    Buckets are read concurrently. Raises of the calls: as `decode_image` or `read_clip`.
    """
    samples = [source.samples[row] for row, _ in wanted]
    params = [[draw_view(policy, source.ids[row], view) for view in views] for row, views in wanted]
    if source.frames:
        clips = zip(samples, params, strict=True)
        return [partial(_of_clip, sample, policy, drawn) for sample, drawn in clips]
    images = zip(read_all(samples), params, strict=True)
    return [partial(_of_image, read, policy, drawn) for read, drawn in images]


def read_picture(source: ImageSource, row: int) -> Image.Image:
    """An image as it is; of a clip the frame in its middle. Raises as `read_views` does."""
    sample = source.samples[row]
    return read_clip(sample, [0.5])[0] if source.frames else read_image(sample)


def _of_image(
    read: Callable[[], bytes], policy: ViewPolicy, params: list[ViewParams]
) -> DrawnViews:
    return DrawnViews(policy, params, [[decode_image(read())]] * len(params))


def _of_clip(sample: Sample, policy: ViewPolicy, params: list[ViewParams]) -> DrawnViews:
    shares = sorted({share for each in params for share in each.frames})
    at = dict(zip(shares, read_clip(sample, shares), strict=True))
    return DrawnViews(policy, params, [[at[share] for share in each.frames] for each in params])
