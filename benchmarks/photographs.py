"""Photographs for benchmarks, however many: those of ImageNet's sample, or rendered ones."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from distill.data.source import open_source

WIDE = (500, 375)  # as ImageNet's are
DOG = b"n02084071"  # a class of ImageNet-21K-P


def photograph(seed: int, size: tuple[int, int] = WIDE) -> Image.Image:
    """Shapes and noise, as hard to compress as a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).resize(size)
    noise = random.normal(0, 12, (*size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def write_photographs(
    folder: Path, count: int, *, shared: Path | None = None, labelled: bool = False
) -> Path:
    """A tar of so many full-size JPEGs under names of their own, each some hundred times over.

    shared: where ImageNet's sample may be. labelled: all as dogs.
    """
    sample = shared / "data/imagenet-sample" if shared else None
    if sample and sample.is_dir():
        contents = []
        for each in open_source(sample).samples:
            with open(each.path, "rb") as file:
                file.seek(each.offset)
                contents.append(file.read(each.size))
    else:
        contents = [_jpeg(photograph(seed)) for seed in range(min(200, count))]
    path = folder / "photographs.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            parts = {"jpg": contents[number % len(contents)]} | ({"cls": DOG} if labelled else {})
            for suffix, content in parts.items():
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
