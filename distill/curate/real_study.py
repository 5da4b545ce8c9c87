"""What reassessed labels say of models and of a data set's own labels.

After "Are we done with ImageNet?" (Beyer et al. 2020, arXiv 2006.07159), sections 4 and 5: accuracy
by labels and by reassessed labels, and whether progress by one is progress by the other (figure 4);
who is right where a model and the label disagree (figure 1); whether further predictions are right,
too (figure 5); classes that occur together, and how far an oracle comes that knows all labels of an
image but not which of them was noted (table 1, figure 6); mistakes that are left (figure 7).
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import find_rows, sample_ids
from distill.data.source import ImageSource
from distill.errors import ConfigError, DataError, first_line
from distill.hierarchy.semantic import SemanticHierarchy

PREDICTIONS = 3  # of a model for an image, that are looked at
ROUNDING = 1e-9  # of slopes
FEWEST = 3  # models that a line can be fitted through, and have an error


@dataclass(frozen=True, kw_only=True, eq=False)
class StudiedLabels:
    """tags: [n] class of each image's label, -1 for none. real: its reassessed labels; None where
    the image was not reassessed.
    """

    tags: NDArray[np.int64]
    real: Sequence[frozenset[int] | None]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """[n]: the images that have a reassessed label; the others are discarded."""
        return np.array([bool(labels) for labels in self.real])

    def right(self, classes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[n]: whether a class of each image is among its reassessed labels."""
        return np.array([c in (r or ()) for c, r in zip(classes, self.real, strict=True)])


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """Shares of images.

    accuracy: by labels, of images that have one; real_accuracy: by reassessed labels, of images
    that have any. Where model and label disagree, and the image has a reassessed label:
    model_right: the model's alone is among them; label_right: the label alone; both; neither.
    further: of the first, second and third prediction, the share that is right among the images
    that have as many right labels.
    """

    accuracy: float
    real_accuracy: float
    disagreements: int
    model_right: float
    label_right: float
    both_right: float
    neither_right: float
    further: tuple[float | None, ...]

    @property
    def preferred(self) -> float | None:
        """How often the model is right, where just one of both is."""
        decided = self.model_right + self.label_right
        return self.model_right / decided if decided else None


def figures_of(predicted: NDArray[np.int64], labels: StudiedLabels) -> ModelFigures:
    """Figures of one model. predicted: [n, k], best first, -1 for none.

    Raises:
        DataError: no image has a label, or none a reassessed one.
    """
    tagged, counted = labels.tags >= 0, labels.counted
    if not (tagged.any() and counted.any()):
        raise DataError(
            f"{int(tagged.sum())} images with a label and {int(counted.sum())} with a reassessed "
            "one found, expected some of each"
        )
    top = predicted[:, 0]
    model, label = labels.right(top), labels.right(labels.tags)
    apart = tagged & counted & (top >= 0) & (top != labels.tags)
    count = max(1, int(apart.sum()))
    numbers = np.array([len(each or ()) for each in labels.real])
    further = []
    for k in range(min(PREDICTIONS, predicted.shape[1])):
        several = numbers > k
        right = labels.right(predicted[:, k])[several]
        further.append(float(right.mean()) if several.any() else None)
    return ModelFigures(
        accuracy=float((top == labels.tags)[tagged].mean()),
        real_accuracy=float(model[counted].mean()),
        disagreements=int(apart.sum()),
        model_right=float((model & ~label)[apart].sum() / count),
        label_right=float((label & ~model)[apart].sum() / count),
        both_right=float((label & model)[apart].sum() / count),
        neither_right=float((~label & ~model)[apart].sum() / count),
        further=tuple(further),
    )


# -- progress -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """Least squares through accuracies: real ≈ offset + slope · accuracy."""

    offset: float
    slope: float
    error: float  # standard error of the slope
    models: int


@dataclass(frozen=True, kw_only=True)
class SlopeTest:
    """Lines of earlier and of later models. z, p: that they are as steep, by a two-sided Z-test.

    None of lines without any error, which are as steep or are not.
    """

    earlier: Line
    later: Line
    z: float | None
    p: float | None


def progress_of(earlier: Sequence[ModelFigures], later: Sequence[ModelFigures]) -> SlopeTest:
    """Whether accuracy by labels means as much for later models as for earlier ones.

    Raises:
        ConfigError: three models of each, of different accuracies, are the fewest.
    """
    lines = [fitted([(m.accuracy, m.real_accuracy) for m in models]) for models in (earlier, later)]
    error = math.hypot(*(line.error for line in lines))
    z = (lines[0].slope - lines[1].slope) / error if error > ROUNDING else None
    p = None if z is None else math.erfc(abs(z) / math.sqrt(2))
    return SlopeTest(earlier=lines[0], later=lines[1], z=z, p=p)


