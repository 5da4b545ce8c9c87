import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from small_store import (
    BLOCK,
    ROWS,
    VIEWS,
    answers_of,
    create,
    make_complete,
    make_manifest,
    write,
)

from distill.errors import (
    CorruptStoreError,
    IncompleteStoreError,
    StoreError,
    StoreMismatchError,
)
from distill.store.format import commits, finishing
from distill.store.format.chunks import chunk_key, write_chunks
from distill.store.format.codes import ANSWER_ARRAYS
from distill.store.format.manifest import DatasetIdentity, Manifest, ViewIdentity, digest_of_json
from distill.store.format.root import claim_of, group_document
from distill.store.logit_store import LogitStore
from distill.store.places.objects import Objects
from distill.store.summary import summarise
from distill.store.upkeep.verify import verify
from distill.targets.encoding import EncodingSpec


@pytest.fixture
def complete(tmp_path: Path) -> LogitStore:
    return make_complete(tmp_path / "store")


def test_rows_come_back_as_written(complete: LogitStore) -> None:
    store = LogitStore.open(complete.location)
    commits = store.block_commits()
    for block in range(store.manifest.num_blocks):
        for view in range(VIEWS):
            written = answers_of(store.manifest, block, view)
            codes = store.read_codes(block, view, commits[block])
            read = store.manifest.coding.dequantise(codes)
            assert (read.prob == written.prob).all()
            np.testing.assert_allclose(read.confidence, written.confidence, atol=1e-4)
            np.testing.assert_allclose(read.sq_norm, written.sq_norm, atol=5e-4)


def test_plain_zarr_opens_it_and_its_attributes_explain_the_arrays(complete: LogitStore) -> None:
    group: Any = zarr.open_group(complete.location, mode="r")
    assert group.metadata.zarr_format == 3
    arrays = dict(group.arrays())
    assert {*arrays} == {*ANSWER_ARRAYS, "sample_id", "label", "hierarchy"}
    assert all(len(array.attrs["description"]) > 20 for array in arrays.values())
    assert arrays["index"].shape == (ROWS, VIEWS, 15)
    assert arrays["index"].chunks == (BLOCK, 1, 15)
    assert arrays["index"].shards == (BLOCK, VIEWS, 15)
    assert arrays["prob"].metadata.dimension_names == ("row", "view", "slot")
    # The formula in the attributes decodes the codes, with nothing of ours.
    for block in range(4):
        rows = complete.manifest.rows_of_block(block)
        codes = arrays["prob"][rows.start : rows.stop, 1].astype(np.float32)
        values = eval(str(arrays["prob"].attrs["decode"]), {"code": codes})
        np.testing.assert_allclose(values, answers_of(complete.manifest, block, 1).prob, rtol=1e-6)
    assert group.attrs["distill"]["teacher"]["name"] == "t"
    assert (arrays["label"][:] == complete.labels).all()
    assert (arrays["sample_id"][:] == complete.sample_ids).all()


