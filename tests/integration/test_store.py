import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from distill.answers import Answers
from distill.encoding import EncodingSpec
from distill.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    StoreError,
    StoreMismatchError,
)
from distill.hierarchy import SemanticHierarchy
from distill.sample_id import ascending, sample_ids
from distill.targets import encode
from store.codes import dequantise
from store.logit_store import LogitStore
from store.manifest import (
    DatasetIdentity,
    HierarchyIdentity,
    Manifest,
    TeacherIdentity,
    ViewIdentity,
)
from store.resident import open_resident_view
from store.summary import confidence_by_hierarchy, summarise

ROWS, VIEWS, BLOCK = 50, 2, 16


@pytest.fixture
def manifest(hierarchy: SemanticHierarchy) -> Manifest:
    return Manifest(
        teacher=TeacherIdentity(
            name="t", fingerprint="f" * 64, input_size=(32, 32), precision="float32"
        ),
        hierarchy=HierarchyIdentity(
            name=hierarchy.name,
            digest=hierarchy.digest,
            num_classes=hierarchy.num_classes,
            classes_per_hierarchy=hierarchy.classes_per_hierarchy,
        ),
        dataset=DatasetIdentity(digest="d" * 64, rows=ROWS),
        views=ViewIdentity(count=VIEWS, policy={"name": "augmented"}),
        encoding=EncodingSpec(entries=4),
        block_rows=BLOCK,
    )


def answers(manifest: Manifest, hierarchy: SemanticHierarchy, block: int, view: int) -> Answers:
    generator = torch.Generator().manual_seed(1000 * block + view)
    logits = torch.randn(len(manifest.rows_of_block(block)), 29, generator=generator) * 4
    return encode(logits, hierarchy, manifest.encoding).to_answers()


def create(path: Path, manifest: Manifest, hierarchy: SemanticHierarchy) -> LogitStore:
    ids = sample_ids([f"key{i}" for i in range(ROWS)])
    labels = np.arange(ROWS, dtype=np.int64) % 30 - 1
    return LogitStore.create(
        path, manifest, ids=ids[ascending(ids)], labels=labels, hierarchy=hierarchy.to_json()
    )


def write(store: LogitStore, hierarchy: SemanticHierarchy, blocks: list[int] | range) -> None:
    for block in blocks:
        views = [answers(store.manifest, hierarchy, block, view) for view in range(VIEWS)]
        store.write_block(block, views, {"bad": []})


@pytest.fixture
def complete(tmp_path: Path, manifest: Manifest, hierarchy: SemanticHierarchy) -> LogitStore:
    store = create(tmp_path / "store", manifest, hierarchy)
    write(store, hierarchy, range(manifest.num_blocks))
    store.finish({"fidelity": None, "replay": {}})
    return store


def test_rows_come_back_as_written(complete: LogitStore, hierarchy: SemanticHierarchy) -> None:
    store = LogitStore.open(complete.path)
    digests = store.require_complete()["content_sha256"]
    for block in range(store.manifest.num_blocks):
        for view in range(VIEWS):
            written = answers(store.manifest, hierarchy, block, view)
            codes = store.read_codes(block, view, digests[block][view])
            read = dequantise(codes, store.manifest.encoding)
            np.testing.assert_allclose(read.prob, written.prob, rtol=2e-3)
            np.testing.assert_allclose(read.confidence, written.confidence, atol=1e-5)
            np.testing.assert_allclose(read.sq_norm, written.sq_norm, atol=1e-5)


def test_plain_zarr_opens_it_and_its_attributes_explain_the_arrays(
    complete: LogitStore, hierarchy: SemanticHierarchy
) -> None:
    group: Any = zarr.open_group(complete.path, mode="r")
    assert group.metadata.zarr_format == 3
    arrays = dict(group.arrays())
    assert {*arrays} == {
        *("index", "prob", "confidence", "sq_norm", "valid", "sample_id", "label"),
    }
    assert all(len(array.attrs["description"]) > 20 for array in arrays.values())
    assert arrays["index"].chunks == (BLOCK, 1, 15)
    assert arrays["prob"].metadata.dimension_names == ("row", "view", "slot")
    # The formula in the attributes decodes the codes, with nothing of ours.
    table = complete.quantise(answers(complete.manifest, hierarchy, 0, 0))
    code = int(table.prob[0, 0])
    value = eval(str(arrays["prob"].attrs["decode"]), {"code": code})
    assert value == pytest.approx(
        float(answers(complete.manifest, hierarchy, 0, 0).prob[0, 0]), rel=2e-3
    )
    assert group.attrs["distill"]["teacher"]["name"] == "t"


def test_only_missing_blocks_are_pending(
    tmp_path: Path, manifest: Manifest, hierarchy: SemanticHierarchy
) -> None:
    store = create(tmp_path / "store", manifest, hierarchy)
    write(store, hierarchy, [2, 0])
    reopened = LogitStore.open(store.path)
    assert reopened.pending_blocks() == [1, 3]
    with pytest.raises(IncompleteStoreError, match="2 of 4 blocks are missing"):
        reopened.require_complete()
    with pytest.raises(IncompleteStoreError):
        reopened.finish({})
    summary = summarise(reopened)
    assert (summary.complete, summary.blocks) == (False, (2, 4))


