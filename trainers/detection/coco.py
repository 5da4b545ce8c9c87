"""Boxes and masks of objects in images: COCO's annotations, checked before anything is trained.

A data set is a folder with `train.json` and `val.json`, or `annotations/instances_train….json` and
`…val….json` as COCO has them; images are looked for by their file name there, and in the folder of
their split. What has no extent is left out and counted.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from distill.data.images import decode_image
from distill.data.splits import split_of
from distill.errors import DataError, first_line

# What hostile JSON provokes.
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError),
    *(RecursionError, OverflowError),
)
SMALLEST = 0.5  # side of a box in pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class Thing:
    """An object. box: x0, y0, x1, y1 in pixels. label: from 1. shape: polygons or RLE, for masks.

    crowd: many at once, which no detector must tell apart.
    """

    box: tuple[float, float, float, float]
    label: int
    shape: Any
    area: float
    crowd: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """An image and what is in it."""

    path: Path
    size: tuple[int, int]  # height, width
    things: tuple[Thing, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenes:
    """classes: names by label - 1. skipped: annotations that were left out, by reason."""

    location: str
    classes: tuple[str, ...]
    scenes: tuple[Scene, ...]
    skipped: Mapping[str, int]

    def limited(self, limit: int | None, seed: int = 0) -> "Scenes":
        """At most so many images, a fair choice that the seed decides."""
        if limit is None or limit >= len(self.scenes):
            return self
        chosen = np.random.default_rng(seed).permutation(len(self.scenes))[:limit]
        scenes = tuple(self.scenes[i] for i in sorted(chosen))
        return replace(self, scenes=scenes)

    def describe(self) -> str:
        """In words."""
        things = sum(len(scene.things) for scene in self.scenes)
        empty = sum(not scene.things for scene in self.scenes)
        shown = ", ".join(f"{count} {why}" for why, count in self.skipped.items())
        return (
            f"{len(self.scenes)} images, {things} objects of {len(self.classes)} classes, {empty} "
            f"images without any; {self.location}{f'; left out: {shown}' if shown else ''}"
        )


def open_scenes(
    folder: Path, split: str, classes: Sequence[str] | None = None, *, masks: bool
) -> Scenes:
    """One split. classes: those to be found, of another split; masks: every object must have one.

    Raises:
        DataError: there are no annotations, they are damaged, or images are missing.
    """
    path = _annotations(folder, split)
    try:
        document = json.loads(path.read_bytes())
        found = _read(document, folder, split, path, masks=masks)
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read as COCO's annotations ({type(error).__name__}: "
            f"{first_line(error)}), expected images, annotations and categories"
        ) from error
    if not any(not thing.crowd for scene in found.scenes for thing in scene.things):
        raise DataError(f"{path}: no object found, expected some to train or judge by")
    if classes is not None and tuple(classes) != found.classes:
        other = next((c for c in found.classes if c not in classes), "another order")
        raise DataError(
            f"{path}: categories are not those of the training images ({other!r}), expected the "
            "same, in the same order"
        )
    return found


def _annotations(folder: Path, split: str) -> Path:
    plain = folder / f"{split}.json"
    if plain.is_file():
        return plain
    below = sorted((folder / "annotations").glob("instances_*.json"))
    fit = [path for path in below if split_of(path.stem.removeprefix("instances_")) == split]
    if len(fit) != 1:
        shown = ", ".join(path.name for path in fit or below) or "none"
        raise DataError(
            f"{folder}: {split}.json or one annotations/instances_{split}….json expected, found "
            f"{shown}; put COCO's annotations there"
        )
    return fit[0]


def _read(document: Any, folder: Path, split: str, path: Path, *, masks: bool) -> Scenes:
    categories = sorted(document["categories"], key=lambda each: _whole(each["id"]))
    label_of = {_whole(each["id"]): i for i, each in enumerate(categories, 1)}
    classes = tuple(str(each["name"]) for each in categories)
    if len(label_of) < len(categories) or len({*classes}) < len(classes):
        raise DataError(f"{path}: two categories of one id or name found, expected different ones")
    images = {_whole(each["id"]): each for each in document["images"]}
    if len(images) < len(document["images"]):
        raise DataError(f"{path}: two images of one id found, expected different ones")
    things: dict[int, list[Thing]] = {number: [] for number in images}
    skipped: Counter[str] = Counter()
    for i, each in enumerate(document["annotations"]):
        if _whole(each["image_id"]) not in images or _whole(each["category_id"]) not in label_of:
            raise DataError(
                f"{path}: annotation {i} is of image {each['image_id']!r} and category "
                f"{each['category_id']!r}, expected ones that the file lists"
            )
        image = images[int(each["image_id"])]
        thing = _thing(each, label_of, int(image["width"]), int(image["height"]))
        if isinstance(thing, str):
            skipped[thing] += 1
        elif masks and not thing.shape:
            skipped["without a mask"] += 1
        else:
            things[int(each["image_id"])].append(thing)
    names = {number: str(image["file_name"]) for number, image in images.items()}
    places = _find(folder, split, path, [*names.values()])
    scenes = tuple(
        Scene(
            path=places[names[number]],
            size=(int(image["height"]), int(image["width"])),
            things=tuple(things[number]),
        )
        for number, image in sorted(images.items())
    )
    return Scenes(location=str(path), classes=classes, scenes=scenes, skipped=dict(skipped))


def _thing(each: Any, label_of: Mapping[int, int], width: int, height: int) -> "Thing | str":
    """One annotation, or why it is left out."""
    x, y, w, h = (float(value) for value in each["bbox"])
    if not all(map(math.isfinite, (x, y, w, h))):
        return "with a box that is no number"
    polygons = each.get("segmentation")
    if isinstance(polygons, list) and any(len(p) < 6 or len(p) % 2 for p in polygons):
        return "with a polygon of fewer than three corners"
    box = max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)
    if box[2] - box[0] < SMALLEST or box[3] - box[1] < SMALLEST:
        return "with a box of no extent in the image"
    return Thing(
        box=box,
        label=label_of[int(each["category_id"])],
        shape=each.get("segmentation"),
        area=area if math.isfinite(area := float(each.get("area", w * h))) else w * h,
        crowd=bool(_whole(each.get("iscrowd", 0))),
    )


def _whole(number: Any) -> int:
    """A number that is whole; text is none."""
    if isinstance(number, str) or int(number) != number:
        raise ValueError(f"{number!r} where a whole number was expected")
    return int(number)


def _find(folder: Path, split: str, path: Path, names: Sequence[str]) -> dict[str, Path]:
    below = [each for each in sorted(folder.iterdir()) if each.is_dir()]
    places = [folder, *(each for each in below if split_of(each.name) == split), folder / "images"]
    found: dict[str, Path] = {}
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path}: file name {name!r} found, expected one inside the folder")
        for place in places:
            if (place / name).is_file():
                found[name] = place / name
                break
    if absent := [name for name in names if name not in found]:
        raise DataError(
            f"{path}: {len(absent)} of {len(names)} images are not in {folder} (first: "
            f"{absent[0]!r}), expected them there or in a folder {split}"
        )
    return found


Item = tuple[Tensor, dict[str, Tensor]]
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class DetectionDataset(Dataset[Item | DataError]):
    """Images [3, H, W] in [0, 1] with boxes, labels, and masks where they are asked for.

    Item (row, flip). Crowds are told as such for judging, and left out for training.
    """

    def __init__(self, scenes: Scenes, *, masks: bool, crowds: bool) -> None:
        self.scenes, self.masks, self.crowds = scenes, masks, crowds

    def __len__(self) -> int:
        return len(self.scenes.scenes)

    def __getitem__(self, item: tuple[int, bool]) -> "Item | DataError":
        row, flip = item
        try:
            return self._item(self.scenes.scenes[row], flip=flip)
        except DataError as error:  # in a process of a loader its text would be another's traceback
            return DataError(f"{self.scenes.scenes[row].path}: {error}; repair it, or leave it out")

    def _item(self, scene: Scene, *, flip: bool) -> Item:
        image = _annotated(scene)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        things = [thing for thing in scene.things if self.crowds or not thing.crowd]
        target = {
            "boxes": torch.tensor([thing.box for thing in things]).reshape(-1, 4),
            "labels": torch.tensor([thing.label for thing in things], dtype=torch.int64),
            "iscrowd": torch.tensor([thing.crowd for thing in things], dtype=torch.int64),
            "area": torch.tensor([thing.area for thing in things]),
        }
        if self.masks:
            planes = [mask_of(thing.shape, scene.size) for thing in things]
            target["masks"] = torch.from_numpy(
                np.stack(planes) if planes else np.zeros((0, *scene.size), np.uint8)
            )
        if flip:
            pixels = pixels.flip(2)
            left, top, right, bottom = target["boxes"].unbind(1)
            width = scene.size[1]
            target["boxes"] = torch.stack([width - right, top, width - left, bottom], 1)
            if self.masks:
                target["masks"] = target["masks"].flip(2)
        return pixels, target


def mask_of(shape: Any, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[H, W] of 0 and 1, from polygons or run lengths, as COCO counts them.

    Raises:
        DataError: it is neither.
    """
    from faster_coco_eval.core import mask

    try:
        runs = shape
        if isinstance(shape, list):
            runs = mask.merge(mask.frPyObjects(shape, *size))
        elif isinstance(shape["counts"], list):
            runs = mask.frPyObjects(shape, *size)
        plane = np.asarray(mask.decode(runs), np.uint8)
    except Exception as error:
        raise DataError(
            f"a mask cannot be read ({first_line(error)}), expected polygons or run lengths"
        ) from error
    if plane.shape != size:
        raise DataError(f"a mask of {plane.shape} found, expected {size}, as the image is")
    return plane


def _annotated(scene: Scene) -> Image.Image:
    """The image as it was annotated: upright, or as its pixels are stored, by its size.

    Raises:
        DataError: it has neither size.
    """
    content = scene.path.read_bytes()
    for upright in (True, False):
        image = decode_image(content, upright=upright)
        if (image.height, image.width) == scene.size:
            return image
    raise DataError(
        f"{image.width}×{image.height} pixels found, annotated are {scene.size[1]}×{scene.size[0]}"
    )


def collated(items: Sequence[Item | DataError]) -> Batch | DataError:
    """Images of any sizes side by side; or the first error."""
    good = [item for item in items if not isinstance(item, DataError)]
    if len(good) < len(items):
        return next(item for item in items if isinstance(item, DataError))
    return [image for image, _ in good], [target for _, target in good]


def whole(batches: Iterable[Batch | DataError]) -> Iterator[Batch]:
    """Those without an error.

    Raises:
        DataError: an image or a mask cannot be read.
    """
    for batch in batches:
        if isinstance(batch, DataError):
            raise batch
        yield batch
