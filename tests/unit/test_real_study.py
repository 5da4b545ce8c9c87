"""Figures of a study of reassessed labels, against the definitions written out."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import linregress, norm
from small_images import write_folder

from distill.curate.real_study import (
    ModelFigures,
    StudiedLabels,
    accuracy_by_class,
    classes_of,
    figures_of,
    fitted,
    mistakes,
    progress_of,
    read_predictions,
)
from distill.data.source import open_source
from distill.errors import ConfigError, DataError
from distill.hierarchy.semantic import SemanticHierarchy

CLASSES, IMAGES = 6, 300


@pytest.fixture
def labels(random: np.random.Generator) -> StudiedLabels:
    """Some images have no label, some no reassessed one, some several, some another."""
    tags = np.where(random.random(IMAGES) < 0.95, random.integers(0, CLASSES, IMAGES), -1)
    real: list[frozenset[int] | None] = []
    for tag in tags.tolist():
        draw = random.random()
        others = random.choice(CLASSES, random.integers(0, 3), replace=False).tolist()
        own = [tag] if draw < 0.8 and tag >= 0 else []
        real.append(None if draw > 0.97 else frozenset([*own, *others]))
    return StudiedLabels(tags=tags, real=real)


@pytest.fixture
def predicted(random: np.random.Generator) -> np.ndarray:
    found = np.argsort(random.random((IMAGES, CLASSES)), 1)[:, :3]
    found[:5] = -1
    return found


def test_figures_are_what_their_definitions_say(
    labels: StudiedLabels, predicted: np.ndarray
) -> None:
    figures = figures_of(predicted, labels)
    rows = list(zip(predicted.tolist(), labels.tags.tolist(), labels.real, strict=True))
    with_tag = [(p, t, r) for p, t, r in rows if t >= 0]
    assert figures.accuracy == sum(p[0] == t for p, t, _ in with_tag) / len(with_tag)
    with_real = [(p, t, r) for p, t, r in rows if r]
    assert figures.real_accuracy == sum(p[0] in r for p, _, r in with_real) / len(with_real)
    apart = [(p[0] in r, t in r) for p, t, r in rows if r and t >= 0 and p[0] not in (-1, t)]
    assert figures.disagreements == len(apart)
    shares = [apart.count(each) / len(apart) for each in ((1, 0), (0, 1), (1, 1), (0, 0))]
    assert shares == pytest.approx(
        [
            figures.model_right,
            figures.label_right,
            figures.both_right,
            figures.neither_right,
        ]
    )
    assert sum(shares) == pytest.approx(1)
    assert figures.preferred == pytest.approx(shares[0] / (shares[0] + shares[1]))
    for k in range(3):
        several = [(p, r) for p, _, r in rows if r and len(r) > k]
        assert figures.further[k] == sum(p[k] in r for p, r in several) / len(several)


def test_classes_and_their_oracle(labels: StudiedLabels, predicted: np.ndarray) -> None:
    found = classes_of(labels)
    accuracies = accuracy_by_class(predicted, labels, found)
    assert [each.oracle for each in found] == sorted(each.oracle for each in found)
    for each, accuracy in zip(found, accuracies, strict=True):
        own = [
            (p[0], r)
            for p, t, r in zip(predicted, labels.tags, labels.real, strict=True)
            if t == each.c and r and t in r
        ]
        assert each.images == len(own)
        assert each.oracle == pytest.approx(np.mean([1 / len(r) for _, r in own]))
        assert accuracy == np.mean([p == each.c for p, _ in own])
        beside = {c: np.mean([c in r for _, r in own]) for c in range(CLASSES) if c != each.c}
        shares = [share for _, share in each.together]
        assert shares == pytest.approx(sorted(beside.values(), reverse=True)[: len(shares)])
        assert all(beside[c] == pytest.approx(share) for c, share in each.together)


def test_mistakes_are_images_that_no_model_is_right_about(
    labels: StudiedLabels, predicted: np.ndarray
) -> None:
    other = np.roll(predicted, 1, axis=1)
    found = mistakes({"a": predicted, "b": other}, labels)
    for row, real in enumerate(labels.real):
        tops = {predicted[row, 0], other[row, 0]} - {-1}
        wrong = bool(real) and bool(tops) and not tops & (real or frozenset())
        assert (row in found) == wrong
        if wrong:
            assert {*found[row]} == tops


def _model(accuracy: float, real: float) -> ModelFigures:
    return ModelFigures(
        accuracy=accuracy,
        real_accuracy=real,
        disagreements=0,
        model_right=0,
        label_right=0,
        both_right=0,
        neither_right=0,
        further=(),
    )


def test_lines_are_those_of_scipy(random: np.random.Generator) -> None:
    x = random.random((2, 9))
    y = 0.3 + np.array([[0.9], [0.5]]) * x + 0.02 * random.standard_normal((2, 9))
    groups = [[_model(a, b) for a, b in zip(*each, strict=True)] for each in zip(x, y, strict=True)]
    found = progress_of(*groups)
    expected = [linregress(*each) for each in zip(x, y, strict=True)]
    for line, fit in zip((found.earlier, found.later), expected, strict=True):
        assert (line.slope, line.offset, line.error) == pytest.approx(
            (fit.slope, fit.intercept, fit.stderr)
        )
    z = (expected[0].slope - expected[1].slope) / np.hypot(*(fit.stderr for fit in expected))
    assert found.z == pytest.approx(z)
    assert found.p == pytest.approx(2 * norm.sf(abs(z)))


def test_lines_without_an_error_are_compared_by_nothing() -> None:
    lines = [[_model(x, x) for x in xs] for xs in ((0.2, 0.5, 0.9), (0.3, 0.4, 0.8))]
    found = progress_of(*lines)
    assert (found.z, found.p) == (None, None)
    assert found.earlier.slope == pytest.approx(found.later.slope)


def test_too_little_is_said() -> None:
    with pytest.raises(ConfigError, match="at least 3 of different"):
        fitted([(0.1, 0.2), (0.2, 0.3)])
    with pytest.raises(ConfigError, match="at least 3 of different"):
        fitted([(0.1, 0.2)] * 5)
    none = StudiedLabels(tags=np.array([-1, 0]), real=[frozenset({1}), None])
    assert figures_of(np.array([[1], [1]]), none).disagreements == 0
    with pytest.raises(DataError, match="expected some of each"):
        figures_of(np.array([[1]]), StudiedLabels(tags=np.array([0]), real=[None]))


def test_predictions_as_a_file(tmp_path: Path) -> None:
    hierarchy = SemanticHierarchy.from_chains(["a", "b", "c"], {})
    write_folder(tmp_path / "data", ("a", "b"), images=1)
    source = open_source(tmp_path / "data")
    keys = [sample.key for sample in source.samples]
    path = tmp_path / "p.csv"
    path.write_text(f"key,x,y\n{keys[1]},2\nelsewhere,0,1\n{keys[0]},b,,0\n")
    assert read_predictions(path, source, hierarchy).tolist() == [[1, -1, 0], [2, -1, -1]]
    for content, said in (
        (f"key,x\n{keys[0]},1\n", "lacks 1 of the 2 images"),
        ("", "cannot be read as predictions"),
        ("\nkey,x\n", "cannot be read as predictions"),
        ("key\n", "cannot be read as predictions"),
        ("name,x\n", "columns name,x"),
        (f"key,x\n{keys[0]},1\n{keys[0]},1\n", "appears twice"),
        (f"key,x\n{keys[0]},9\n", "class 9"),
        (f"key,x\n{keys[0]},dog\n", "expected CSV with key"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=said):
            read_predictions(path, source, hierarchy)
