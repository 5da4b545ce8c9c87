"""Rendered scenes of plane figures with their boxes and masks, in COCO's form: images and JSON.

What `distill detect` can be tried on without a download: some figures on a background, none over
another, so that a polygon is a mask.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from distill.data.rendered.plane_figures import (
    HIERARCHY,
    OUTLINES,
    background,
    finished,
    two_colours,
)
from distill.files import write_all_atomically, write_atomically
from distill.hierarchy.semantic import SemanticHierarchy
from distill.process_pool import map_in_processes

SUPERSAMPLING = 2
MOST_FIGURES = 6
# That can be told apart however small and turned, and have no hole, as a polygon has none: circle,
# pentacle, heart, crescent, semicircle, right triangle, rectangle, square.
SOLID = [
    *("n13873502", "n13882008", "n13865904", "n13896217"),
    *("n13874251", "n13880551", "n13883346", "n13878634"),
]
UNIT_IMAGES = 250


@dataclass(frozen=True, kw_only=True)
class SceneSet:
    """How many images of each split, and how large."""

    train: int = 4000
    val: int = 500
    pixels: int = 128
    seed: int = 0


def write_scenes(folder: Path, scenes: SceneSet, workers: int) -> None:
    """train/000000.jpg …, val/…, and train.json and val.json."""
    hierarchy = SemanticHierarchy.bundled(HIERARCHY)
    categories = [
        {"id": i, "name": hierarchy.display_name(wnid)} for i, wnid in enumerate(SOLID, 1)
    ]
    for split, count in (("train", scenes.train), ("val", scenes.val)):
        units = [
            (folder, split, scenes, range(first, min(first + UNIT_IMAGES, count)))
            for first in range(0, count, UNIT_IMAGES)
        ]
        found = sorted(map_in_processes(_write_unit, units, workers), key=lambda unit: unit[0])
        images = [image for _, images, _ in found for image in images]
        annotations = [each for _, _, some in found for each in some]
        document = {
            "images": images,
            "annotations": [{"id": i, **each} for i, each in enumerate(annotations, 1)],
            "categories": categories,
        }
        write_atomically(folder / f"{split}.json", json.dumps(document).encode())


def _write_unit(
    unit: tuple[Path, str, SceneSet, range],
) -> tuple[int, list[dict[str, Any]], list[dict[str, Any]]]:
    folder, split, scenes, numbers = unit
    images, annotations, files = [], [], []
    for i in numbers:
        image, figures = render_scene(
            scenes.pixels, np.random.default_rng([scenes.seed, split == "val", i])
        )
        name, jpeg = f"{split}/{i:06d}.jpg", io.BytesIO()
        image.save(jpeg, "JPEG", quality=92)
        files.append((folder / name, jpeg.getvalue()))
        size = {"width": scenes.pixels, "height": scenes.pixels}
        images.append({"id": i, "file_name": name, **size})
        annotations += [{"image_id": i, **figure} for figure in figures]
    write_all_atomically(files)
    return numbers.start, images, annotations


def render_scene(
    pixels: int, random: np.random.Generator
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """An image, and of each figure category_id, bbox [x, y, w, h], segmentation and area."""
    side = pixels * SUPERSAMPLING
    paper, _ = two_colours(random)
    image = background(side, paper, random)
    draw, figures = ImageDraw.Draw(image), list[dict[str, Any]]()
    boxes: list[tuple[float, float, float, float]] = []
    for points, number in _placed(side, random):
        low, high = points.min(0), points.max(0)
        box = (*low.tolist(), *high.tolist())
        outside = low.min() < 0 or high.max() > side
        if outside or any(_overlap(box, other) for other in boxes):
            continue
        boxes.append(box)
        _, ink = two_colours(random, paper)
        draw.polygon([(float(x), float(y)) for x, y in points], fill=ink)
        small = points / SUPERSAMPLING
        x, y = small.T
        area = float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)
        corner, extent = small.min(0), np.ptp(small, axis=0)
        figures.append(
            {
                "category_id": number + 1,
                "bbox": np.round([*corner, *extent], 2).tolist(),
                "segmentation": [np.round(small.reshape(-1), 2).tolist()],
                "area": round(area, 2),
                "iscrowd": 0,
            }
        )
    return finished(image, pixels, 8, random), figures


def _placed(side: int, random: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    """Outlines at random places, some of which may lie over others."""
    for _ in range(int(random.integers(1, MOST_FIGURES + 1))):
        number = int(random.integers(len(SOLID)))
        outline = OUTLINES[SOLID[number]](random)[0]
        angle, scale = random.uniform(0, 2 * pi), random.uniform(0.1, 0.22) * side
        turn = np.array([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]])
        turned = outline @ turn * scale
        yield turned + random.uniform(0.1, 0.9, 2) * side, number


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
