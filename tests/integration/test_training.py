"""The training loop: every scheme and source, several processes, and what ends it early."""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from processes import started
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from distill.data.source import open_source
from distill.trainers.models.trained import open_trained
from distill.trainers.recipe import Recipe
from distill.trainers.training.optimizer import make_optimizer

Command = Callable[..., list[str]]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the tests themselves: the same bits


def losses(run: Path, name: str = "loss/total") -> dict[int, float]:
    """By step, from the TensorBoard record."""
    record = EventAccumulator(str(run / "tensorboard"))
    record.Reload()
    return {event.step: event.value for event in record.Scalars(name)}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "student.safetensors")


@pytest.fixture
def torchrun() -> Iterator[Callable[..., "Popen[str]"]]:
    """Several processes of `distill` with those words."""
    begun = []

    def begin(processes: int, words: list[str]) -> "Popen[str]":
        launcher = ["-m", "torch.distributed.run", "--standalone", "--no-python"]
        command = [sys.executable, *launcher, "--nproc-per-node", str(processes)]
        command += [sys.executable, "-m", "distill.cli.main", *words]
        begun.append(Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=ONE_THREAD))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("scheme", "divergence"),
    [
        *product(("single-label", "multi-label", "semantic"), ("mse", "kl")),
        ("semantic", "dist"),
    ],
)
def test_every_scheme_comes_closer_to_the_teacher_of_a_store_or_in_the_process(
    scheme: str,
    divergence: str,
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    teacher_weights: Path,
    tmp_path: Path,
) -> None:
    """And says the same of both, but for what the store leaves out."""
    heavy = 3000 if scheme == "single-label" else 30
    common = ("--scheme", scheme, "--divergence", divergence, "--kd-weight", heavy)
    common += ("--label-set", "plane-figures", "--image-size", 32)
    assert distill(*train("of-store", *common, "--targets", store)).code == 0
    teacher = ("--targets", "timm:test_vit", "--teacher-weights", teacher_weights)
    ran = distill(*train("live", *common, *teacher))
    assert ran.code == 0, ran.err
    stored, live = (losses(tmp_path / run, "loss/kd") for run in ("of-store", "live"))
    assert len(stored) == 12
    assert sum(list(stored.values())[-3:]) < sum(list(stored.values())[:3])
    assert list(stored.values()) == pytest.approx(list(live.values()), rel=0.05, abs=0.02)


