"""The built-in data set of the demo: rendered plane figures, tagged the way ImageNet-21K is.

Every drawn class is a WordNet noun. Colour, size, rotation, place, background and noise vary. A
share of the training images is tagged with an ancestor of the true class; labels.csv keeps both.
"""

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from distill.files import write_atomically, write_csv
from distill.hierarchy.semantic import SemanticHierarchy

Points = NDArray[np.float64]  # [n, 2], about the origin, at most about 1 away from it
Random = np.random.Generator

SUPERSAMPLING = 4
HIERARCHY = "plane-figures"


@dataclass(frozen=True, kw_only=True)
class FigureSet:
    """How many images, how large, and the share of training images tagged with an ancestor."""

    train: int = 6000
    val: int = 1500
    pixels: int = 48
    ancestor_share: float = 0.3
    seed: int = 0


def write_figures(folder: Path, figures: FigureSet) -> None:
    """train-000000.tar, val-000000.tar and labels.csv (split, key, true and tagged wnid)."""
    hierarchy = SemanticHierarchy.bundled(HIERARCHY)
    rows: list[tuple[str, str, str, str]] = []
    for split, count, share in (
        ("train", figures.train, figures.ancestor_share),
        ("val", figures.val, 0.0),
    ):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for i in range(count):
                random = np.random.default_rng([figures.seed, split == "val", i])
                wnid = list(OUTLINES)[int(random.integers(len(OUTLINES)))]
                ancestors = hierarchy.ancestors(wnid)
                tagged = wnid
                if ancestors and random.random() < share:
                    tagged = ancestors[int(random.integers(len(ancestors)))]
                key = f"{split}{i:06d}"
                jpeg = io.BytesIO()
                render_figure(wnid, figures.pixels, random).save(jpeg, "JPEG", quality=92)
                _add(tar, f"{key}.jpg", jpeg.getvalue())
                _add(tar, f"{key}.wnid", tagged.encode())
                rows.append((split, key, wnid, tagged))
        write_atomically(folder / f"{split}-000000.tar", buffer.getvalue())
    write_csv(folder / "labels.csv", ["split", "key", "true_wnid", "tagged_wnid"], rows)


def render_figure(wnid: str, pixels: int, random: Random) -> Image.Image:
    """One figure of that class, pixels × pixels, RGB."""
    side = pixels * SUPERSAMPLING
    paper, ink = two_colours(random)
    image = background(side, paper, random)
    angle, scale = random.uniform(-0.4, 0.4), random.uniform(0.3, 0.45) * side
    centre = side * (0.5 + random.uniform(-0.05, 0.05, 2))
    turn = np.array([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]])
    draw = ImageDraw.Draw(image)
    outline, *holes = OUTLINES[wnid](random)
    filled = random.random() < 0.85
    for number, points in enumerate([outline, *holes]):
        placed = [(float(x), float(y)) for x, y in points @ turn * scale + centre]
        fill = (ink if number == 0 else paper) if filled else None
        if fill:
            draw.polygon(placed, fill=fill)
        else:
            draw.line([*placed, *placed[:2]], fill=ink, width=round(side * 0.03), joint="curve")
    return finished(image, pixels, 10, random)


def finished(image: Image.Image, pixels: int, most_noise: float, random: Random) -> Image.Image:
    """What was drawn larger, at its size and with noise."""
    small = image.resize((pixels, pixels), Image.Resampling.BOX)
    noise = random.normal(0, random.uniform(0, most_noise), (pixels, pixels, 3))
    return Image.fromarray(np.clip(np.asarray(small) + noise, 0, 255).astype(np.uint8))


def two_colours(
    random: Random, paper: tuple[int, ...] | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """That can be told apart; the first as given, where it is."""
    while True:
        first, ink = random.integers(0, 256, (2, 3))
        first = first if paper is None else np.array(paper)
        if abs(first - ink).sum() > 200:
            return tuple(first.tolist()), tuple(ink.tolist())


def background(side: int, paper: tuple[int, ...], random: Random) -> Image.Image:
    """Paper that grows lighter or darker in one direction."""
    across = np.linspace(-1, 1, side)
    angle, strength = random.uniform(0, 2 * pi), random.uniform(0, 40)
    shade = strength * (cos(angle) * across[:, None] + sin(angle) * across[None, :])
    return Image.fromarray(np.clip(np.array(paper) + shade[..., None], 0, 255).astype(np.uint8))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


# -- outlines: the figure, then holes in it
# ---------------------------------------------------------


def _points(*pairs: tuple[float, float]) -> Points:
    points = np.array(pairs)
    points = points - (points.max(0) + points.min(0)) / 2
    return _stretched(points, 1 / float(np.linalg.norm(points, axis=1).max()))


def _stretched(points: Points, x: float, y: float | None = None) -> Points:
    stretched: Points = points * np.array([x, x if y is None else y])
    return stretched


def _around(degrees: NDArray[np.float64], radius: float | NDArray[np.float64] = 1.0) -> Points:
    angles = np.deg2rad(degrees)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)


def _regular(corners: int) -> Points:
    return _around(np.arange(corners) * 360 / corners)


def _star(spikes: int, inner: float) -> Points:
    radius = np.where(np.arange(2 * spikes) % 2 == 0, 1.0, inner)
    return _around(np.arange(2 * spikes) * 180 / spikes, radius)


