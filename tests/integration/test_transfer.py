"""`distill transfer`: starts × tasks × seeds in one table, which goes on where it was stopped."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t

from distill.data.source import open_source
from distill.trainers.transfer import Cell, as_table, t_975

COMMON = ("--epochs", 2, "--batch-size", 16, "-o", "image_size=32", "-o", "views.name=plain")


@pytest.fixture
def folders(tmp_path: Path, random: np.random.Generator) -> Path:
    """Dark and light images."""
    root = tmp_path / "folders"
    for split, count in (("train", 40), ("val", 10)):
        for name, least in (("dark", 0), ("light", 128)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(least, least + 128, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{split}-{i}-{name}.png")
    return root


@pytest.fixture
def words(folders: Path, teacher_weights: Path, tmp_path: Path) -> list[object]:
    """A trained start and a random one, on classes and on tags."""
    with (tmp_path / "tags.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "tags"])
        for split in ("train", "val"):
            for sample in open_source(folders, split).samples:
                rows.writerow([sample.key, f"{sample.label};all"])
    return [
        *("transfer", f"taught={teacher_weights}", "fresh=random", "--student", "test_vit"),
        *("--data", f"classes={folders}", "--data", f"tags={folders}"),
        *("--tags", f"tags={tmp_path / 'tags.csv'}", *COMMON, "--out", tmp_path / "table"),
    ]


def test_table_of_starts_and_tasks(
    words: list[object], tmp_path: Path, distill: Callable[..., Any]
) -> None:
    more = ("--lr", "1e-4,1e-3", "--seeds", 2, "--jobs", 2)
    ran = distill(*words, *more, "--json")
    assert ran.code == 0, ran.err
    cells = json.loads(ran.out)
    assert [(cell["start"], cell["task"]) for cell in cells] == [
        *(("taught", "classes"), ("taught", "tags"), ("fresh", "classes"), ("fresh", "tags"))
    ]
    assert all(len(cell["values"]) == 2 and 0 <= cell["mean"] <= 1 for cell in cells)
    record = json.loads((tmp_path / "table/transfer.json").read_text())["figures"]
    assert len(record) == 2 * 2 * (2 + 2)
    for cell in cells:
        judged = {
            lr: record[f"{cell['task']}/{cell['start']}/judging-lr{lr}-seed0"]
            for lr in ("0.0001", "0.001")
        }
        assert judged[f"{cell['lr']:g}"] == max(judged.values())
    assert not any((tmp_path / "table").glob("classes/*/*"))  # nothing is left of the trials
    again = distill(*words, *more)
    assert again.code == 0
    assert again.out.splitlines()[2].startswith("| taught | ")
    assert "less taught" in again.out
    assert "of 8" not in again.err  # no trial ran again
    more_seeds = distill(*words, "--lr", "1e-4,1e-3", "--seeds", 3, "--jobs", 2)
    assert more_seeds.code == 0
    assert "4 of 4" in more_seeds.err


def test_errors_are_one_line(
    words: list[object], folders: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = ("--out", tmp_path / "other")
    data = ("--data", f"a={folders}")
    assert "expected NAME=" in fails("transfer", "run", *data, *out)
    assert "no such weight file" in fails("transfer", "a=none", *data, *out)
    assert "expected --student" in fails("transfer", "a=random", *data, *out)
    assert "--data a=… found 2 times" in fails("transfer", "a=random", *data, *data, *out)
    wrong = fails("transfer", "a=random", *data, "--tags", "b=x", *out)
    assert "expected a name of --data" in wrong
    right = (tmp_path / "tags.csv").read_text()
    (tmp_path / "tags.csv").write_text("no\ntags\n")
    assert "expected key and tags" in fails(*words)
    (tmp_path / "tags.csv").write_text(right)
    assert "expected learning rates" in fails(*words, "--lr", "1e-3;1e-2")
    assert "unknown setting" in fails(*words, "-o", "epoch=3")
    (tmp_path / "table").mkdir()
    (tmp_path / "table/transfer.json").write_text('{"plan": {"starts": []}, "figures": {}}')
    assert "not a record" in fails(*words)
    for name in ("..", "a/b", "a|b", "x" * 61, "a\nb"):
        assert "letters, digits and spaces" in fails("transfer", f"{name}=random", *data, *out)
    runs = ("a=random", "a=random", "--student", "test_vit", "--seeds", 3)
    assert "2 runs of a found, expected one, or" in fails("transfer", *runs, *data, *out)
    mixed = ("a=random", f"a={folders}", "--student", "test_vit", "--seeds", 2)
    assert "a: random and runs found" in fails("transfer", *mixed, *data, *out)
    for key in ("seed=7", "init=random", "scheme=semantic"):
        assert "which each trial has of its own" in fails(*words, "-o", key)
    (folders / "val/other").mkdir()
    Image.new("RGB", (32, 32)).save(folders / "val/other/x.png")
    assert "'other'" in fails("transfer", "a=random", "--student", "test_vit", *data, *out)


def test_what_a_table_was_made_of_is_what_it_goes_on_with(
    words: list[object], folders: Path, fails: Callable[..., str], distill: Callable[..., Any]
) -> None:
    short = (*words, "--lr", "1e-3", "--jobs", 2)
    ran = distill(*short, "--seeds", 1)
    assert ran.code == 0, ran.err
    assert "model: fresh: test_vit at 32 pixels" in ran.err
    more = distill("transfer", "another=random", *short[1:], "--lr", "1e-3,1e-2", "--seeds", 1)
    assert more.code == 0, more.err
    assert "fresh/final-lr0.001" not in more.err  # it is there
    assert "another/judging-lr0.01" in more.err
    next((folders / "train/dark").iterdir()).unlink()
    assert "is of other digests" in fails(*short, "--seeds", 2)


def test_a_learning_rate_that_diverges_is_the_worst(
    folders: Path, tmp_path: Path, distill: Callable[..., Any], fails: Callable[..., str]
) -> None:
    words = ("transfer", "fresh=random", "--student", "test_vit", "--data", f"a={folders}", *COMMON)
    more = ("--seeds", 1, "--jobs", 1, "--json")
    ran = distill(*words, *more, "--lr", "1e-3,1e30", "--out", tmp_path / "one")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)[0]["lr"] == 1e-3
    told = fails(*words, *more, "--lr", "1e30", "--out", tmp_path / "two")
    assert told.startswith("distill: a/fresh/final-lr1e+30-seed0: the losses on labels")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_table_that_was_ended_goes_on(
    number: signal.Signals, words: list[object], tmp_path: Path
) -> None:
    """Signals reach all of its processes, as from Slurm and timeout."""
    command = [sys.executable, "-m", "distill.cli.main", *map(str, words)]
    command += ["--lr", "1e-3", "--seeds", "2", "--jobs", "1"]
    record = tmp_path / "table/transfer.json"
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    ends = time.monotonic() + 60
    while not (record.exists() and json.loads(record.read_text())["figures"]):
        assert time.monotonic() < ends
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, number)
    assert running.wait(60) == (-9 if number == signal.SIGKILL else 75)
    before = json.loads(record.read_text())["figures"]
    assert 0 < len(before) < 8
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    after = json.loads(record.read_text())["figures"]
    assert len(after) == 8
    assert after.items() >= before.items()
    assert f"of {8 - len(before)}:" in ran.stderr


def test_paired_differences() -> None:
    def cell(*values: float) -> Cell:
        return Cell(start="", task="", lr=1.0, lr_at_an_end=False, values=values)

    mean, half = cell(0.5, 0.6, 0.9).less(cell(0.4, 0.4, 0.6))
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(t.ppf(0.975, 2) * 0.1 / 3**0.5, rel=1e-3)
    assert cell(0.5).less(cell(0.4)) == (pytest.approx(0.1), float("inf"))
    assert [*as_table([cell(0.5), replace(cell(0.4), start="other")])][-1] == "| other | -10.00 |"
    for degrees in (1, 5, 10, 11, 20, 100):
        assert t_975(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=2e-3)
