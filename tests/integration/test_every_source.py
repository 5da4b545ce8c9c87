"""The whole path, data → teacher → store → student, on each form of data and on own classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from distill.data.images import read_bytes
from distill.data.source import open_source
from distill.files import write_csv
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.logit_store import LogitStore

MACHINE = ("--device", "cpu", "--workers", 0)
SMALL = ("--batch-size", 32, "--epochs", 1, "--init", "random", "--image-size", 32)


@pytest.fixture
def whole_path(distill, tmp_path: Path) -> Callable[..., Path]:  # type: ignore[no-untyped-def]
    """Train a teacher, precompute, train a student: the commands of docs/data.md; the store."""

    def run(data: object, label_set: object) -> Path:
        def ok(*command: object) -> str:
            ran = distill(*command, *MACHINE)
            assert ran.code == 0, ran.err
            return str(ran.out)

        train = ("pretrain", "--student", "test_vit", "--data", data, *SMALL)
        ok(*train, "--label-set", label_set, "--out", tmp_path / "teacher")
        teacher = ("--teacher", "test_vit", "--weights", tmp_path / "teacher/student.safetensors")
        store = tmp_path / "store"
        ok("precompute", *teacher, "--label-set", label_set, "--data", data, "--store", store)
        told = ok(
            *train, "--targets", store, "--out", tmp_path / "student", "--cache", tmp_path / "cache"
        )
        assert "views drawn again" in told
        return store

    return run


@pytest.fixture
def images(figures: Path) -> dict[str, tuple[str, bytes]]:
    """Label and content by key."""
    source = open_source(figures)
    return {s.key: (str(s.label), read_bytes(s)) for s in source.samples}


def write_images(
    folder: Path, images: dict[str, tuple[str, bytes]], name: Callable[[str], str]
) -> None:
    for key, (label, content) in images.items():
        path = folder / name(label) / f"{key.replace('/', '-')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_ones_own_taxonomy(
    tmp_path: Path,
    images: dict[str, tuple[str, bytes]],
    hierarchy: SemanticHierarchy,
    whole_path,  # type: ignore[no-untyped-def]
    distill,  # type: ignore[no-untyped-def]
) -> None:
    """Classes of a shop: numbers of articles, with names for people; nothing of WordNet."""
    article = {synset: f"article-{i}" for i, synset in enumerate(hierarchy.synsets)}
    parents: dict[str, str | None] = {
        article[s]: article[above[0]] if (above := hierarchy.ancestors(s)) else None
        for s in hierarchy.synsets
    }
    names = {article[s]: f"Item {i}" for i, s in enumerate(hierarchy.synsets)}
    taxonomy = tmp_path / "taxonomy.json"
    taxonomy.write_text(json.dumps({"name": "shop", "parents": parents, "names": names}))
    # Half of the folders are called by the name, half by the number.
    odd = lambda label: names[article[label]] if hierarchy.index(label) % 2 else article[label]  # noqa: E731
    write_images(tmp_path / "data" / "train", images, odd)
    store = whole_path(tmp_path / "data", taxonomy)
    kept = SemanticHierarchy.from_json(LogitStore.open(str(store)).hierarchy)
    assert kept.name == "shop"
    assert kept.level_sizes == hierarchy.level_sizes
    told = distill("inspect", store, "--by-class", "--csv")
    assert told.code == 0
    assert "article-" in told.out
    report = distill(
        "data", "check", "--data", tmp_path / "data", "--label-set", taxonomy, "--json"
    )
    assert json.loads(report.out)["outside"] == {}


def test_hugging_face_data(
    tmp_path: Path,
    images: dict[str, tuple[str, bytes]],
    whole_path,  # type: ignore[no-untyped-def]
) -> None:
    names = sorted({label for label, _ in images.values()})
    features: dict[str, Any] = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=names),
        "key": datasets.Value("string"),
    }
    columns = {
        "image": [{"bytes": content, "path": None} for _, content in images.values()],
        "label": [names.index(label) for label, _ in images.values()],
        "key": list(images),
    }
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "data")
    whole_path(tmp_path / "data", "plane-figures")


def test_a_table_of_paths(
    tmp_path: Path,
    images: dict[str, tuple[str, bytes]],
    figures: Path,
    whole_path,  # type: ignore[no-untyped-def]
) -> None:
    """The same keys give the same data set, whatever form it is in."""
    rows = []
    for i, (key, (label, content)) in enumerate(images.items()):
        (tmp_path / f"{i}.bin").write_bytes(content)
        rows.append([f"{i}.bin", label, key])
    write_csv(tmp_path / "images.csv", ["path", "wnid", "key"], rows)
    store = whole_path(tmp_path / "images.csv", "plane-figures")
    ids = LogitStore.open(str(store)).sample_ids
    assert (ids == open_source(figures).ids).all()