def fitted(points: Sequence[tuple[float, float]]) -> Line:
    """Through accuracies by labels and by reassessed labels.

    Raises:
        ConfigError: they are fewer than three, or all of one accuracy.
    """
    x, y = np.array(points, np.float64).reshape(-1, 2).T
    if len(x) < FEWEST or np.ptp(x) == 0:
        raise ConfigError(
            f"{len(x)} models found to fit a line through, expected at least {FEWEST} of different "
            "accuracies, earlier ones and later ones; pass more models"
        )
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * y).sum() / spread
    offset = y.mean() - slope * x.mean()
    rest = ((y - offset - slope * x) ** 2).sum() / (len(x) - 2)
    return Line(
        offset=float(offset), slope=float(slope), error=float((rest / spread) ** 0.5), models=len(x)
    )


# -- classes --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """Figures of the images that are labelled with a class, rightly.

    oracle: accuracy of one that knows all labels of an image and picks any. together: the classes
    that most often are there as well, and in which share of the images.
    """

    c: int
    images: int
    oracle: float
    together: tuple[tuple[int, float], ...]


def classes_of(labels: StudiedLabels, most: int = 3) -> list[ClassFigures]:
    """The most ambiguous class first; those without an image are left out."""
    oracle: dict[int, list[float]] = {}
    beside: dict[int, dict[int, int]] = {}
    for tag, real in zip(labels.tags.tolist(), labels.real, strict=True):
        if real and tag in real:
            oracle.setdefault(tag, []).append(1 / len(real))
            counts = beside.setdefault(tag, {})
            for other in real - {tag}:
                counts[other] = counts.get(other, 0) + 1
    found = []
    for c, chances in oracle.items():
        ranked = sorted(beside[c].items(), key=lambda each: (-each[1], each[0]))
        shares = tuple((other, count / len(chances)) for other, count in ranked[:most])
        mean = sum(chances) / len(chances)
        found.append(ClassFigures(c=c, images=len(chances), oracle=mean, together=shares))
    return sorted(found, key=lambda each: (each.oracle, each.c))


def accuracy_by_class(
    predicted: NDArray[np.int64], labels: StudiedLabels, classes: Sequence[ClassFigures]
) -> list[float]:
    """Accuracy by labels on the images that `classes_of` counts, of each of those classes."""
    right = labels.right(labels.tags) & labels.counted
    hit = predicted[:, 0] == labels.tags
    return [float(hit[right & (labels.tags == each.c)].mean()) for each in classes]


def mistakes(
    predicted: Mapping[str, NDArray[np.int64]], labels: StudiedLabels
) -> dict[int, dict[int, list[str]]]:
    """By row, the first predictions of models, where none of them is right."""
    wrong = {}
    tops = {name: each[:, 0] for name, each in predicted.items()}
    right = np.any([labels.right(top) for top in tops.values()], axis=0)
    for row in np.flatnonzero(labels.counted & ~right).tolist():
        seen: dict[int, list[str]] = {}
        for name, top in tops.items():
            if top[row] >= 0:
                seen.setdefault(int(top[row]), []).append(name)
        if seen:
            wrong[row] = seen
    return wrong


# -- predictions as files -------------------------------------------------------------------------


def read_predictions(
    path: Path, source: ImageSource, hierarchy: SemanticHierarchy
) -> NDArray[np.int64]:
    """[n, 3], best first, -1 for none: CSV with `key` and then classes, indices or synsets.

    Raises:
        DataError: the file is of another form, or lacks an image.
    """
    index = {synset: c for c, synset in enumerate(hierarchy.synsets)}
    keys, classes = [], []
    try:
        with path.open(encoding="utf-8-sig", errors="surrogatepass", newline="") as file:
            rows = csv.reader(file)
            if (header := next(rows, []))[:1] != ["key"] or len(header) < 2:
                raise ValueError(f"columns {','.join(header)[:100]}")
            for key, *words in filter(None, rows):
                found = [_class_of(word, index) for word in words[:PREDICTIONS]]
                keys.append(key)
                classes.append(found + [-1] * (PREDICTIONS - len(found)))
        rows_of = find_rows(source.ids, sample_ids(keys))
    except (OSError, ValueError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read as predictions ({first_line(error)}), expected CSV with key "
            f"and then classes of {hierarchy.name}, the most probable first"
        ) from error
    if len({*keys}) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{path}: {twice!r} appears twice, expected a line for each image")
    table, there = np.full((len(source), PREDICTIONS), -1), rows_of >= 0
    table[rows_of[there]] = np.array(classes, np.int64).reshape(-1, PREDICTIONS)[there]
    absent = np.setdiff1d(np.arange(len(source)), rows_of)
    if len(absent):
        raise DataError(
            f"{path}: lacks {len(absent)} of the {len(source)} images in {source.location} (first: "
            f"{source.samples[int(absent[0])].key!r}), expected a line for each"
        )
    return table


def _class_of(word: str, index: Mapping[str, int]) -> int:
    if word in index:
        return index[word]
    if not word:
        return -1
    c = int(word)
    if not 0 <= c < len(index):
        raise ValueError(f"class {word}")
    return c
