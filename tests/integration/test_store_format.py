"""The format's promise: what one version wrote, every later one reads, and so can anybody."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from format_reader import read_store
from small_store import HIERARCHY, make_complete

from distill.hierarchy.semantic import SemanticHierarchy
from store.logit_store import LogitStore
from store.upkeep.algebra import RowReader
from store.upkeep.verify import verify

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("v*"))
FIELDS = ("index", "prob", "confidence", "sq_norm", "valid")


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    shutil.copytree(request.param / "store", tmp_path / "store")
    with np.load(request.param / "expected.npz") as expected:
        return tmp_path / "store", dict(expected)


def test_there_is_a_golden_store() -> None:
    assert [path.name for path in GOLDEN] == ["v2"]


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


def test_stores_written_now_are_read_by_that_reader(tmp_path: Path) -> None:
    store = make_complete(tmp_path / "store")
    read = read_store(tmp_path / "store")
    rows = np.arange(store.manifest.dataset.rows)
    for view in range(2):
        answers = store.manifest.coding.dequantise(RowReader(store, view).rows(rows))
        for name in FIELDS:
            np.testing.assert_allclose(read[name][:, view], getattr(answers, name), rtol=1e-6)