def test_chunks_without_a_commit_do_not_count(
    tmp_path: Path, manifest: Manifest, hierarchy: SemanticHierarchy
) -> None:
    store = create(tmp_path / "store", manifest, hierarchy)
    write(store, hierarchy, range(manifest.num_blocks))
    shutil.rmtree(store.path / "commits" / "00000001")
    assert LogitStore.open(store.path).pending_blocks() == [1]


def test_order_of_writing_does_not_matter(
    tmp_path: Path,
    manifest: Manifest,
    hierarchy: SemanticHierarchy,
    tree_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    contents = []
    for name, order in (("a", [0, 1, 2, 3]), ("b", [3, 1, 1, 0, 2])):
        store = create(tmp_path / name, manifest, hierarchy)
        write(store, hierarchy, order)
        files = tree_bytes(store.path)
        contents.append({f: b for f, b in files.items() if not f.startswith("commits/0")})
    assert contents[0] == contents[1]


def test_processes_write_different_blocks_of_one_store(
    tmp_path: Path, manifest: Manifest, hierarchy: SemanticHierarchy
) -> None:
    store = create(tmp_path / "store", manifest, hierarchy)
    command = [sys.executable, __file__, str(store.path)]
    writers = [subprocess.Popen([*command, str(block)]) for block in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    store.finish({"fidelity": None, "replay": {}})
    digests = store.require_complete()["content_sha256"]
    for block in range(4):
        store.read_codes(block, 1, digests[block][1])


def test_creating_twice_gives_the_same_store(
    tmp_path: Path, manifest: Manifest, hierarchy: SemanticHierarchy
) -> None:
    first = create(tmp_path / "store", manifest, hierarchy)
    write(first, hierarchy, [0])
    again = create(tmp_path / "store", manifest, hierarchy)
    assert again.pending_blocks() == [1, 2, 3]
    other = replace(manifest, encoding=EncodingSpec(entries=2))
    with pytest.raises(StoreError, match="another process made another store"):
        create(tmp_path / "store", other, hierarchy)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
@pytest.mark.parametrize("array", ["index", "prob", "confidence", "sq_norm"])
def test_damaged_chunks_are_found(complete: LogitStore, array: str, damage: str) -> None:
    (chunk,) = [p for p in (complete.path / array / "c" / "1" / "0").rglob("*") if p.is_file()]
    content = bytearray(chunk.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0x10
        chunk.write_bytes(content)
    elif damage == "cut":
        chunk.write_bytes(content[:-3])
    else:
        chunk.unlink()
    store = LogitStore.open(complete.path)
    digests = store.require_complete()["content_sha256"]
    with pytest.raises(CorruptStoreError, match="block 1 of view 0"):
        store.read_codes(1, 0, digests[1][0])
    store.read_codes(0, 0, digests[0][0])
    with pytest.raises(CorruptStoreError):
        open_resident_view(store, 0, complete.path.parent / "cache")
    left = [p.suffix for p in (complete.path.parent / "cache").iterdir()]
    assert left == [".lock"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "{}", "[]", '{"zarr_format": 3, "node_type": "group", "attributes": {"distill": 1}}'],
)
def test_torn_root_is_named(complete: LogitStore, content: str) -> None:
    (complete.path / "zarr.json").write_text(content)
    with pytest.raises(CorruptStoreError):
        LogitStore.open(complete.path)


def test_manifest_of_another_format_or_with_parts_missing_is_named(complete: LogitStore) -> None:
    root = complete.path / "zarr.json"
    whole = json.loads(root.read_text())
    for key in ("teacher", "encoding", "block_rows", "format"):
        torn = json.loads(json.dumps(whole))
        del torn["attributes"]["distill"][key]
        root.write_text(json.dumps(torn))
        with pytest.raises(CorruptStoreError, match="damaged manifest"):
            LogitStore.open(complete.path)
    whole["attributes"]["distill"]["format"] = "distill-store/9"
    root.write_text(json.dumps(whole))
    with pytest.raises(CorruptStoreError, match="expected 'distill-store/1'"):
        LogitStore.open(complete.path)


@pytest.mark.parametrize("key", ["content_sha256", "fidelity", "replay"])
def test_damaged_certificate_is_named(complete: LogitStore, key: str) -> None:
    root = complete.path / "zarr.json"
    torn = json.loads(root.read_text())
    del torn["attributes"]["certificate"][key]
    root.write_text(json.dumps(torn))
    with pytest.raises(CorruptStoreError, match="the certificate is damaged"):
        LogitStore.open(complete.path).require_complete()


@pytest.mark.parametrize("key", ["content_sha256", "bad"])
def test_damaged_commit_record_is_named(complete: LogitStore, key: str) -> None:
    record = complete.path / "commits" / "00000001" / "zarr.json"
    torn = json.loads(record.read_text())
    del torn["attributes"][key]
    record.write_text(json.dumps(torn))
    with pytest.raises(CorruptStoreError, match="not a whole commit record"):
        complete.pending_blocks()


def test_places_without_a_store_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store there"):
        LogitStore.open(tmp_path / "nowhere")
    with pytest.raises(CorruptStoreError, match=r"no zarr\.json"):
        LogitStore.open(tmp_path)
    zarr.create_group(tmp_path / "other")
    with pytest.raises(CorruptStoreError, match="not a distill store"):
        LogitStore.open(tmp_path / "other")


@pytest.mark.parametrize(
    ("expectation", "what"),
    [
        ({"teacher_fingerprint": "0" * 64}, "teacher ffffffffffff found"),
        ({"hierarchy_digest": "0" * 64}, "hierarchy"),
        (
            {"dataset": DatasetIdentity(digest="0" * 64, rows=49)},
            r"dataset dddddddddddd \(50 rows\)",
        ),
        ({"views": ViewIdentity(count=3, policy={"name": "augmented"})}, r"\(2 views, name=aug"),
        ({"encoding": EncodingSpec()}, "encoding"),
    ],
)
def test_other_identities_are_refused(
    complete: LogitStore, expectation: dict[str, Any], what: str
) -> None:
    with pytest.raises(StoreMismatchError, match=what):
        complete.manifest.require("here", **expectation)


def test_identity_ignores_provenance_only(manifest: Manifest) -> None:
    assert replace(manifest, provenance={"torch": "9"}).identity == manifest.identity
    assert replace(manifest, block_rows=17).identity != manifest.identity
    assert Manifest.from_json(manifest.to_json(), "x") == manifest


def test_resident_view_gathers_any_rows(
    complete: LogitStore, hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    view = open_resident_view(complete, 1, complete.path.parent / "cache")
    everything = [complete.quantise(answers(complete.manifest, hierarchy, b, 1)) for b in range(4)]
    rows = random.integers(0, ROWS, 200)
    gathered = view.gather(rows)
    for name in ("index", "prob", "confidence", "sq_norm", "valid"):
        column = np.concatenate([getattr(codes, name) for codes in everything])
        assert (view.records[name][rows] == column[rows]).all()
    assert gathered.prob.dtype == np.float32
    assert gathered.prob.max() <= 1


def test_resident_view_is_built_once_and_rebuilt_when_torn(complete: LogitStore) -> None:
    cache = complete.path.parent / "cache"
    open_resident_view(complete, 0, cache)
    (built,) = cache.glob("*.rows")
    stamp, size = built.stat().st_mtime_ns, built.stat().st_size
    open_resident_view(complete, 0, cache)
    assert built.stat().st_mtime_ns == stamp
    built.write_bytes(b"torn")
    view = open_resident_view(complete, 0, cache)
    assert built.stat().st_size == size
    assert len(view.records) == ROWS


def test_a_builder_that_died_leaves_nothing_trusted(complete: LogitStore) -> None:
    cache = complete.path.parent / "cache"
    open_resident_view(complete, 0, cache)
    (built,) = cache.glob("*.rows")
    whole = built.read_bytes()
    built.rename(built.with_name(built.name + ".0123.building"))
    open_resident_view(complete, 0, cache)
    assert built.read_bytes() == whole


def test_view_that_is_not_there_is_named(complete: LogitStore) -> None:
    with pytest.raises(StoreError, match="view 2 asked for, expected 0 to 1"):
        open_resident_view(complete, 2, complete.path.parent / "cache")


def test_cache_that_cannot_be_written_is_named(complete: LogitStore) -> None:
    blocked = complete.path.parent / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="pass another --cache"):
        open_resident_view(complete, 0, blocked)


def test_summary_equals_numpy_over_all_rows(
    complete: LogitStore, hierarchy: SemanticHierarchy
) -> None:
    rows = confidence_by_hierarchy(complete, hierarchy.label_table)
    confidence = np.concatenate(
        [
            answers(complete.manifest, hierarchy, block, view).confidence
            for block in range(4)
            for view in range(VIEWS)
        ]
    )
    labelled = (hierarchy.label_table[complete.labels] >= 0).mean(0)
    for row in rows:
        column = confidence[:, row.hierarchy]
        assert row.confidence_mean == pytest.approx(column.mean(), abs=1e-5)
        expected = np.quantile(column, [0.05, 0.25, 0.5, 0.75, 0.95], method="inverted_cdf")
        np.testing.assert_allclose(row.confidence_quantiles, expected, atol=2e-5)
        assert row.labelled == pytest.approx(labelled[row.hierarchy])
        assert row.kept_entries == pytest.approx(min(4, row.classes), abs=0.2)


if __name__ == "__main__":  # one writer of the test with several processes
    figures = SemanticHierarchy.bundled("plane-figures")
    write(LogitStore.open(Path(sys.argv[1])), figures, [int(sys.argv[2])])
