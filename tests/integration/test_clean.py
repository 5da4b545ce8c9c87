"""`distill data clean`: each tag is judged by a teacher that never saw its image."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.data.sample_ids import SampleIds, sample_ids
from distill.data.sample_list import SampleList, fold_of
from distill.data.source import open_source
from distill.store.logit_store import LogitStore

NAMES, WRONG = ("dark", "light", "red"), 3
TAXONOMY = {"parents": {"grey": None, "dark": "grey", "light": "grey", "red": None}}


@pytest.fixture
def data(tmp_path: Path, random: np.random.Generator) -> Path:
    """Images whose colour tells their class, of which some lie in the folder of another."""
    rows = []
    for i in range(120):
        name = NAMES[i % 3]
        low, high = (0, 90) if name == "dark" else (160, 250)
        pixels = random.integers(low, high, (32, 32, 3), np.uint8)
        if name == "red":
            pixels[:, :, 1:] //= 8
        tag = "red" if i < WRONG * 3 and name == "dark" else name
        folder = tmp_path / "data" / tag
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append((f"{tag}/{i}", name))
    with (tmp_path / "truth.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("key", "true_wnid"), *rows])
    (tmp_path / "colours.json").write_text(json.dumps(TAXONOMY))
    return tmp_path / "data"


@pytest.fixture
def words(data: Path, tmp_path: Path) -> list[object]:
    """The command."""
    return [
        *("data", "clean", "--student", "test_vit", "--init", "random", "--data", data),
        *("--label-set", tmp_path / "colours.json", "--out", tmp_path / "clean", "--folds", 3),
        *("--image-size", 32, "--view-policy", "plain", "--epochs", 40, "--batch-size", 16),
        *("--lr", 0.003, "--label-smoothing", 0, "--device", "cpu", "--workers", 0, "--jobs", 2),
        *("--suspect-above", 1.5),
    ]


def _keys(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["key"] for row in csv.DictReader(file)]


def test_wrong_tags_are_found_by_teachers_that_never_saw_them(
    words: list[object], data: Path, tmp_path: Path, distill: Callable[..., Any]
) -> None:
    ran = distill(*words, "--truth", tmp_path / "truth.csv", "--json")
    assert ran.code == 0, ran.err
    found, out = json.loads(ran.out), tmp_path / "clean"
    assert found["images"] == found["judged"] == 120
    suspect, cleaned = _keys(out / "suspect.csv"), _keys(out / "cleaned.csv")
    assert found["suspect"] == len(suspect)
    assert found["retained"] == len(cleaned) / 120
    assert {*suspect}.isdisjoint(cleaned)
    planted = {f"red/{i}" for i in range(0, WRONG * 3, 3)}
    assert planted <= {*suspect}
    scores = found["against_truth"]["suspect"]
    assert scores["recall"] == 1
    assert scores["precision"] == len(planted) / len(suspect) > 0.7
    source = open_source(data)
    fold = fold_of(source.ids, 3)
    held_out: list[SampleIds] = []
    for number in range(3):
        folder = out / f"fold-{number}"
        store = LogitStore.open(folder / "store")
        assert {*map(tuple, store.sample_ids)} == {*map(tuple, source.ids[fold == number])}
        held_out.append(store.sample_ids)
        steps = json.loads((folder / "run.json").read_text())["steps"]
        assert steps == 40 * (int((fold != number).sum()) // 16)
    assert len(np.unique(np.concatenate(held_out), axis=0)) == 120
    assert SampleList.read(out / "cleaned.csv").rows(source).size == len(cleaned)
    with (out / "suspect.csv").open(newline="") as file:
        scored = [float(row["score"]) for row in csv.DictReader(file)]
    assert scored == sorted(scored, reverse=True)
    inspected = distill("inspect", out / "fold-0/store", "--sample", suspect[0])
    assert (inspected.code == 0) == (sample_ids([suspect[0]])[0] in held_out[0])


@pytest.mark.slow
def test_killed_and_stopped_it_goes_on(
    words: list[object], tmp_path: Path, tree_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    command = [sys.executable, "-m", "distill.cli.main", *map(str, words)]
    folder = tmp_path / "clean"

    def begun(path: Path) -> "subprocess.Popen[str]":
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not path.exists() and process.poll() is None:
            time.sleep(0.05)
        return process

    killed = begun(folder / "fold-0/run.json")
    killed.kill()
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    stopped = begun(folder / "fold-0/store/zarr.json")
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=120)[1]
    assert stopped.returncode == 75, said
    assert "distill: stopped by SIGTERM; finished work is kept" in said
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "3 of 3 folds" in again.stderr
    assert "120 images, tags of 120 judged by 3 teachers" in again.stdout
    lists = {name: content for name, content in tree_bytes(folder).items() if "/" not in name}
    once_more = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert once_more.stdout == again.stdout
    assert lists == {
        name: content for name, content in tree_bytes(folder).items() if "/" not in name
    }
    other = subprocess.run([*command, "--folds", "4"], capture_output=True, text=True, timeout=300)
    assert other.returncode == 2
    # Folds are looked at side by side: whichever is first says it.
    said = other.stderr.splitlines()[-1]
    assert re.search(
        r"clean/fold-[0-3]/checkpoint\.pt: begun with other images or labels \("
        r"dataset_digest is '\w+', this run has",
        said,
    )


def test_errors_are_one_line(
    words: list[object], data: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    assert "fold 0 has none, expected images" in fails(*words, "--folds", 900, "--limit", 2)
    assert "lacks 120 of the 120" in fails(*words, "--truth", _empty_truth(tmp_path))
    assert "no such weight file" in fails(*words, "--init", tmp_path / "nothing")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"parents": {"cat": None, "dog": None}}))
    assert "that the data was tagged with" in fails(*words, "--label-set", other)
    assert "above 0" in fails(*words, "-o", "layer_decay=2")
    broken = sorted((data / "red").iterdir())
    for path in broken[:20]:
        path.write_bytes(b"no image")
    assert "cannot be read" in fails(*words, "--out", tmp_path / "bad")


def _empty_truth(tmp_path: Path) -> Path:
    path = tmp_path / "none.csv"
    path.write_text("key,true_wnid\n")
    return path


def test_a_start_that_saw_the_images_is_refused(
    words: list[object],
    data: Path,
    tmp_path: Path,
    distill: Callable[..., Any],
    fails: Callable[..., str],
) -> None:
    labels = ("--label-set", tmp_path / "colours.json")
    few = ("--epochs", 1, "--image-size", 32, "--batch-size", 16, "--device", "cpu", "--workers", 0)
    start = ("--student", "test_vit", "--init", "random", "--data", data, *labels)
    assert distill("pretrain", *start, *few, "--out", tmp_path / "saw").code == 0
    said = fails(*words, "--init", tmp_path / "saw")
    assert "saw was trained on these images, expected a start that never saw them" in said
    assert distill("pretrain", *start, *few, "--limit", 60, "--out", tmp_path / "half").code == 0
    ran = distill(*words, "--init", tmp_path / "half", "--epochs", 1, "--folds", 2)
    assert ran.code == 0, ran.err
    assert "whether" in ran.out
    assert f"--data {data} --label-set {tmp_path / 'colours.json'} --student NAME --out" in ran.out