def test_only_missing_blocks_are_pending(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    write(store, [2, 0])
    reopened = LogitStore.open(store.location)
    assert reopened.pending_blocks() == [1, 3]
    with pytest.raises(IncompleteStoreError, match="2 of 4 blocks are missing"):
        reopened.require_complete()
    with pytest.raises(IncompleteStoreError):
        reopened.finish()
    summary = summarise(reopened)
    assert (summary.complete, summary.blocks) == (False, (2, 4))


def test_chunks_without_a_commit_do_not_count(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    write(store, range(4))
    record = tmp_path / "store" / "commits" / "00000001" / "zarr.json"
    record.unlink()  # and leave the empty folder, as a kill between the two may
    assert LogitStore.open(store.location).pending_blocks() == [1]


def test_order_of_writing_does_not_matter(
    tmp_path: Path, tree_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    contents = []
    for name, order in (("a", [0, 1, 2, 3]), ("b", [3, 1, 1, 0, 2])):
        store = create(tmp_path / name)
        write(store, order)
        files = tree_bytes(tmp_path / name)
        contents.append({f: b for f, b in files.items() if not f.startswith("commits/0")})
    assert contents[0] == contents[1]


def test_finishing_compacts_the_commits(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    write(store, range(4))
    records, digests = store.records(), store.content_digests()
    store.finish()
    assert store.records() == records
    assert store.content_digests() == digests
    left = sorted(p.name for p in (tmp_path / "store" / "commits").iterdir())
    assert [name[0] for name in left] == ["g", "z"]
    again = LogitStore.open(store.location)
    assert again.finish() == again.require_complete() == store.require_complete()


def filled(folder: Path) -> LogitStore:
    store = create(folder)
    write(store, range(4))
    return store


@pytest.fixture
def read_back(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a store is read back to be finished."""
    monkeypatch.setattr(finishing, "LOOK_S", 0.05)
    times: list[int] = []
    look = LogitStore.damaged_blocks

    def slowly(store: LogitStore, stopping: Callable[[], bool] = lambda: False) -> list[int]:
        times.append(1)
        time.sleep(0.5)
        return look(store, stopping)

    monkeypatch.setattr(LogitStore, "damaged_blocks", slowly)
    return times


def test_of_finishers_side_by_side_one_reads_the_store_back(
    tmp_path: Path, read_back: list[int]
) -> None:
    filled(tmp_path / "store")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: LogitStore.open(tmp_path / "store").finish(), range(8)))
    assert len(read_back) == 1
    assert all(certificate == found[0] for certificate in found)
    assert not (tmp_path / "store" / finishing.KEY).exists()


def test_whoever_gets_the_turn_after_the_end_does_nothing(tmp_path: Path) -> None:
    """Asked before another ended, looked for its word after that."""
    objects = create(tmp_path / "store").objects
    done = iter([False, True])
    with finishing.sole_finisher(objects, lambda: next(done), print) as mine:
        assert not mine
    assert objects.read(finishing.KEY) is None


def test_who_waits_does_not_read_what_another_found_damaged(
    tmp_path: Path, read_back: list[int]
) -> None:
    store = filled(tmp_path / "store")
    (tmp_path / "store" / chunk_key("prob", 2)).write_bytes(b"torn")

    def finish(_: int) -> str:
        with pytest.raises(IncompleteStoreError) as refused:
            LogitStore.open(store.location).finish()
        return str(refused.value)

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(finish, range(4)))
    assert len(read_back) == 1
    assert sum("1 committed blocks are damaged" in line for line in said) == 1
    assert sum("1 of 4 blocks are missing" in line for line in said) == 3


def test_a_finisher_that_was_taken_for_dead_ends_like_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads back when the other one compacts the commits."""
    store = filled(tmp_path / "store")
    records = commits.read_records
    monkeypatch.setattr(finishing, "LOOK_S", 0.05)

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(commits, "read_records", records)
        store.objects.delete([finishing.KEY])
        LogitStore.open(store.location).finish()
        return records(*arguments)

    monkeypatch.setattr(commits, "read_records", late)
    assert store.finish() == LogitStore.open(store.location).require_complete()


HERE = {"host": socket.gethostname(), "space": finishing._space()}


@pytest.mark.parametrize("other", [{"host": "elsewhere", "space": "boot 1"}, {"space": ""}, {}])
def test_a_finisher_that_died_is_waited_for_a_while_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    """Its number says that it died where numbers mean the same: on this machine, here."""
    store = filled(tmp_path / "store")
    died = subprocess.Popen(["true"])
    died.wait()
    word = {**HERE, **other, "process": died.pid, "turn": "1", "beat": 3}
    store.objects.write(finishing.KEY, group_document(word))
    monkeypatch.setattr(finishing, "LOOK_S", 0.05)
    monkeypatch.setattr(finishing, "SILENCE_S", 0.5 if other else 60.0)
    begun, said = time.monotonic(), list[str]()
    assert store.finish(say=said.append)
    taken = time.monotonic() - begun
    assert taken > 0.5 if other else taken < 30.0
    assert len(said) == 1
    assert f"process {died.pid} on" in said[0]


def test_who_waits_or_finishes_hears_that_it_should_stop(
    tmp_path: Path, read_back: list[int]
) -> None:
    store = filled(tmp_path / "store")
    store.objects.write(finishing.KEY, group_document({"process": 1, "beat": 0}))
    asked: list[int] = []
    with pytest.raises(IncompleteStoreError, match="no block is missing"):
        store.finish(stopping=lambda: bool(asked.append(1)) or len(asked) > 3)
    assert not read_back
    store.objects.delete([finishing.KEY])
    with pytest.raises(IncompleteStoreError, match="no block is missing"):
        store.finish(stopping=lambda: len(read_back) > 0)
    assert store.certificate is None
    assert store.finish()


def test_a_writer_that_started_before_the_store_was_finished_changes_nothing(
    tmp_path: Path, tree_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    early = create(tmp_path / "store")
    make_complete(tmp_path / "store")
    before = tree_bytes(tmp_path / "store")
    write(early, range(4))
    assert early.pending_blocks() == []
    assert tree_bytes(tmp_path / "store") == before


def test_processes_write_blocks_of_one_store_some_of_them_twice(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    command = [sys.executable, Path(__file__).parents[1] / "child.py", "write", store.location]
    writers = [subprocess.Popen([*command, str(block)]) for block in (0, 1, 2, 3, 1, 3)]
    assert [writer.wait() for writer in writers] == [0] * 6
    store.finish()
    for block, commit in store.block_commits().items():
        for view in range(VIEWS):
            store.read_codes(block, view, commit)


def test_of_two_writers_that_differ_the_record_tells_what_the_chunks_hold(tmp_path: Path) -> None:
    """Other hardware may round the last bit another way; the store must not contradict itself."""
    store = create(tmp_path / "store")
    write(store, [0])
    theirs = [answers_of(store.manifest, 0, view) for view in range(VIEWS)]
    ours = [replace(a, prob=np.where(a.prob > 0.5, a.prob - 0.01, a.prob)) for a in theirs]
    record = tmp_path / "store" / "commits" / "00000000" / "zarr.json"
    kept = record.read_bytes()
    record.unlink()

    def commit_of_the_other(*_: Any) -> bool:
        record.parent.mkdir(exist_ok=True)
        record.write_bytes(kept)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.store.format.commits.write_record", commit_of_the_other)
        store.write_block(0, ours, {"bad": []})
    for view in range(VIEWS):
        store.read_codes(0, view, store.block_commits()[0])


def test_creating_twice_gives_the_same_store(tmp_path: Path) -> None:
    first = create(tmp_path / "store")
    write(first, [0])
    again = create(tmp_path / "store")
    assert again.pending_blocks() == [1, 2, 3]
    other = make_manifest(encoding=EncodingSpec(entries=(2, 2, 2, 2)))
    with pytest.raises(StoreError, match="another process made another store"):
        create(tmp_path / "store", other)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_what_a_killed_creation_left_is_written_over(tmp_path: Path) -> None:
    whole = create(tmp_path / "whole")
    shutil.copytree(whole.location, tmp_path / "torn")
    (tmp_path / "torn" / "zarr.json").unlink()
    (tmp_path / "torn" / "claim").mkdir()
    (tmp_path / "torn" / "claim" / "zarr.json").write_bytes(claim_of(whole.manifest))
    (tmp_path / "torn" / "index" / "zarr.json").write_text("{")
    assert create(tmp_path / "torn").pending_blocks() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "content",
    ["", "{", "{}", "[]", '{"zarr_format": 3, "node_type": "group", "attributes": {"distill": 1}}'],
)
def test_torn_root_is_named(complete: LogitStore, content: str) -> None:
    Path(complete.location, "zarr.json").write_text(content)
    with pytest.raises(CorruptStoreError):
        LogitStore.open(complete.location)


def edit(store: LogitStore, key: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = Path(store.location, key)
    document = json.loads(path.read_text())
    change(document["attributes"])
    path.write_text(json.dumps(document))


def test_manifest_with_parts_missing_is_named(complete: LogitStore) -> None:
    whole = Path(complete.location, "zarr.json").read_bytes()
    for part in ("teacher", "encoding", "block_rows", "format"):
        Path(complete.location, "zarr.json").write_bytes(whole)
        edit(complete, "zarr.json", lambda a, part=part: a["distill"].pop(part))  # type: ignore[misc]
        with pytest.raises(CorruptStoreError, match="damaged manifest"):
            LogitStore.open(complete.location)


@pytest.mark.parametrize(
    ("version", "what"),
    [(99, "this distill reads up to 3; upgrade distill"), (1, "a draft from before the first")],
)
def test_other_format_versions_say_what_to_do(
    complete: LogitStore, version: int, what: str
) -> None:
    edit(complete, "zarr.json", lambda a: a["distill"].update(format=f"distill-store/{version}"))
    with pytest.raises(StoreError, match=what) as caught:
        LogitStore.open(complete.location)
    assert not isinstance(caught.value, CorruptStoreError)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a["distill"]["dataset"].update(rows=49),
        lambda a: a["distill"]["encoding"].update(prob_steps=190),
        lambda a: a["certificate"].update(fidelity={"gradient_angle_deg": 0.0}),
        lambda a: a.pop("seal"),
        lambda a: a.update(note="mine"),
    ],
)
def test_root_edited_by_hand_is_found(complete: LogitStore, change: Any) -> None:
    edit(complete, "zarr.json", change)
    with pytest.raises(CorruptStoreError, match="damaged or edited"):
        LogitStore.open(complete.location)


@pytest.mark.parametrize("name", [*ANSWER_ARRAYS, "sample_id", "label", "hierarchy", "commits"])
def test_documents_edited_or_missing_are_named(complete: LogitStore, name: str) -> None:
    edit(complete, f"{name}/zarr.json", lambda a: a.update(note="mine"))
    with pytest.raises(CorruptStoreError, match=f"{name}/zarr.json is missing or not what was"):
        LogitStore.open(complete.location)
    Path(complete.location, name, "zarr.json").unlink()
    with pytest.raises(CorruptStoreError, match=f"{name}/zarr.json is missing or not what was"):
        LogitStore.open(complete.location)


@pytest.mark.parametrize("key", ["content_sha256", "bad", "record_sha256", "store", "chunk_bytes"])
def test_damaged_commit_record_is_named(tmp_path: Path, key: str) -> None:
    store = create(tmp_path / "store")
    write(store, range(4))
    edit(store, "commits/00000001/zarr.json", lambda a: a.pop(key))
    with pytest.raises(CorruptStoreError, match="commits/00000001 is damaged"):
        store.content_digests()
    assert store.damaged_blocks() == [1]


def test_places_without_a_store_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store there"):
        LogitStore.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CorruptStoreError, match=r"no zarr\.json"):
        LogitStore.open(tmp_path)
    with pytest.raises(StoreError, match=r"holds notes\.txt, expected an empty place"):
        create(tmp_path)
    zarr.create_group(tmp_path / "other")
    with pytest.raises(CorruptStoreError, match="not a distill store"):
        LogitStore.open(tmp_path / "other")
    with pytest.raises(StoreError, match="unknown kind of location"):
        LogitStore.open("ftp://host/store")


@pytest.mark.parametrize(
    ("expectation", "what"),
    [
        ({"teacher_fingerprint": "0" * 64}, "teacher ffffffffffff found"),
        ({"hierarchy_digest": "0" * 64}, "hierarchy"),
        ({"dataset": DatasetIdentity(digest="0" * 64, rows=49)}, r"dataset .* \(50 rows\) found"),
        (
            {"views": ViewIdentity(count=3, policy={"name": "augmented"})},
            r"\(views 0 to 1, name=aug",
        ),
        ({"encoding": EncodingSpec(entries=(8, 8, 8, 3))}, "encoding"),
    ],
)
def test_other_identities_are_refused(
    complete: LogitStore, expectation: dict[str, Any], what: str
) -> None:
    with pytest.raises(StoreMismatchError, match=what):
        complete.manifest.require("here", **expectation)


def test_identity_ignores_provenance_only() -> None:
    manifest = make_manifest()
    assert replace(manifest, provenance={"torch": "9"}).identity == manifest.identity
    assert replace(manifest, block_rows=17).identity != manifest.identity
    assert Manifest.from_json(manifest.to_json(), "x") == manifest


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update(documents=["x"]),
        lambda a: a["documents"].update({"../../etc/passwd": "0"}),
        lambda a: a.update(revoked=3),
        lambda a: a.update(generation=7),
        lambda a: a.update(compacted_sha256={}),
        lambda a: a.update(certificate="yes"),
        lambda a: a.update(certificate={}),
        lambda a: a["distill"]["dataset"].update(rows=50.5),
        lambda a: a["distill"]["dataset"].update(rows=10**15),
        lambda a: a["distill"]["views"].update(policy="x"),
        lambda a: a["distill"]["views"].update(first="0"),
        lambda a: a["distill"]["teacher"].update(fingerprint=4),
        lambda a: a["distill"].update(provenance=[]),
        lambda a: a["distill"]["encoding"].update(entries=[4, 4, 4]),
    ],
)
def test_impossible_values_are_found_even_under_a_seal_that_matches(
    complete: LogitStore, change: Any
) -> None:
    def change_and_seal(attributes: dict[str, Any]) -> None:
        attributes.pop("seal")
        change(attributes)
        attributes["seal"] = digest_of_json(attributes)

    edit(complete, "zarr.json", change_and_seal)
    with pytest.raises(CorruptStoreError):
        LogitStore.open(complete.location)


def test_documents_edited_while_blocks_are_computed_are_not_certified(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    write(store, range(4))
    edit(store, "prob/zarr.json", lambda a: a.update(decode="code / 255"))
    with pytest.raises(CorruptStoreError, match=r"prob/zarr\.json is missing or not what"):
        store.finish()
    assert store.certificate is None


def test_a_second_creator_with_another_manifest_harms_nothing(
    tmp_path: Path, tree_bytes: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked before the first one was done, and so thinks the place is empty."""
    store = create(tmp_path / "store")
    before = tree_bytes(tmp_path / "store")
    monkeypatch.setattr(Objects, "names", lambda self, folder="": [])
    other = make_manifest(encoding=EncodingSpec(entries=(2, 2, 2, 2)))
    with pytest.raises(StoreError, match="another process made another store there"):
        create(tmp_path / "store", other)
    assert tree_bytes(tmp_path / "store") == before
    Path(store.location, "zarr.json").unlink()  # as if the first one were still at it
    store.objects.write("claim/zarr.json", b"of the first one")
    with pytest.raises(StoreError, match="another store is being made there"):
        create(tmp_path / "store", other)


def other_rounding(store: LogitStore, block: int) -> list[Any]:
    said = [answers_of(store.manifest, block, view) for view in range(VIEWS)]
    return [replace(a, prob=np.where(a.prob > 0.5, a.prob - 0.01, a.prob)) for a in said]


def test_a_late_writer_of_other_roundings_does_not_spoil_a_finished_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw the block pending; by the time it writes, the store is finished."""
    late = create(tmp_path / "store")
    make_complete(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(LogitStore, "is_pending", lambda self, block: True)
        late.write_block(3, other_rounding(late, 3), {"bad": []})
    store = LogitStore.open(tmp_path / "store")
    assert store.pending_blocks() == []
    store.finish()
    assert verify(store.location).ok
    assert verify(store.location).complete


def test_writers_that_differ_and_interleave_leave_a_block_of_one_of_them(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    write(store, [0])
    times = 0

    def write_and_let_the_other_in(*arguments: Any) -> Any:
        nonlocal times
        times += 1
        sizes = write_chunks(*arguments)
        if times == 1:
            store.objects.write(chunk_key("prob", 0), theirs)
        return sizes

    theirs = store.objects.read(chunk_key("prob", 0)) or b""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogitStore, "is_pending", lambda self, block: True)
        patch.setattr("distill.store.logit_store.write_chunks", write_and_let_the_other_in)
        store.write_block(0, other_rounding(store, 0), {"bad": []})
    assert times == 2
    write(store, range(1, 4))
    store.finish()
    assert verify(store.location).ok
