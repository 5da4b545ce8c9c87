"""Stores from stores: merge, subset, transcode, diff, repair, verify with the teacher, plan."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same_store import arrays, assert_same_arrays
from small_store import VIEWS, answers_of, create, make_complete, make_manifest, write

from distill.data.source import open_source
from distill.data.view_policy import ViewPolicy
from distill.errors import CorruptStoreError, StoreError, StoreMismatchError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.format.codes import FIELDS, Codes
from distill.store.format.manifest import ViewIdentity
from distill.store.logit_store import LogitStore
from distill.store.upkeep.algebra import merge, subset
from distill.store.upkeep.reader import RowReader
from distill.store.upkeep.verify import verify
from distill.targets.encoding import PRESETS, EncodingSpec
from distill.trainers.sources.replay import check_replay
from distill.trainers.sources.store import stored_proofs

Command = Callable[..., list[str]]


def test_merge_joins_blocks_of_several_machines(
    tmp_path: Path,
    distill,  # type: ignore[no-untyped-def]
) -> None:
    whole = make_complete(tmp_path / "whole")
    for name, blocks in (("a", [0, 2]), ("b", [1, 2]), ("c", [3])):
        write(create(tmp_path / name), blocks)
    some = ("store", "merge", tmp_path / "a", tmp_path / "b")
    report = json.loads(distill(*some, "--out", tmp_path / "most", "--json").out)
    assert (report["complete"], report["blocks"]) == (False, [3, 4])
    ran = distill("store", "merge", tmp_path / "most", tmp_path / "c", "--out", tmp_path / "all")
    assert ran.code == 0
    assert_same_arrays(whole.location, tmp_path / "all")
    merged = LogitStore.open(tmp_path / "all")
    assert merged.manifest.identity == whole.manifest.identity
    assert merged.require_complete() == whole.require_complete()
    lineage = merged.manifest.provenance["lineage"]
    assert lineage["command"] == "merge"
    assert [s["store"] for s in lineage["sources"]] == [str(tmp_path / n) for n in ("most", "c")]
    assert lineage["before"][0]["command"] == "merge"


def views_of(first: int, count: int) -> Any:
    return make_manifest(views=views_identity(count, first))


def test_merge_joins_views_in_their_order(tmp_path: Path) -> None:
    later = make_complete(tmp_path / "later", views_of(2, 1))
    first = make_complete(tmp_path / "first", views_of(0, 2))
    whole = make_complete(tmp_path / "whole", views_of(0, 3))
    merged = merge(tmp_path / "merged", [later, first])
    assert merged.manifest.identity == whole.manifest.identity
    assert_same_arrays(tmp_path / "merged", tmp_path / "whole")


def test_subset_and_merge_of_samples_are_inverse(tmp_path: Path) -> None:
    whole = make_complete(tmp_path / "whole")
    chosen = np.random.default_rng(0).random(50) < 0.4
    parts = [
        subset(tmp_path / name, whole, rows=np.flatnonzero(mask))
        for name, mask in (("chosen", chosen), ("others", ~chosen))
    ]
    assert parts[0].manifest.dataset.rows == chosen.sum()
    kept = arrays(tmp_path / "chosen")
    for name, values in arrays(tmp_path / "whole").items():
        if name not in ("confidence", "sq_norm"):
            assert (kept[name] == values[chosen]).all(), name
    back = merge(tmp_path / "back", parts[::-1])
    assert back.manifest.identity == whole.manifest.identity
    assert_same_arrays(tmp_path / "back", tmp_path / "whole")


def test_subset_takes_views_and_keys_and_classes(
    tmp_path: Path,
    fails,  # type: ignore[no-untyped-def]
    distill,  # type: ignore[no-untyped-def]
) -> None:
    whole = make_complete(tmp_path / "whole")
    command = ("store", "subset", tmp_path / "whole", "--out")
    assert distill(*command, tmp_path / "view", "--views", "1").code == 0
    one = LogitStore.open(tmp_path / "view")
    assert (one.manifest.views.first, one.manifest.views.count) == (1, 1)
    assert (arrays(one.location)["prob"][:, 0] == arrays(whole.location)["prob"][:, 1]).all()
    (tmp_path / "keys").write_text("key7\nkey3\nkey40\n")
    assert distill(*command, tmp_path / "three", "--keys", tmp_path / "keys").code == 0
    assert LogitStore.open(tmp_path / "three").manifest.dataset.rows == 3
    figures = SemanticHierarchy.bundled("plane-figures")
    polygon = next(s for s in figures.synsets if figures.display_name(s) == "polygon")
    assert distill(*command, tmp_path / "class", "--class", polygon).code == 0
    labels = LogitStore.open(tmp_path / "class").labels
    inside = {s for s in figures.synsets if s == polygon or polygon in figures.ancestors(s)}
    expected = [c for c in whole.labels.tolist() if c >= 0 and figures.synsets[c] in inside]
    assert sorted(labels.tolist()) == sorted(expected)
    (tmp_path / "keys").write_text("key7\nkeyX\n")
    assert "(first 'keyX')" in fails(*command, tmp_path / "x", "--keys", tmp_path / "keys")
    assert "views of 0 to 1" in fails(*command, tmp_path / "x", "--views", "1-2")
    assert "a number or a range" in fails(*command, tmp_path / "x", "--views", "one")
    assert not (tmp_path / "x").exists()


def views_identity(count: int, first: int = 0, seed: int = 0) -> ViewIdentity:
    return ViewIdentity(count=count, policy={"name": "augmented", "seed": seed}, first=first)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"teacher": replace(make_manifest().teacher, fingerprint="a" * 64)}, "teacher"),
        ({"encoding": EncodingSpec(entries=(2, 2, 2, 2))}, "encoding"),
        ({"views": views_identity(1, seed=1)}, "view policy"),
        ({"views": views_identity(2, first=5)}, "consecutive"),
    ],
)
def test_stores_that_are_not_parts_of_one_are_not_merged(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    whole = make_complete(tmp_path / "whole")
    other = make_complete(tmp_path / "other", make_manifest(**changes))
    with pytest.raises(StoreMismatchError, match=what):
        merge(tmp_path / "merged", [whole, other])
    assert not (tmp_path / "merged").exists()


def test_samples_and_views_that_several_have_must_agree(tmp_path: Path) -> None:
    whole = make_complete(tmp_path / "whole")
    halves = [
        subset(tmp_path / name, whole, rows=rows)
        for name, rows in (("first", np.arange(30)), ("second", np.arange(20, 50)))
    ]
    back = merge(tmp_path / "back", halves)
    assert back.manifest.identity == whole.manifest.identity
    assert_same_arrays(tmp_path / "back", tmp_path / "whole")

    views = [make_complete(tmp_path / f"views{f}", views_of(f, 2)) for f in (0, 1)]
    three = make_complete(tmp_path / "three", views_of(0, 3))
    assert merge(tmp_path / "joined", views).manifest.identity == three.manifest.identity
    assert_same_arrays(tmp_path / "joined", tmp_path / "three")

    # Another teacher's answers under this one's name.
    store = create(tmp_path / "other", views_of(1, 2))
    for block in range(4):
        said = [answers_of(store.manifest, (block + 1) % 3, view) for view in range(2)]
        size = len(store.manifest.rows_of_block(block))
        store.write_block(block, [each.select(np.arange(size)) for each in said], {"bad": []})
    store.finish()
    with pytest.raises(StoreMismatchError, match=r"says something else than .* in view 1"):
        merge(tmp_path / "x", [views[0], store])
    assert not (tmp_path / "x").exists()


def test_result_may_not_stand_on_its_source(
    tmp_path: Path,
    fails,  # type: ignore[no-untyped-def]
    tree_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    make_complete(tmp_path / "whole")
    before = tree_bytes(tmp_path)
    command = ("store", "subset", tmp_path / "whole", "--limit", 9, "--out", tmp_path / "whole")
    assert "is a source itself" in fails(*command)
    assert tree_bytes(tmp_path) == before


def test_transcoding_says_what_fidelity_is_left(
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    tmp_path: Path,
) -> None:
    """A store of the finest encoding, transcoded, holds what a precompute of the other holds."""
    fine, coarse = tmp_path / "fine", tmp_path / "coarse"
    exact = ("--encoding", "entries=64,steps=65535")
    assert distill(*precompute_command(fine, "--views", 2, *exact)).code == 0
    assert distill(*precompute_command(coarse, "--views", 2, "--encoding", "small")).code == 0
    ran = distill(
        "store", "transcode", fine, "--encoding", "small", "--out", tmp_path / "to", "--json"
    )
    assert ran.code == 0, ran.err
    report, asked = json.loads(ran.out), json.loads(distill("store", "info", coarse, "--json").out)
    assert report["encoding"] == asked["encoding"]
    assert report["lineage"]["command"] == "transcode"
    a, b = arrays(tmp_path / "to"), arrays(coarse)
    assert (np.abs(a["prob"].astype(int) - b["prob"].astype(int)) <= 1).all()
    for name, figures in asked["fidelity"]["angle_deg"].items():
        for figure in ("median", "p99"):
            left = report["fidelity"]["angle_deg"][name][figure]
            assert left == pytest.approx(figures[figure], rel=0.6), (name, figure)
    assert verify(str(tmp_path / "to")).ok
    # More than the source has cannot come back.
    again = ("store", "transcode", coarse, "--encoding", "fine", "--out", tmp_path / "x", "--json")
    assert json.loads(distill(*again).out)["encoding"]["entries"] == asked["encoding"]["entries"]


def test_replay_proof_survives_merge_and_subset(
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    figures: Path,
    store: Path,
    tmp_path: Path,
) -> None:
    second = precompute_command(tmp_path / "second", "--first-view", 2)
    assert distill(*second).code == 0
    merged = tmp_path / "merged"
    assert distill("store", "merge", tmp_path / "second", store, "--out", merged).code == 0
    source = open_source(figures)
    assert (
        check_replay(stored_proofs(LogitStore.open(merged)), source, ViewPolicy()) == 96
    )  # 32 rows in 3 views
    chosen = ("--limit", 40, "--views", "1-2")
    limited = ("store", "subset", merged, "--out", tmp_path / "few", *chosen)
    assert distill(*limited).code == 0
    few = LogitStore.open(tmp_path / "few")
    assert check_replay(stored_proofs(few), source.limited(40), ViewPolicy()) == 64
    whole = precompute_command(tmp_path / "three", "--views", 3)
    assert distill(*whole).code == 0
    report = json.loads(distill("store", "diff", merged, tmp_path / "three", "--json").out)
    assert report["views_in_both"] == [0, 1, 2]
    assert report["answers_equal"]
    assert [*report["manifest"]] == ["provenance.lineage.before", "provenance.lineage.command",
                                     "provenance.lineage.sources"]  # fmt: skip


def test_diff_tells_manifests_and_answers_apart(
    distill,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    first = make_complete(tmp_path / "first")
    subset(tmp_path / "second", first, rows=np.arange(10, 50), views=range(1, 2))
    ran = distill("store", "diff", tmp_path / "first", tmp_path / "second")
    assert "dataset.rows: 50 | 40" in ran.out
    assert "40 in both (0 labelled differently), 10 only in the first, 0 only in the" in ran.out
    assert "views in both: 1" in ran.out
    assert ran.code == 1
    assert ran.out.count("100.00%        0.00000  0.00000        0.00000  0.00000") == 4
    again = distill("store", "diff", tmp_path / "first", tmp_path / "first")
    assert (again.code, again.out) == (0, "equal: the same answers to 50 samples\n")


def repair_command(path: Path, precompute_command: Command) -> list[str]:
    """`distill store repair` with what `precompute` was told."""
    words = precompute_command(path)
    at = words.index("--store")
    return ["store", "repair", str(path), *words[1:at], "--device", "cpu", "--workers", "0"]


def test_repair_computes_only_what_is_bad(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    store: Path,
    tmp_path: Path,
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(store, whole)
    stamps = {b: r["committed_at"] for b, r in LogitStore.open(store).records().items()}
    (store / "prob" / "c.3.0.0").write_bytes(b"garbage")
    (store / "sq_norm" / "c.5.0.0").unlink()
    (store / "index" / "zarr.json").unlink()
    (store / "zarr.json").write_text("{")
    (store / "label" / "c.0").write_bytes(b"garbage")
    (store / "hierarchy" / "zarr.json").unlink()
    assert "pass the --teacher and --data" in fails("store", "repair", store)
    assert distill("store", "verify", store).code == 2
    ran = distill(*repair_command(store, precompute_command), "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["recomputed"] == [3, 5]
    assert distill("store", "verify", store).code == 0
    assert_same_arrays(whole, store)
    after = LogitStore.open(store).records()
    assert {b for b in after if after[b]["committed_at"] == stamps[b]} >= {0, 1, 2, 4}
    assert LogitStore.open(store).require_complete() == LogitStore.open(whole).require_complete()


def test_repair_without_the_teacher_restores_what_follows_from_the_rest(
    distill,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    tree_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    store = make_complete(tmp_path / "store")
    before = tree_bytes(tmp_path / "store")
    for key in ("zarr.json", "copy/zarr.json", "prob/zarr.json", "commits/zarr.json"):
        Path(store.location, key).unlink()
        ran = distill("store", "repair", store.location)
        assert ran.code == 0, (key, ran.err)
        assert f"restored: {key}" in ran.out
        assert tree_bytes(tmp_path / "store") == before


@pytest.mark.parametrize("lost", [["records"], ["content_sha256"], ["records", "content_sha256"]])
def test_repair_tells_lost_commits_again(
    distill,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    lost: list[str],
) -> None:
    whole, store = make_complete(tmp_path / "whole"), make_complete(tmp_path / "store")
    for name in lost:
        shutil.rmtree(next(Path(store.location).glob(f"commits/g*/{name}")))
    assert distill("store", "verify", store.location).code == 2
    ran = distill("store", "repair", store.location)
    assert ran.code == 0, ran.err
    assert distill("store", "verify", store.location).code == 0
    again = LogitStore.open(store.location)
    assert again.content_digests() == whole.content_digests()
    assert again.require_complete() == whole.require_complete()


def test_repair_takes_blocks_from_a_copy_that_proves_them(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    tree_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    store = make_complete(tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    before = tree_bytes(tmp_path / "store")
    (tmp_path / "store" / "prob" / "c.1.0.0").write_bytes(b"no")
    (tmp_path / "store" / "index" / "c.3.0.0").unlink()
    (tmp_path / "store" / "label" / "c.0").unlink()
    assert "or a copy --from which to take" in fails("store", "repair", store.location)
    other = make_complete(tmp_path / "other", views_of(0, 1))
    message = fails("store", "repair", store.location, "--from", other.location)
    assert f"expected a copy of {store.location}" in message
    ran = distill("store", "repair", store.location, "--from", tmp_path / "copy")
    assert ran.code == 0, ran.err
    assert f"taken from {tmp_path / 'copy'}: 2 blocks" in ran.out
    after = tree_bytes(tmp_path / "store")
    assert {n: b for n, b in after.items() if n[:2] != "co" and n != "zarr.json"} == {
        n: b for n, b in before.items() if n[:2] != "co" and n != "zarr.json"
    }
    assert distill("store", "diff", store.location, tmp_path / "copy").code == 0
    assert verify(store.location).ok
    # A copy whose own block is damaged, or holds something else, is not taken.
    (tmp_path / "store" / "prob" / "c.1.0.0").write_bytes(b"no")
    (tmp_path / "copy" / "prob" / "c.1.0.0").write_bytes(b"no")
    assert "1 blocks are bad" in fails(
        "store", "repair", store.location, "--from", tmp_path / "copy"
    )


def test_subset_leaves_out_and_says_what_it_inherits(
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    store: Path,
    tmp_path: Path,
) -> None:
    opened = LogitStore.open(store)
    certificate = opened.require_complete()
    (tmp_path / "keys").write_text("train000003\ntrain000007\n")
    command = ("store", "subset", store, "--out", tmp_path / "less", "--exclude", tmp_path / "keys")
    ran = distill(*command, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["rows"] == 94
    # Every row of so few was audited, and its angles go with it.
    assert report["fidelity"]["views"] == certificate["fidelity"]["views"] - 4
    # A store whose audit lies in rows that are left out inherits figures.
    large = precompute_command(tmp_path / "large", "--block-rows", 96)
    assert distill(*large).code == 0
    records = LogitStore.open(tmp_path / "large").records()
    assert len(records[0]["audit"]["row"]) == 96


def test_a_store_of_format_2_is_lifted(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    golden = Path(__file__).parents[1] / "golden"
    shutil.copytree(golden / "v2" / "store", tmp_path / "damaged")
    next((tmp_path / "damaged" / "prob").glob("c/*/*/*")).write_bytes(b"no chunk")
    ran = distill("store", "verify", tmp_path / "damaged")
    assert ran.code == 2
    assert "next: restore it from a copy, or precompute again" in ran.out
    shutil.copytree(golden / "v2" / "store", tmp_path / "old")
    assert distill("store", "verify", tmp_path / "old").code == 0
    ran = distill("store", "transcode", tmp_path / "old", "--out", tmp_path / "new")
    assert ran.code == 0, ran.err
    new = LogitStore.open(tmp_path / "new")
    assert new.manifest.version == 3
    assert verify(new.location).ok
    old = LogitStore.open(tmp_path / "old")
    for view in range(VIEWS):
        rows = np.arange(50)
        answers = [
            each.manifest.coding.dequantise(RowReader(each, view).rows(rows)) for each in (old, new)
        ]
        for name in FIELDS:
            assert (getattr(answers[0], name) == getattr(answers[1], name)).all(), name
    with pytest.raises(StoreError, match="which is read but not written to"):
        write(old, [0])
    with pytest.raises(StoreError, match="which is read but not written to"):
        old.revoke([0])
    assert "which is read but not written to" in fails("store", "repair", tmp_path / "old")


def test_what_a_merge_inherits_counts_at_its_worst(tmp_path: Path) -> None:
    angles = {"median": 1.0, "p99": 9.0, "max": 20.0}
    figures = {"views": 100, "angle_deg": {"mse_fresh": angles}, "how": "said"}
    measured = {"row": [0], "view": [0], "angle_deg": {"mse_fresh": [0.1], "kl_fresh": [0.2]}}
    whole = make_complete(tmp_path / "whole")
    halves = []
    for name, rows, facts in (
        ("audited", np.arange(25), {"audit": measured}),
        ("inheriting", np.arange(25, 50), {"inherited": figures}),
    ):
        half = subset(tmp_path / f"{name} as it is", whole, rows=rows)
        store = LogitStore.create(
            tmp_path / name,
            half.manifest,
            ids=half.sample_ids,
            labels=half.labels,
            hierarchy=half.hierarchy,
        )
        for block, commit in half.block_commits().items():
            more = {} if block else facts
            store.write_codes(block, half.read_block(block, commit), {"bad": [], **more})
        store.finish()
        halves.append(store)
    merged = merge(tmp_path / "merged", halves).require_complete()["fidelity"]
    assert merged["angle_deg"] == {"mse_fresh": angles}
    assert merged["views"] == 1  # of these rows
    again = subset(tmp_path / "again", LogitStore.open(tmp_path / "merged"), rows=np.arange(50))
    assert again.require_complete()["fidelity"]["angle_deg"]["mse_fresh"]["p99"] == 9.0


def test_a_subset_that_goes_on_mends_what_was_damaged_meanwhile(tmp_path: Path) -> None:
    whole = make_complete(tmp_path / "whole")
    expected = subset(tmp_path / "expected", whole, rows=np.arange(40)).content_digests()
    out = LogitStore.open(tmp_path / "expected")
    unfinished = LogitStore.create(
        tmp_path / "out",
        out.manifest,
        ids=out.sample_ids,
        labels=out.labels,
        hierarchy=out.hierarchy,
    )
    unfinished.write_codes(0, out.read_block(0, out.block_commits()[0]), {"bad": []})
    (tmp_path / "out" / "prob" / "c.0.0.0").write_bytes(b"")
    assert subset(tmp_path / "out", whole, rows=np.arange(40)).content_digests() == expected
    assert verify(str(tmp_path / "out")).ok


def test_a_torn_commit_is_computed_again_by_the_same_precompute(
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    tmp_path: Path,
) -> None:
    half = ("--shard-index", 0, "--num-shards", 2)
    assert distill(*precompute_command(tmp_path / "store", *half)).code == 0
    (tmp_path / "store" / "commits" / "00000002" / "zarr.json").write_bytes(b"")
    assert distill(*precompute_command(tmp_path / "store")).code == 0
    assert verify(str(tmp_path / "store")).complete


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ([50, 2], [0, 2]),
        ([10**30, 2], [50, 2]),
        ([10**12, 2], [10**12, 2]),
        ([3, 6148914691236517206], [1, 1]),
        ([50, 2], [10**12, 10**6]),
        ([], []),
        ([-50, 2], [50, 2]),
    ],
)
def test_hostile_shapes_are_damage(tmp_path: Path, shape: list[int], chunks: list[int]) -> None:
    store = make_complete(tmp_path / "store")
    path = tmp_path / "store" / "sample_id" / "zarr.json"
    document = json.loads(path.read_text())
    document["shape"] = shape
    document["chunk_grid"]["configuration"]["chunk_shape"] = chunks
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptStoreError, match="sample_id or label is damaged"):
        LogitStore(store.objects, store.manifest).labels  # noqa: B018


def test_verify_and_repair_take_the_hierarchy_from_the_store(
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    store: Path,
) -> None:
    words = repair_command(store, precompute_command)
    at = words.index("--label-set")
    bare = words[:at] + words[at + 2 :]
    bare[1] = "verify"
    assert distill(*bare, "--sample", 8).code == 0
    (store / "prob" / "c.2.0.0").unlink()
    bare[1] = "repair"
    assert distill(*bare).code == 0
    assert verify(str(store)).ok


def test_repair_refuses_another_teacher(
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    store: Path,
    tree_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    before = tree_bytes(store)
    command = [*repair_command(store, precompute_command), "--input-size", "48"]
    assert ": teacher " in fails(*command)
    assert tree_bytes(store) == before


def test_verify_asks_the_teacher_again(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    store: Path,
) -> None:
    command = repair_command(store, precompute_command)
    command[1] = "verify"
    report = json.loads(distill(*command, "--sample", 20, "--json").out)
    assert report["ok"]
    assert report["teacher"]["images"] == 20
    assert report["teacher"]["views"] == 2
    assert report["teacher"]["steps_apart"] <= 1
    # Stores whose digests are whole but whose answers are another's: first of other classes.
    opened = LogitStore.open(store)
    blocks = [opened.read_codes(0, v, opened.block_commits()[0]) for v in range(VIEWS)]
    wrong = [replace(c, index=np.where(c.prob > 0, (c.index + 1) % 3, 0)) for c in blocks]
    record = opened.records()[0]
    opened.revoke([0])
    facts = {k: v for k, v in record.items() if k in ("bad", "audit", "replay")}
    opened.write_codes(0, [Codes(**vars(c)) for c in wrong], facts)
    opened.finish()
    assert "differ by more than rounding" in distill(*command, "--sample", 96).out
    opened.revoke([0])
    opened.write_codes(0, blocks, facts)
    opened.finish()
    assert distill(*command, "--sample", 96).code == 0
    codes = [opened.read_codes(0, v, opened.block_commits()[0]) for v in range(VIEWS)]
    record = opened.records()[0]
    opened.revoke([0])
    swapped = {k: v for k, v in record.items() if k in ("bad", "audit")}
    opened.write_codes(0, codes[::-1], swapped)
    opened.finish()
    ran = distill(*command, "--sample", 96)
    assert ran.code == 2
    assert "differ by more than rounding" in ran.out
    assert "one of --teacher and --data" in fails("store", "verify", store, "--data", store)


@pytest.mark.slow
def test_plan_is_within_five_percent_of_the_finished_store(
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    figures: Path,
    tmp_path: Path,
) -> None:
    words = precompute_command(tmp_path / "unused")
    at = words.index("--store")
    options = [*words[1:at], "--device", "cpu", "--workers", "0", "--block-rows", "32"]
    plan = json.loads(distill("plan", *options, "--views", "1,2,3", "--json").out)
    assert plan["rows"] == 96
    assert len(plan["stores"]) == 3 * len(PRESETS)
    for planned in plan["stores"]:
        path = tmp_path / f"{planned['encoding']}{planned['views']}"
        more = ("--views", planned["views"], "--encoding", planned["encoding"])
        more = (*more, "--block-rows", 32)
        assert distill(*precompute_command(path, *more)).code == 0
        finished = json.loads(distill("store", "info", path, "--json").out)
        assert planned["bytes_total"] == pytest.approx(finished["bytes_total"], rel=0.05), planned
        assert planned["hours"] > 0
    table = distill("plan", *options, "--rows", "11060223", "--views", "4").out
    assert "11060223 images; pilot of 32" in table
    assert table.count("GiB") == len(PRESETS)


def test_a_plan_for_other_devices_says_hours_cost_and_the_cores_that_feed_them(
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    tmp_path: Path,
) -> None:
    words = precompute_command(tmp_path / "unused")
    options = [*words[1 : words.index("--store")], "--device", "cpu", "--workers", "0"]
    booked = ("--gpus", 4, "--device-rate", 1000, "--price-per-hour", 3)
    ran = distill("plan", *options, *booked, "--rows", 10**8, "--views", "1,3", "--json")
    one, three = json.loads(ran.out)["stores"][:2]
    assert one["hours"] == pytest.approx(10**8 / 1000 / 4 / 3600)
    assert three["hours"] == pytest.approx(3 * one["hours"])
    assert three["cost"] == pytest.approx(three["hours"] * 4 * 3)
    assert 0 < three["cores"] <= one["cores"]  # an image is decoded once for all of its views
    assert "4 devices of 1000 views/s" in distill("plan", *options, *booked, "--views", "1").out


def test_plan_tolerates_a_bad_image_but_not_only_bad_ones(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    tmp_path: Path,
) -> None:
    from PIL import Image

    folder = tmp_path / "data" / "n13878634"
    folder.mkdir(parents=True)
    (folder / "bad.jpg").write_bytes(b"no image")
    words = precompute_command(tmp_path / "unused", data=tmp_path / "data")
    options = [*words[1 : words.index("--store")], "--device", "cpu", "--workers", "0"]
    message = [line for line in distill("plan", *options).err.splitlines() if "distill:" in line]
    assert "none of 1 pilot images can be read" in message[0]
    Image.new("RGB", (32, 32)).save(folder / "good.jpg")
    assert "1 pilot images could not be read" in distill("plan", *options).out


def test_streamed_training_is_resident_training_in_another_order(
    distill,  # type: ignore[no-untyped-def]
    store: Path,
    figures: Path,
    tmp_path: Path,
) -> None:
    """A cache that holds the ids but not two views: the same samples, from streamed blocks."""
    ran = distill(
        *(
            "pretrain",
            "--student",
            "test_resnet",
            "--init",
            "random",
            "--data",
            figures,
            "--epochs",
            2,
        ),
        *("--batch-size", 32, "--targets", store, "--out", tmp_path / "run", "--image-size", 32),
        *("--cache", tmp_path / "cache", "--cache-gib", 8e-6, "--device", "cpu", "--workers", 0),
    )
    assert ran.code == 0, ran.err
    assert [p.name[-9:] for p in (tmp_path / "cache").glob("*.rows")] == ["-ids.rows"]
    history = json.loads((tmp_path / "run" / "run.json").read_text())["history"]
    assert np.isfinite([epoch["kd_loss"] for epoch in history]).all()


def test_merged_views_keep_the_replay_rows_that_all_sources_have(tmp_path: Path) -> None:
    """And a bad image that each source recorded is one bad image."""
    parts = []
    for first, rows in ((0, ("3", "25")), (1, ("3",))):
        store = create(tmp_path / f"view{first}", views_of(first, 1))
        bad = [{"key": "key7", "reason": "torn"}]
        for block in range(4):
            replay = {row: [f"{first} {row}"] for row in rows if int(row) // 16 == block}
            facts = {"bad": bad if block == 2 else [], "replay": replay}
            store.write_block(block, [answers_of(store.manifest, block, 0)], facts)
        store.finish()
        parts.append(store)
    merged = merge(tmp_path / "merged", parts)
    certificate = merged.require_complete()
    assert certificate["replay"] == {"3": ["0 3", "1 3"]}
    assert certificate["bad_images"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["store", "info", ""], "found as the place of a store"),
        (["store", "info", "/nowhere"], "no store there"),
        (["store", "subset", "STORE", "--out", "OUT", "--views", "0-99999"], "views of 0 to 1"),
        (["store", "merge", "STORE", "--out", "OUT"], "expected two or more"),
        (
            ["store", "transcode", "STORE", "--out", "OUT", "--encoding", "tiny"],
            "entries=N,steps=M",
        ),
        (["store", "diff", "STORE", "HALF"], "blocks are missing"),
        (["store", "subset", "HALF", "--out", "OUT"], "blocks are missing"),
        (["store", "transcode", "HALF", "--out", "OUT", "--encoding", "small"], "blocks are miss"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str],
    message: str,
    fails,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    make_complete(tmp_path / "whole")
    write(create(tmp_path / "half"), [1, 2])
    places = {"STORE": tmp_path / "whole", "HALF": tmp_path / "half", "OUT": tmp_path / "out"}
    assert message in fails(*(places.get(word, word) for word in arguments))
    assert not (tmp_path / "out").exists()