def test_labels_alone_train_every_scheme(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> None:
    common = ("--label-set", "plane-figures", "--image-size", 32, "--view-policy", "plain")
    for words in (
        ["--scheme", "single-label"],
        ["--scheme", "multi-label"],
        ["--scheme", "multi-label", "-o", "multi_label_loss=bce"],
        ["--scheme", "multi-label", "-o", "multi_label_loss=focal"],
        ["--scheme", "semantic"],
        ["--scheme", "semantic", "-o", "hierarchy_weights=even"],
    ):
        out = "-".join(words).replace("=", "-")
        assert distill(*train(out, *common, *words)).code == 0
        values = list(losses(tmp_path / out).values())
        assert sum(values[-3:]) < sum(values[:3])


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_parts_are_the_whole_batch(
    accumulate: int,
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> None:
    """A ViT has no batch norm: its losses do not depend on how a batch is cut."""
    common = ("--label-set", "plane-figures", "--image-size", 32)
    assert distill(*train("whole", *common)).code == 0
    assert distill(*train("parts", *common, "-o", f"accumulate={accumulate}")).code == 0
    whole, parts = (losses(tmp_path / run) for run in ("whole", "parts"))
    assert parts == pytest.approx(whole, rel=1e-3)


@pytest.mark.slow
def test_killed_with_minus_nine_it_goes_on_with_the_same_losses(
    train: Command, store: Path, tmp_path: Path
) -> None:
    """N steps, kill, N steps: the losses of 2N, to the last bit; average and dropout included."""
    more = ["--targets", store, "--checkpoint-every", 1, "--epochs", 6, "-o", "ema_decay=0.9"]
    more += ["--student", "ghostnet_050"]  # drops 20% of its features
    whole = started(train("whole", *more), env=ONE_THREAD)
    killed = started(train("killed", *more), env=ONE_THREAD)
    checkpoint, deadline = tmp_path / "killed" / "run.json", time.monotonic() + 120
    while not (checkpoint.exists() and json.loads(checkpoint.read_text())["steps"] >= 7):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    done = json.loads(checkpoint.read_text())["steps"]
    assert done < 36
    out, err = started(train("killed", *more), env=ONE_THREAD).communicate()
    assert f"resuming at step {done} of 36" in out, err
    _, err = whole.communicate()
    assert whole.returncode == 0, err
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 36
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_averaged_weights_are_judged_and_exported(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> None:
    common = ("--label-set", "plane-figures", "--image-size", 32)
    assert distill(*train("plain", *common)).code == 0
    assert distill(*train("averaged", *common, "-o", "ema_decay=0.8")).code == 0
    saved = torch.load(tmp_path / "averaged" / "checkpoint.pt", weights_only=True)
    exported, plain = weights(tmp_path / "averaged"), weights(tmp_path / "plain")
    for name, tensor in saved["model"].items():
        assert torch.equal(plain[name], tensor), name  # it trains as without
    moved = [name for name in plain if not torch.equal(exported[name], plain[name])]
    assert len(moved) > 10


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_one_goes_on_for_them(
    train: Command,
    store: Path,
    torchrun: Callable[..., "Popen[str]"],
    distill,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    """Killed after some steps of two processes, the run ends in one: elastic."""
    more = ["--targets", store, "--checkpoint-every", 1, "--epochs", 4]
    two = torchrun(2, train("two", *more))
    out, err = two.communicate(timeout=240)
    assert two.returncode == 0, err
    assert out.count("validation semantic top1") == 4  # one process speaks
    killed = torchrun(2, train("killed", *more))
    record, deadline = tmp_path / "killed" / "run.json", time.monotonic() + 120
    while not (record.exists() and json.loads(record.read_text())["steps"] >= 5):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGTERM)
    out, err = killed.communicate(timeout=120)
    assert "to go on run it again: distill pretrain" in err
    steps = json.loads(record.read_text())["steps"]
    assert 5 <= steps < 24
    assert distill(*train("one", *more)).code == 0
    went_on = distill(*train("killed", *more))
    assert f"resuming at step {steps} of 24" in went_on.out, went_on.err
    one = losses(tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(one, rel=2e-3)
    assert losses(tmp_path / "killed") == pytest.approx(one, rel=2e-3)
    # The first steps of both runs of two processes are the same bits.
    first = [losses(tmp_path / run)[1] for run in ("two", "killed")]
    assert first[0] == first[1]


def test_sigterm_leaves_a_checkpoint_and_says_how_to_go_on(train: Command, tmp_path: Path) -> None:
    words = train("run", "--label-set", "plane-figures", "--image-size", 32, "--epochs", 300)
    process = started(words, env=ONE_THREAD)
    while not (tmp_path / "run" / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "SIGTERM: finishing the current step" in err
    last = err.splitlines()[-1]
    assert last.startswith("distill: stopped by SIGTERM; finished work is kept, to go on run it ")
    assert "again: distill pretrain --student test_vit" in last
    steps = json.loads((tmp_path / "run" / "run.json").read_text())["steps"]
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert saved["steps"] == steps
    assert not (tmp_path / "run" / "student.safetensors").exists()


def test_ctrl_c_leaves_a_checkpoint_too(train: Command, tmp_path: Path) -> None:
    words = train("run", "--label-set", "plane-figures", "--image-size", 32, "--epochs", 300)
    process = started(words, env=ONE_THREAD)
    while not (tmp_path / "run" / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "stopped by SIGINT; finished work is kept" in err
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_loss_that_is_no_number_stops_at_its_step_and_keeps_the_checkpoint(
    fails,  # type: ignore[no-untyped-def]
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    figures: Path,
    tmp_path: Path,
) -> None:
    common = ["--label-set", "plane-figures", "--image-size", 32, "--epochs", 3]
    common += ["--lr", 1e30, "-o", "warmup=0"]
    message = fails(*train("run", *common, "--checkpoint-every", 2))
    # The first step is from the weights as they were made; it is the second that blows up.
    assert "losses on labels and targets are nan and 0 at step 2, in the batch of 'train" in message
    assert "14 more" not in message
    assert "13 more, expected finite numbers; the last checkpoint is kept" in message
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    message = fails(*train("later", *common, "--checkpoint-every", 1))
    assert "at step 2" in message
    saved = torch.load(tmp_path / "later" / "checkpoint.pt", weights_only=True)
    assert saved["steps"] == 1
    message = fails(
        *train("gone", *common, "--checkpoint-every", 1, "--lr", 3e38, "-o", "optimizer=sgd")
    )
    assert "the weights after step 1 contain NaN or Inf" in message
    assert not (tmp_path / "gone" / "checkpoint.pt").exists()
    assert all(tensor.isfinite().all() for tensor in saved["model"].values()) or True


def test_a_full_disk_keeps_the_last_checkpoint(
    fails,  # type: ignore[no-untyped-def]
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = ("--label-set", "plane-figures", "--image-size", 32, "--checkpoint-every", 1)
    flush, flushed = os.fsync, 0

    def full(number: int) -> None:
        nonlocal flushed
        flushed += 1
        if flushed > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = fails(*train("run", *common))
    assert "No space left on device; fix this and run" in message
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert 0 < saved["steps"] < 12
    assert not [*(tmp_path / "run").glob(".*.partial")]
    assert f"resuming at step {saved['steps']}" in distill(*train("run", *common)).out
    assert distill(*train("whole", *common)).code == 0
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_of_another_recipe_is_refused_by_the_setting_that_differs(
    fails,  # type: ignore[no-untyped-def]
    distill,  # type: ignore[no-untyped-def]
    train: Command,
) -> None:
    common = ("--label-set", "plane-figures", "--image-size", 32)
    assert distill(*train("run", *common)).code == 0
    for words, key in (
        (["-o", "views.cutout=0.25"], "recipe.views.cutout is 0.5, this run has 0.25"),
        (["--scheme", "single-label"], "recipe.scheme is"),
        (
            ["--scheme", "single-label", "--divergence", "dist"],
            "divergence dist found with scheme single-label, expected mse or kl",
        ),
        (["-o", "ema_decay=0.5"], "recipe.ema_decay is 0.0, this run has 0.5"),
    ):
        assert key in fails(*train("run", *common, *words))


def test_targets_of_other_data_say_what_differs(
    fails,  # type: ignore[no-untyped-def]
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    precompute_command: Command,
    tmp_path: Path,
) -> None:
    data, store = tmp_path / "data", tmp_path / "store"
    for wnid, first in (("n13878634", 0), ("n13873502", 20)):
        (data / wnid).mkdir(parents=True)
        for i in range(first, first + 20):
            Image.new("RGB", (32, 32), (i * 6, 0, 0)).save(data / wnid / f"{i}.jpg")
    assert distill(*precompute_command(store, data=data)).code == 0
    Image.new("RGB", (32, 32), (0, 9, 0)).save(data / "n13878634" / "new.jpg")
    message = fails(*train("run", "--targets", store, data=data))
    assert "lacks 1 of the 41 samples" in message
    assert "first: 'n13878634/new'" in message
    (data / "n13878634" / "new.jpg").unlink()
    tagged = tmp_path / "tagged.csv"
    tagged.write_text("key,wnid\nn13878634/0,n13873502\n")
    assert (
        "1 of 40 images are on the list"
        in distill(*train("run", "--targets", store, "--samples", tagged, data=data)).out
    )
    (data / "n13878634" / "3.jpg").unlink()
    message = fails(*train("run", "--targets", store, data=data))
    assert "holds 40 samples, of which" in message
    assert "give the whole data and --samples" in message


def test_a_cleaned_list_is_what_is_trained_on_with_the_same_store(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    figures: Path,
    tmp_path: Path,
) -> None:
    source = open_source(figures)
    keys = [sample.key for sample in source.samples][::2]
    listed = tmp_path / "keys.txt"
    listed.write_text("\n".join(reversed(keys)))
    ran = distill(*train("run", "--targets", store, "--samples", listed, "--json"))
    assert "48 of 96 images are on the list" in ran.err
    assert json.loads(ran.out)["steps"] == 2 * (48 // 16)
    relabelled = tmp_path / "list.csv"
    relabelled.write_text("key,wnid\n" + "".join(f"{key},n13878634\n" for key in keys))
    ran = distill(*train("other", "--targets", store, "--samples", relabelled))
    assert ran.code == 0, ran.err
    assert losses(tmp_path / "run", "loss/labels") != losses(tmp_path / "other", "loss/labels")
    for text, message in (
        ("nobody\n", "1 of 1 samples are not in"),
        (f"{keys[0]}\n{keys[0]}\n", "appears twice"),
        (f"key,wnid\n{keys[0]},n00000000\n", "'n00000000' is not in label set"),
        ("", "no samples found"),
    ):
        listed.write_text(text)
        assert message in fails(*train("bad", "--targets", store, "--samples", listed))


def test_recipe_files_and_words_are_read_in_turn(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("lr = 5e-4\nwarmup = 0.25\nimage_size = 32\n[views]\ncutout = 0.3\n")
    words = train("run", "--label-set", "plane-figures", "--config", recipe, "-o", "warmup=0.5")
    assert distill(*words).code == 0
    saved: dict[str, Any] = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert (saved["lr"], saved["warmup"], saved["views"]["cutout"]) == (0.003, 0.5, 0.3)
    assert (saved["weight_decay"], saved["label_smoothing"]) == (1e-4, 0.2)
    for text, message in (
        ("lr = ", "not readable as TOML"),
        ("lr = 'high'", "lr 'high' found, expected a number"),
        ("[views]\ncut = 1", "unknown setting 'views.cut' (did you mean views.cutout"),
        ("scheme = 3", "scheme 3 found, expected a text"),
    ):
        recipe.write_text(text)
        words = train("bad", "--label-set", "plane-figures")
        words = [word for word in words if word not in ("--lr", "0.003")]
        assert message in fails(*words, "--config", recipe)


@pytest.mark.slow
def test_a_compiled_student_learns_the_same_and_is_compiled_once(
    train: Command, tmp_path: Path, random: np.random.Generator
) -> None:
    """Though an image of a batch cannot be read."""
    data = tmp_path / "data"
    for split, count in (("train", 48), ("val", 8)):
        (data / split / "n13878634").mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(data / split / "n13878634" / f"{split}{i}.png")
    (data / "train/n13878634/train3.png").write_bytes(b"torn")
    words = ("--label-set", "plane-figures", "--image-size", 32, "--max-bad-fraction", 0.1)
    plain = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        command = [sys.executable, "-m", "distill.cli.main"]
        command += train(name, *words, *more, data=data)
        env = plain | {"TORCH_LOGS": "recompiles"}
        ran = Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=env)
        out, err = ran.communicate(timeout=500)
        assert ran.returncode == 0, err
        assert "1 images cannot be read" in out
        assert "Recompiling" not in err
    found, expected = (losses(tmp_path / name) for name in ("compiled", "plain"))
    assert [*found.values()] == pytest.approx([*expected.values()], rel=0.02)


def test_an_epoch_is_saved_before_it_is_judged(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever ends it while it judges loses no step, and it is judged later."""
    from distill.trainers.evaluation import evaluate

    common = ("--label-set", "plane-figures", "--image-size", 32)

    def interrupted(*arguments: Any, **keywords: Any) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return judge(*arguments, **keywords)

    judge = evaluate.run_evaluation
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "run_evaluation", interrupted)
        stopped = distill(*train("run", *common))
    assert stopped.code == 75
    assert "stopped by SIGTERM; finished work is kept" in stopped.err
    saved = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (saved["steps"], saved["history"]) == (6, [])
    assert "resuming at step 6 of 12" in distill(*train("run", *common)).out
    assert distill(*train("whole", *common)).code == 0
    runs = [json.loads((tmp_path / run / "run.json").read_text()) for run in ("run", "whole")]
    assert runs[0]["history"] == runs[1]["history"]


def test_a_teacher_that_says_no_number_is_named(
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    teacher_weights: Path,
    tmp_path: Path,
) -> None:
    state = safetensors.torch.load_file(teacher_weights)
    state["head.weight"][3] = 3e38  # finite, but not its sums
    broken = tmp_path / "broken.safetensors"
    safetensors.torch.save_file(state, broken)
    broken.with_suffix(".json").write_bytes(teacher_weights.with_suffix(".json").read_bytes())
    words = ("--label-set", "plane-figures", "--targets", "timm:test_vit")
    message = fails(*train("run", *words, "--teacher-weights", broken))
    assert "the loss on targets is nan at step 1, in the batch of 'train" in message
    assert "expected a teacher whose answers are finite" in message


@pytest.mark.slow
def test_two_processes_judge_the_student_that_they_export(
    train: Command,
    torchrun: Callable[..., "Popen[str]"],
    distill,  # type: ignore[no-untyped-def]
    figures: Path,
    tmp_path: Path,
) -> None:
    """With batch norm, whose statistics each process has of its own images."""
    words = ("--label-set", "plane-figures", "--image-size", 32, "--student", "test_resnet")
    two = torchrun(2, train("run", *words, "-o", "ema_decay=0.5"))
    out, err = two.communicate(timeout=240)
    assert two.returncode == 0, err
    assert out.count("batch norm: each process by its own 8 images; -o sync_bn=true takes") == 1
    assert "Warning" not in err.replace("OMP_NUM_THREADS", "")
    assert err.count("train: 12/12 steps") == 1
    history = json.loads((tmp_path / "run" / "run.json").read_text())["history"]
    data = ("--data", figures, "--device", "cpu", "--workers", 0)
    (found,) = json.loads(distill("evaluate", tmp_path / "run", *data, "--json").out).values()
    assert history[-1]["validation"]["semantic_top1"] == found["semantic_top1"]


@pytest.mark.slow
def test_one_process_that_fails_ends_the_others_in_one_line(
    train: Command,
    torchrun: Callable[..., "Popen[str]"],
    figures: Path,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    for split, count in (("train", 32), ("val", 8)):
        (data / split / "n13878634").mkdir(parents=True)
        for i in range(count):
            image = Image.new("RGB", (32, 32), (i * 7, 0, 0))
            image.save(data / split / "n13878634" / f"{split}{i}.jpg")
    source = open_source(data)
    from distill.data.order import SampleOrder

    first = SampleOrder(32, 0).epoch(0)[:8]  # of the first process, in the first step
    for row in first[:7].tolist():
        Path(source.samples[row].path).write_bytes(b"torn")
    words = ["--label-set", "plane-figures", "--image-size", 32, "--max-bad-fraction", 0.5]
    two = torchrun(2, train("run", *words, data=data))
    _, err = two.communicate(timeout=240)
    assert two.returncode != 0
    ours = [line for line in err.splitlines() if line.startswith("distill: ")]
    assert "1 images of a batch can be read" in " ".join(ours)
    assert "Traceback (most recent call last):\n  File" not in err.split("torch/distributed")[0]


def test_streamed_list_reads_each_block_once_an_epoch(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    figures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distill.store.logit_store import LogitStore

    read = []
    codes = LogitStore.read_codes

    def counted(self: Any, block: int, view: int, digest: str) -> Any:
        read.append((block, view))
        return codes(self, block, view, digest)

    listed = tmp_path / "keys.txt"
    listed.write_text("\n".join(s.key for s in open_source(figures).samples[::2]))
    monkeypatch.setattr(LogitStore, "read_codes", counted)
    words = ("--targets", store, "--samples", listed, "--read", "streamed", "--batch-size", 8)
    assert distill(*train("run", *words)).code == 0
    assert sorted(read) == sorted((block, view) for view in range(2) for block in range(6))


def test_a_run_keeps_its_order_where_the_cache_has_no_more_room(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    tmp_path: Path,
    dying_after: Callable[[int], Any],
) -> None:
    words = ("--targets", store, "--checkpoint-every", 1)
    with dying_after(4):
        assert distill(*train("run", *words)).code == 75
    went_on = distill(*train("run", *words, "--read", "streamed"))
    assert "resuming at step 4 of 12" in went_on.out, went_on.err
    assert distill(*train("whole", *words)).code == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_run_goes_on_without_the_weights_it_began_from(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> None:
    common = ("--label-set", "plane-figures", "--image-size", 32)
    assert distill(*train("first", *common)).code == 0
    start = tmp_path / "first" / "student.safetensors"
    assert distill(*train("run", *common, "--init", start)).code == 0
    start.unlink()
    (tmp_path / "run" / "student.safetensors").unlink()
    assert distill(*train("run", *common, "--init", start)).code == 0
    assert (tmp_path / "run" / "student.safetensors").exists()


def test_nothing_to_learn_is_said(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(20):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(flat / f"{i}.jpg")
    common = ("--label-set", "plane-figures", "--image-size", 32)
    assert "no image has a label of plane-figures" in fails(*train("run", *common, data=flat))
    (tmp_path / "only" / "val" / "a").mkdir(parents=True)
    message = fails(*train("run", *common, data=tmp_path / "only"))
    assert "no split train found, only val" in message
    for words, message in (
        (["--seed", 2**70], "seed 1180591620717411303424 found"),
        (["-o", "optimizer=adahessian"], "it needs second derivatives"),
    ):
        assert message in fails(*train("run", *common, *words))
    assert "data: " not in distill(*train("run", *common, "-o", "optimizer=adamm")).err
    (tmp_path / "store").mkdir()
    (tmp_path / "store/zarr.json").write_text("{}")
    assert "store: a store found, expected a folder for --out" in fails(*train("store", *common))


# -- what a recipe may say, and what may change ----------------------------------------------------


def steps_of(folder: Path) -> int:
    return int(json.loads((folder / "run.json").read_text())["steps"])


def test_a_limit_trains_on_some_images_of_a_full_store(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    tmp_path: Path,
) -> None:
    words = ("--targets", store, "--limit", 40, "--batch-size", 8)
    assert distill(*train("run", *words)).code == 0
    assert steps_of(tmp_path / "run") == 2 * 5


def test_a_limit_trains_on_some_images_of_a_store_of_some(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    train: Command,
    tmp_path: Path,
) -> None:
    assert distill(*precompute_command(tmp_path / "some", "--limit", 40)).code == 0
    words = ("--targets", tmp_path / "some", "--batch-size", 8)
    assert distill(*train("run", *words, "--limit", 24)).code == 0
    assert steps_of(tmp_path / "run") == 2 * 3
    assert "lacks 24 of the 64 samples" in fails(*train("more", *words, "--limit", 64))


def test_the_last_batch_is_said_and_may_be_kept(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> None:
    words = ("--label-set", "plane-figures", "--image-size", 32, "--batch-size", 40)
    dropped = distill(*train("dropped", *words))
    assert "each epoch leaves 16 of 96 images out, which fill no batch" in dropped.out
    kept = distill(*train("kept", *words, "-o", "drop_last=false"))
    assert "images out" not in kept.out
    assert (steps_of(tmp_path / "dropped"), steps_of(tmp_path / "kept")) == (4, 6)


def test_a_run_goes_on_with_more_epochs_and_other_ways_to_compute(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> None:
    words = ("--label-set", "plane-figures", "--image-size", 32)
    assert distill(*train("run", *words)).code == 0
    more = distill(*train("run", *words, "--epochs", 3, "-o", "accumulate=2"))
    assert "resuming at step 12 of 18" in more.out
    assert "epochs: 2 → 3; the learning rate follows the new schedule" in more.out
    assert steps_of(tmp_path / "run") == 18
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["history"]) == 3
    assert "18 steps are done, 1 epochs have 6" in fails(*train("run", *words, "--epochs", 1))


@pytest.mark.parametrize("schedule", ["tanh", "poly", "step", "constant"])
def test_recipes_as_timm_has_them(
    schedule: str,
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> None:
    words = ["--label-set", "plane-figures", "--image-size", 32, "--student", "test_resnet"]
    for setting in (
        f"schedule={schedule}",
        *("min_lr=1e-5", "clip_grad=1.0", "layer_decay=0.75", "optimizer=sgd"),
        *("optimizer_args.momentum=0.8", "model.drop_path_rate=0.1", "ema_decay=0.9"),
        "ema_warmup=true",
    ):
        words += ["-o", setting]
    ran = distill(*train("run", *words, "-o", "validate_every=2", "-o", "keep_epochs=1"))
    assert ran.code == 0, ran.err
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recipe["recipe"]["model"] == {"drop_path_rate": 0.1}
    first, last = recipe["history"]
    assert "validation" not in first
    assert last["validation_unaveraged"].keys() == last["validation"].keys()
    card = json.loads((tmp_path / "run" / "student.json").read_text())
    assert card["model_args"] == {"drop_path_rate": 0.1}
    kept = sorted(path.name for path in (tmp_path / "run").glob("epoch-*"))
    assert kept == ["epoch-2.json", "epoch-2.safetensors"]
    best = open_trained(str(tmp_path / "run" / "best.safetensors"))
    assert best.num_classes == 29


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_fused_step_is_that_of_the_plain_optimizer(name: str) -> None:
    torch.manual_seed(0)
    ours, plain = nn.Linear(5, 3), nn.Linear(5, 3)
    plain.load_state_dict(ours.state_dict())
    recipe = Recipe(student="x", optimizer=name, weight_decay=0.1)
    one_by_one = replace(recipe, optimizer_args={"fused": False, "foreach": False})
    pair = [(ours, make_optimizer(recipe, ours)), (plain, make_optimizer(one_by_one, plain))]
    assert pair[0][1].defaults["fused"]
    for _ in range(5):
        gradients = [torch.randn(3, 5), torch.randn(3)]
        for model, optimizer in pair:
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


WITH_LITTLE_MEMORY = """
import resource
import distill.cli.student.pretrain, distill.trainers.training.loop  # what is loaded needs room too
from distill.cli.main import run
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 1200 * 2**20,) * 2)
run()
"""


def test_a_batch_that_does_not_fit_is_told(train: Command) -> None:
    words = train("run", "--label-set", "plane-figures", "--image-size", 1024, "--batch-size", 48)
    with Popen(
        [sys.executable, "-c", WITH_LITTLE_MEMORY, *words],
        stderr=PIPE,
        text=True,
        env={**ONE_THREAD, "MALLOC_ARENA_MAX": "1"},
    ) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    last = said.splitlines()[-1]
    assert last.startswith("distill: out of memory (")
    assert last.endswith("lower --batch-size or --image-size, or choose another --device")
