"""`distill inspect`: figures against plain NumPy, lists against the truth, stores in any state."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from knowing_store import make_knowing
from PIL import Image
from small_store import (
    BLOCK,
    HIERARCHY,
    IDS,
    LABELS,
    ROWS,
    VIEWS,
    answers_of,
    create,
    make_complete,
)
from small_store import write as write_blocks

from distill.data.sample_list import SampleList
from distill.data.source import open_source
from distill.errors import StoreMismatchError
from distill.store.logit_store import LogitStore
from distill.store.views.cache import Cache
from distill.targets.rows import TargetRows
from distill.targets.tensors import SparseTargets, densify
from distill.teacher_server.inspect.findings import Rules
from distill.teacher_server.inspect.inspection import open_inspection
from distill.teacher_server.inspect.statistics import UNITS, RowState, open_beliefs

Distill = Callable[..., Any]


@pytest.fixture
def complete(tmp_path: Path) -> LogitStore:
    return make_complete(tmp_path / "store")


@pytest.fixture
def views(complete: LogitStore) -> list[TargetRows]:
    """What the teacher says of all rows, by view."""
    return [
        TargetRows.concatenate([answers_of(complete.manifest, block, view) for block in range(4)])
        for view in range(VIEWS)
    ]


# -- what is read off a store ---------------------------------------------------------------------


def test_figures_equal_numpy_over_all_rows(complete: LogitStore, views: list[TargetRows]) -> None:
    inspection = open_inspection(complete.location, rules=Rules())
    confidence = np.concatenate([view.confidence for view in views])
    kept = np.concatenate([view.prob for view in views])
    slots = np.split(kept, np.cumsum(complete.manifest.slots)[:-1], axis=1)
    tops = [[part[:, 0] for part in _by_hierarchy(view.index)] for view in views]
    for k, row in enumerate(inspection.overview):
        column = confidence[:, k]
        assert row.confidence_mean == pytest.approx(column.mean(), abs=1e-4)
        expected = np.quantile(column, [0.05, 0.25, 0.5, 0.75, 0.95], method="inverted_cdf")
        np.testing.assert_allclose(row.confidence_quantiles, expected, atol=1e-3)
        assert sum(row.confidence_histogram) == ROWS * VIEWS
        assert row.labelled == pytest.approx((HIERARCHY.label_table[LABELS, k] >= 0).mean())
        assert row.kept_entries == pytest.approx((slots[k] > 0).sum(1).mean())
        assert row.kept_mass == pytest.approx(slots[k].sum(1).mean(), abs=1e-5)
        squares = np.concatenate([view.sq_norm for view in views])[:, k].mean()
        assert row.effective_classes == pytest.approx(1 / squares, rel=1e-3)
        assert row.same_top == pytest.approx((tops[0][k] == tops[1][k]).mean())
        change = np.abs(views[0].confidence[:, k] - views[1].confidence[:, k]).mean()
        assert row.confidence_change == pytest.approx(change, abs=2e-4)


def test_beliefs_are_the_means_of_dense_answers(
    complete: LogitStore, views: list[TargetRows]
) -> None:
    images = open_inspection(complete.location, rules=Rules()).beliefs.images(np.arange(ROWS))
    slots = complete.manifest.slots
    dense = np.mean([densify(SparseTargets.from_rows(v, slots), HIERARCHY) for v in views], 0)
    labels = HIERARCHY.label_table[LABELS]
    tops = [np.stack([_by_hierarchy(v.index)[k][:, 0] for v in views]) for k in range(4)]
    for k, part in enumerate(HIERARCHY.slices):
        for row in range(ROWS):
            best = max(dense[row, part][tops[k][:, row]])
            assert dense[row, part][images["top"][row, k]] == pytest.approx(best, abs=1e-6)
            assert images["top_prob"][row, k] / UNITS == pytest.approx(best, abs=2e-5)
            tag = dense[row, part][labels[row, k]] if labels[row, k] >= 0 else 0
            assert images["tag_prob"][row, k] / UNITS == pytest.approx(tag, abs=2e-5)
    confidence = np.mean([view.confidence for view in views], 0)
    np.testing.assert_allclose(images["confidence"] / UNITS, confidence, atol=2e-4)


def test_store_is_read_once(complete: LogitStore, distill: Distill) -> None:
    first = distill("inspect", complete.location, "--json").out
    for shard in Path(complete.location, "prob").glob("c.*"):
        shard.unlink()
    again = json.loads(distill("inspect", complete.location, "--json").out)
    assert again["per_hierarchy"] == json.loads(first)["per_hierarchy"]


def test_incomplete_store_shows_what_is_there(tmp_path: Path, distill: Distill) -> None:
    store = create(tmp_path / "store")
    write_blocks(store, [0, 2])
    ran = distill("inspect", store.location)
    assert ran.code == 0
    assert "INCOMPLETE, 2 of 4 blocks" in ran.out
    assert "2 of 4 blocks are not computed yet: run the same `distill precompute` again" in ran.out
    beliefs = open_beliefs(store, HIERARCHY, Cache(tmp_path / "cache"))
    assert beliefs.total("images") == 2 * BLOCK
    known = beliefs.images(np.arange(ROWS))["known"].reshape(-1)
    assert (known[BLOCK : 2 * BLOCK] == RowState.NOTHING).all()
    assert (known[:BLOCK] == RowState.ANSWER).all()
    write_blocks(store, [1])
    assert "INCOMPLETE, 3 of 4 blocks" in distill("inspect", store.location).out


def test_store_that_grows_or_is_mended_is_read_where_it_is_new(tmp_path: Path) -> None:
    store, cache = create(tmp_path / "store"), Cache(tmp_path / "cache")
    told: list[int] = []
    write_blocks(store, [0, 2])
    names = {open_beliefs(store, HIERARCHY, cache, read_block=told.append).name}
    assert sum(told) == 4  # of which two are missing
    write_blocks(store, [1])
    names.add(open_beliefs(store, HIERARCHY, cache, read_block=told.append).name)
    assert sum(told) == 4 + 1
    chunk = Path(store.location) / "prob" / "c.3.0.0"
    write_blocks(store, [3])
    whole = chunk.read_bytes()
    chunk.write_bytes(b"nothing")
    damaged = open_beliefs(store, HIERARCHY, cache, read_block=told.append)
    assert damaged.blocks_that(RowState.BAD) == [3]
    assert sum(told) == 4 + 1 + 1
    chunk.write_bytes(whole)
    mended = open_beliefs(store, HIERARCHY, cache, read_block=told.append)
    assert mended.is_complete
    assert sum(told) == 4 + 1 + 1 + 1
    assert len({*names, damaged.name, mended.name}) == 3  # damaged is as if missing
    assert len(list(cache.folder.glob("*-beliefs.rows"))) == 1
    fresh = open_beliefs(store, HIERARCHY, Cache(tmp_path / "fresh"))
    assert (fresh.blocks == mended.blocks).all()
    told.clear()
    open_beliefs(store, HIERARCHY, cache, read_block=told.append)
    assert told == []


def test_store_without_a_block_has_figures_of_nothing(tmp_path: Path, distill: Distill) -> None:
    store = create(tmp_path / "store")
    report = json.loads(distill("inspect", store.location, "--json").out)
    assert [row["confidence_mean"] for row in report["per_hierarchy"]] == [None] * 4
    assert report["tags"]["judged"] == 0
    assert report["bytes_per_view"] == 0
    ran = distill("inspect", store.location, "--plot", tmp_path / "plots")
    assert "–" in ran.out
    assert [path.name for path in sorted((tmp_path / "plots").iterdir())] == [
        "classes.png",
        "classes.svg",
    ]


def test_images_that_could_not_be_read_have_no_belief(
    tmp_path: Path, distill: Distill, precompute_command: Callable[..., list[str]], figures: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(figures, data)
    tar = data / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[600:620] = b"\0" * 20  # in the first JPEG
    tar.write_bytes(content)
    store = tmp_path / "store"
    command = precompute_command(store, "--max-bad-fraction", 0.1, data=data)
    assert distill(*command).code == 0
    inspection = open_inspection(str(store), rules=Rules())
    assert int(inspection.beliefs.total("bad_images")) == 1
    bad = np.flatnonzero(inspection.beliefs.images(np.arange(96))["known"] == RowState.BAD)
    key = open_source(data).samples[int(bad[0])].key
    assert "could not be read" in distill("inspect", store, "--sample", key).out


# -- tables ---------------------------------------------------------------------------------------


def test_overview_is_a_table_json_and_csv(distill: Distill, store: Path) -> None:
    text = distill("inspect", store).out
    assert "96 images × 2 views, complete" in text
    assert "fidelity: KD gradient off by (median, p99) MSE " in text
    report = json.loads(distill("inspect", store, "--json").out)
    assert [k["classes"] for k in report["per_hierarchy"]] == [8, 9, 8, 3]
    assert report["gaps"] == []
    assert report["fidelity"]["angle_deg"]["mse_fresh"].keys() == {"median", "p99", "max"}
    rows = _rows(distill("inspect", store, "--csv").out)
    assert [int(row["classes"]) for row in rows] == [8, 9, 8, 3]
    for row, figures in zip(rows, report["per_hierarchy"], strict=True):
        assert float(row["mean"]) == figures["confidence_mean"]
        assert f"{figures['confidence_mean']:.3f}" in text


def test_every_class_and_its_subtree_are_counted(distill: Distill, store: Path) -> None:
    opened = LogitStore.open(store)
    rows = json.loads(distill("inspect", store, "--by-class", "--json").out)["by_class"]
    assert sorted(row["wnid"] for row in rows) == sorted(HIERARCHY.synsets)
    images = open_inspection(str(store), rules=Rules()).beliefs.images(np.arange(96))
    for row in rows:
        c, k = HIERARCHY.index(row["wnid"]), row["hierarchy"]
        below = [
            c in (d, *map(HIERARCHY.index, HIERARCHY.ancestors(s)))
            for d, s in enumerate(HIERARCHY.synsets)
        ]
        here = np.array(below)[opened.labels]
        assert row["images"] == here.sum()
        assert row["tagged_here"] == (opened.labels == c).sum()
        if k < 4 and here.any():
            mean = images["tag_prob"][here, k].mean() / UNITS
            assert row["tag_prob"] == pytest.approx(mean, abs=1e-5)
            agreed = images["top"][here, k] == HIERARCHY.label_table[c, k]
            assert row["agreed"] == pytest.approx(agreed.mean())
        else:
            assert row["tag_prob"] is None
    below = json.loads(distill("inspect", store, "--by-subtree", "polygon", "--json").out)
    assert below["by_subtree"][0]["name"] == "polygon"
    assert all(row["hierarchy"] == 1 for row in below["by_subtree"][1:])


def test_sample_says_what_the_teacher_sees(distill: Distill, store: Path, figures: Path) -> None:
    sample = open_source(figures).samples[3]
    said = json.loads(distill("inspect", store, "--sample", sample.key, "--json").out)["sample"]
    assert said["tag"] == sample.label
    opened = LogitStore.open(store)
    inspection = open_inspection(str(store), rules=Rules())
    views = SparseTargets.from_rows(inspection.answers(3), opened.manifest.slots)
    dense = densify(views, HIERARCHY).mean(0)
    for k, part in enumerate(HIERARCHY.slices):
        first = said["answers"][k]["classes"][0]
        assert first["prob"] == pytest.approx(float(dense[part].max()), abs=1e-5)
        assert HIERARCHY.class_order[part][int(torch.argmax(dense[part]))] == HIERARCHY.index(
            first["wnid"]
        )
    assert "* is the tag's path" in distill("inspect", store, "--sample", sample.key).out


def test_charts_are_drawn_as_png_and_svg(distill: Distill, store: Path, tmp_path: Path) -> None:
    assert distill("inspect", store, "--plot", tmp_path / "plots").code == 0
    for name in ("confidence", "classes", "agreement"):
        with Image.open(tmp_path / "plots" / f"{name}.png") as drawn:
            assert drawn.size == (1040, 585)
        assert "<svg" in (tmp_path / "plots" / f"{name}.svg").read_text()


# -- lists ----------------------------------------------------------------------------------------


@pytest.fixture
def lists(distill: Distill, figures: Path, tmp_path: Path) -> dict[str, Any]:
    """What a teacher that knows most of the figures finds."""
    store = make_knowing(tmp_path / "knowing", figures).location
    paths = {name: tmp_path / f"{name}.csv" for name in ("missing", "suspect", "cleaned")}
    words = [word for name, path in paths.items() for word in (f"--{name}", path)]
    truth = ("--truth", figures / "labels.csv")
    ran = distill("inspect", store, "--data", figures, *words, *truth, "--json")
    assert ran.code == 0, ran.err
    rows = {name: _rows(path.read_text()) for name, path in paths.items()}
    return {**rows, "report": json.loads(ran.out), "paths": paths}


def test_missing_tags_name_key_tag_path_and_confidence(lists: dict[str, Any]) -> None:
    assert lists["missing"]
    assert len(lists["missing"]) == lists["report"]["tags"]["missing"]
    for row in lists["missing"]:
        ancestors = HIERARCHY.ancestors(row["wnid"])
        added = ancestors[: ancestors.index(row["tag"])][::-1]
        names = [HIERARCHY.display_name(wnid) for wnid in (*added, row["wnid"])]
        assert row["path"] == " > ".join(names)
        probs = [float(p) for p in row["confidence"].split(" > ")]
        assert len(probs) == len(names)
        assert min(probs) == pytest.approx(float(row["score"]), abs=1e-4)
        assert min(probs) >= 0.7


def test_cleaned_list_is_what_pretrain_takes(
    lists: dict[str, Any], figures: Path, distill: Distill, train: Callable[..., list[str]]
) -> None:
    suspect = {row["key"] for row in lists["suspect"]}
    missing = {row["key"]: row["wnid"] for row in lists["missing"]}
    keys = {sample.key for sample in open_source(figures).samples}
    assert suspect
    assert {row["key"] for row in lists["cleaned"]} == keys - suspect
    for row in lists["cleaned"]:
        assert row["wnid"] == missing.get(row["key"], "")
    listed = SampleList.read(lists["paths"]["cleaned"])
    assert set(listed.keys) == keys - suspect
    more = ("--samples", lists["paths"]["cleaned"], "--epochs", 1, "--label-set", "plane-figures")
    ran = distill(*train("run", *more))
    assert ran.code == 0, ran.err
    assert f"{len(keys - suspect)} of 96 images are on the list" in ran.out + ran.err


def test_truth_is_counted_tag_by_tag(lists: dict[str, Any], figures: Path) -> None:
    true = {row["key"]: row["true_wnid"] for row in _rows((figures / "labels.csv").read_text())}
    tags = {sample.key: str(sample.label) for sample in open_source(figures).samples}
    softmaxed = {s for c, s in enumerate(HIERARCHY.synsets) if HIERARCHY.levels[c] < 4}

    def path(wnid: str) -> set[str]:
        return {wnid, *HIERARCHY.ancestors(wnid)} & softmaxed

    added = {row["key"]: path(row["wnid"]) - path(row["tag"]) for row in lists["missing"]}
    missing = {key: path(true[key]) - path(tag) for key, tag in tags.items()}
    right = sum(len(new & missing[key]) for key, new in added.items())
    found = lists["report"]["against_truth"]["missing"]
    assert found["added"] == sum(map(len, added.values()))
    assert found["missing"] == sum(map(len, missing.values()))
    assert found["precision"] == pytest.approx(right / found["added"])
    assert found["recall"] == pytest.approx(right / found["missing"])
    suspect = lists["report"]["against_truth"]["suspect"]
    assert (suspect["wrong"], suspect["recall"]) == (0, None)  # the demo's tags are right
    assert suspect["precision"] == 0


# -- folds ----------------------------------------------------------------------------------------


def test_tags_are_judged_by_the_fold_that_has_the_image(
    store: Path,
    figures: Path,
    tmp_path: Path,
    distill: Distill,
    precompute_command: Callable[..., list[str]],
) -> None:
    lists = tmp_path / "lists"
    assert distill("data", "folds", "--data", figures, "--folds", 3, "--out", lists).code == 0
    keys = [sample.key for sample in open_source(figures).samples]
    held_out = [SampleList.read(lists / f"held-out-{i}.csv").keys for i in range(3)]
    assert sorted(key for fold in held_out for key in fold) == sorted(keys)
    for i, fold in enumerate(held_out):
        kept = SampleList.read(lists / f"train-{i}.csv").keys
        assert set(kept) == set(keys) - set(fold)
    folds = [tmp_path / f"fold{i}" for i in range(2)]  # the third is not judged
    for i, fold in enumerate(folds):
        few = ("--samples", lists / f"held-out-{i}.csv", "--views", 2)
        assert distill(*precompute_command(fold, *few)).code == 0
        assert LogitStore.open(fold).manifest.dataset.rows == len(held_out[i])
    options = [word for fold in folds for word in ("--folds", fold)]
    report = json.loads(distill("inspect", store, *options, "--json").out)
    assert report["tags"]["judged"] == len(held_out[0]) + len(held_out[1])
    inspection = open_inspection(str(store), rules=Rules(), folds=[str(f) for f in folds])
    everyone = np.arange(96)
    own, judged = inspection.beliefs.images(everyone), inspection.judged.images(everyone)
    held = np.array([key not in held_out[2] for key in keys])
    for name in ("top", "top_prob", "tag_prob"):  # a batch of others may move the last bit
        np.testing.assert_allclose(judged[held][name], own[held][name].astype(int), atol=400)
    assert (judged["known"][~held] == RowState.NOTHING).all()
    with pytest.raises(StoreMismatchError, match="stands in two"):
        open_inspection(str(store), rules=Rules(), folds=[str(folds[0])] * 2)


def test_fold_of_other_images_is_refused(store: Path, tmp_path: Path) -> None:
    other = make_complete(tmp_path / "other")
    with pytest.raises(StoreMismatchError, match="not those of"):
        open_inspection(str(store), rules=Rules(), folds=[other.location])


# -- what a user can do wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by-class", "--sample", "x"], "--by-class and --sample found, expected one"),
        (["--csv", "--json"], "--csv and --json found"),
        (["--suspect-above", "1e400"], "expected a number above 0"),
        (["--missing", "m.csv"], "found without --data"),
        (["--cleaned", "c.csv", "--data", "FIGURES"], "--cleaned found without --missing"),
        (["--sample", "nobody"], "holds no sample 'nobody'"),
        (["--by-subtree", "swan"], "neither a synset nor a name in plane-figures"),
        (["--missing", "m.csv", "--data", "/nowhere"], "no such file or folder"),
        (
            ["--missing", "m.csv", "--data", "FIGURES", "--split", "val"],
            "96 of the store's 96 images are not there",
        ),
        (["--folds", "/nowhere"], "no store"),
    ],
)
def test_wrong_options_are_told_in_a_line(
    fails: Callable[..., str], store: Path, figures: Path, options: list[str], message: str
) -> None:
    words = [str(figures) if word == "FIGURES" else word for word in options]
    assert message in fails("inspect", store, *words)


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def _by_hierarchy(array: Any) -> list[Any]:
    return np.split(array, np.cumsum(HIERARCHY_SLOTS)[:-1], axis=1)


HIERARCHY_SLOTS = (4, 4, 4, 3)
assert len(IDS) == ROWS