def _arc(first: float, last: float, radius: float = 1.0) -> Points:
    return _around(np.linspace(first, last, 48), radius)


def _triangle(first_angle: float, second_angle: float) -> Points:
    """Two angles at the ends of a base of length 1, in degrees."""
    a, b = np.deg2rad([first_angle, second_angle])
    x = np.tan(b) / (np.tan(a) + np.tan(b))
    return _points((0, 0), (1, 0), (float(x), float(x * np.tan(a))))


def _acute(random: Random) -> Points:
    first = random.uniform(50, 60)
    return _triangle(first, random.uniform(70, 78))


def _obtuse(random: Random) -> Points:
    apex = random.uniform(112, 132)
    first = random.uniform(0.36, 0.44) * (180 - apex)
    return _triangle(first, 180 - apex - first)


def _right(random: Random) -> Points:
    return _points((0, 0), (1, 0), (0, float(random.uniform(0.45, 0.75))))


def _isosceles(random: Random) -> Points:
    base = random.uniform(68, 76)
    return _triangle(base, base)


def _slanted(width: float, slant: float, height: float) -> Points:
    return _points((0, 0), (width, 0), (width + slant, height), (slant, height))


def _rhombus(random: Random) -> Points:
    return _points((-1, 0), (0, -(thin := float(random.uniform(0.45, 0.65)))), (1, 0), (0, thin))


def _rhomboid(random: Random) -> Points:
    return _slanted(1.0, float(random.uniform(0.35, 0.5)), float(random.uniform(0.4, 0.55)))


def _rectangle(random: Random) -> Points:
    return _slanted(1.0, 0.0, float(random.uniform(0.4, 0.65)))


def _trapezoid(random: Random) -> Points:
    top = float(random.uniform(0.4, 0.55))
    left = float(random.uniform(0.1, 0.9)) * (1 - top)
    return _points((0, 0), (1, 0), (left + top, 0.6), (left, 0.6))


def _trapezium(random: Random) -> Points:
    x, y = random.uniform(0.2, 0.4, 2)
    return _points((0, 0), (1, float(x)), (float(0.75 + y / 2), 1), (0.15, 0.6))


def _concave(random: Random) -> Points:
    dent = float(random.uniform(0.35, 0.6))
    return _points((0, 0), (1, 0), (1, 0.8), (0.5, 0.8 - dent), (0, 0.8))


def _hexagon(random: Random) -> Points:
    long = float(random.uniform(1.6, 2.2))
    return _stretched(_regular(6), 1.0, 1 / long)


def _ellipse(random: Random) -> Points:
    return _stretched(_arc(0, 360), 1.0, random.uniform(0.45, 0.65))


def _sector(random: Random) -> Points:
    wide = random.uniform(60, 110)
    return _stretched(np.concatenate([[[0.0, 0.0]], _arc(0, wide)]) - 0.4, 1.3)


def _heart(random: Random) -> Points:
    t = np.linspace(0, 2 * pi, 64)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], 1) / 17


def _crescent(random: Random) -> Points:
    """The left of a unit circle, and back along the left of a circle through the same two tips."""
    tip = _around(np.array([60.0]))[0]
    centre = random.uniform(0.3, 0.55)
    radius = float(np.hypot(tip[0] - centre, tip[1]))
    at_tip = float(np.rad2deg(np.arctan2(tip[1], tip[0] - centre)))
    inner = _arc(360 - at_tip, at_tip, radius) + np.array([centre, 0.0])
    return np.concatenate([_arc(60, 300), inner])


OUTLINES: dict[str, Callable[[Random], list[Points]]] = {
    "n13878306": lambda random: [_ellipse(random)],
    "n13873502": lambda random: [_arc(0, 360)],
    "n13881644": lambda random: [_star(8, random.uniform(0.4, 0.6))],
    "n13882008": lambda random: [_star(5, 0.382)],
    "n13880811": lambda random: [_star(6, 0.577)],
    "n13875027": lambda random: [_sector(random)],
    "n13874251": lambda random: [_arc(0, 180) - np.array([0.0, 0.4])],
    "n13865904": lambda random: [_heart(random)],
    "n13896217": lambda random: [_crescent(random)],
    "n13875392": lambda random: [_arc(0, 360), _arc(0, 360, random.uniform(0.45, 0.7))],
    "n13882201": lambda random: [_regular(5)],
    "n13882276": lambda random: [_hexagon(random)],
    "n13882385": lambda random: [_regular(6)],
    "n13882563": lambda random: [_regular(8)],
    "n13866827": lambda random: [_concave(random)],
    "n13880551": lambda random: [_right(random)],
    "n13880199": lambda random: [_isosceles(random)],
    "n13880415": lambda random: [_obtuse(random)],
    "n13879816": lambda random: [_acute(random)],
    "n13881512": lambda random: [_trapezoid(random)],
    "n13881381": lambda random: [_trapezium(random)],
    "n13883346": lambda random: [_rectangle(random)],
    "n13882961": lambda random: [_rhombus(random)],
    "n13883133": lambda random: [_rhomboid(random)],
    "n13878634": lambda random: [_slanted(1.0, 0.0, 1.0)],
}
