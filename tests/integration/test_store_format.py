"""The format's promise: what one version wrote, every later one reads, and so can anybody."""

import json
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from format_reader import read_store
from small_store import HIERARCHY, create, make_complete, write

from distill.data.sample_ids import sample_ids
from distill.data.view_policy import ViewPolicy
from distill.data.views import draw_view
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.logit_store import LogitStore
from distill.store.upkeep.reader import RowReader
from distill.store.upkeep.verify import verify

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("v*"))
FIELDS = ("index", "prob", "confidence", "sq_norm", "valid")


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    shutil.copytree(request.param / "store", tmp_path / "store")
    with np.load(request.param / "expected.npz") as expected:
        return tmp_path / "store", dict(expected)


def test_there_is_a_golden_store() -> None:
    assert [path.name for path in GOLDEN] == ["v2", "v3"]


def test_golden_stores_are_read_by_this_version(
    golden: tuple[Path, dict[str, np.ndarray]],
) -> None:
    folder, expected = golden
    assert verify(str(folder)).ok
    store = LogitStore.open(folder)
    assert store.require_complete()
    assert (store.sample_ids == expected["sample_id"]).all()
    assert (store.labels == expected["label"]).all()
    assert SemanticHierarchy.from_json(store.hierarchy).digest == HIERARCHY.digest
    rows = np.arange(store.manifest.dataset.rows)
    for view in range(store.manifest.views.count):
        answers = store.manifest.coding.dequantise(RowReader(store, view).rows(rows))
        for name in FIELDS:
            assert (getattr(answers, name) == expected[f"{name}{view}"]).all(), name


def test_golden_stores_are_read_by_a_reader_made_from_the_document(
    golden: tuple[Path, dict[str, np.ndarray]],
) -> None:
    folder, expected = golden
    read = read_store(folder)
    assert (read["sample_id"] == expected["sample_id"]).all()
    assert (read["label"] == expected["label"]).all()
    for name in FIELDS:
        for view in range(2):
            np.testing.assert_allclose(
                read[name][:, view], expected[f"{name}{view}"], rtol=1e-6, err_msg=name
            )


@pytest.fixture(scope="module")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader beside zarrita, which is fetched for it."""
    folder = tmp_path_factory.mktemp("javascript")
    shutil.copy(Path(__file__).parents[1] / "format_reader.mjs", folder)
    if not shutil.which("npm"):
        pytest.skip("needs node and npm")
    fetched = subprocess.run(
        ["npm", "install", "--silent", "zarrita@0.7.5"],
        cwd=folder,
        capture_output=True,
        timeout=120,
        check=False,
    )
    if fetched.returncode:
        pytest.skip("needs a registry of packages")
    return folder / "format_reader.mjs"


def test_a_reader_in_another_language(javascript: Path) -> None:
    """Written from the document: answers of the golden store, and numbers that draw a view."""
    folder = GOLDEN[-1]
    high, low = (int(word) for word in sample_ids(["key7"])[0])
    said = subprocess.run(
        ["node", str(javascript), str(folder / "store"), f"{high},{low}", "3"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(said.stdout)
    rows, views, _ = found["shape"]
    with np.load(folder / "expected.npz") as expected:
        for at, answer in enumerate(found["answers"]):
            for name in FIELDS:
                right = expected[f"{name}{at % views}"][at // views]
                np.testing.assert_allclose(answer[name], right, rtol=1e-6, err_msg=name)
    assert len(found["answers"]) == rows * views
    text = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text()
    assert ", ".join(f"{number:.6f}" for number in found["numbers"]) in text
    drawn = draw_view(ViewPolicy(), sample_ids(["key7"])[0], 3)
    operations = " then ".join(f"{name} {amount:+.3f}" for name, amount in drawn.operations)
    assert drawn.cutout is not None
    x, y, _ = drawn.cutout
    assert f"flipped, {operations}, Cutout at {x:.6f}, {y:.6f}" in text
    assert f"`{high:#018x}`, `{low:#018x}`" in text


def test_zarr_and_xarray_open_all_of_it_without_a_warning(tmp_path: Path) -> None:
    """And consolidated metadata, which others may add, do not damage it."""
    xarray = pytest.importorskip("xarray")
    store = make_complete(tmp_path / "store")
    unfinished = create(tmp_path / "unfinished")
    write(unfinished, [1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for place in (store.location, unfinished.location):
            group = zarr.open_group(place, mode="r", use_consolidated=False)
            assert len(dict(group.members(max_depth=None))) > 7
        tree = xarray.open_datatree(store.location, engine="zarr", consolidated=False)
    assert tree["prob"].dims == ("row", "view", "slot")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not a part of Zarr 3's specification, says Zarr
        zarr.consolidate_metadata(f"{store.location}/commits")
        zarr.consolidate_metadata(store.location)
    again = LogitStore.open(store.location)
    assert again.require_complete()
    assert verify(store.location).ok
    assert distances(again, store) == 0


def distances(first: LogitStore, second: LogitStore) -> int:
    return sum(
        a != b for a, b in zip(first.content_digests(), second.content_digests(), strict=True)
    )


def test_stores_written_now_are_read_by_that_reader(tmp_path: Path) -> None:
    store = make_complete(tmp_path / "store")
    read = read_store(tmp_path / "store")
    rows = np.arange(store.manifest.dataset.rows)
    for view in range(2):
        answers = store.manifest.coding.dequantise(RowReader(store, view).rows(rows))
        for name in FIELDS:
            np.testing.assert_allclose(read[name][:, view], getattr(answers, name), rtol=1e-6)
