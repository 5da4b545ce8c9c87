import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from distill.data import views
from distill.data.source import open_source
from distill.data.view_policy import ViewPolicy
from distill.data.views import APPLY, OPERATIONS
from distill.errors import StoreMismatchError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.logit_store import LogitStore
from distill.store.views.cache import Cache
from distill.trainers.sources.replay import check_replay
from distill.trainers.sources.store import StoreTargets, stored_proofs

Command = Callable[..., list[str]]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path / "student.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert {*a} == {*b}
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_student_learns_from_the_store_and_loads_in_timm(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    tmp_path: Path,
) -> None:
    ran = distill(*train("run", "--targets", store, "--json"))
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["steps"] == 12
    assert 0 <= report["validation"]["semantic_top1"] <= 1
    assert "replay proof: 64 views drawn again" in ran.err
    path = tmp_path / "run" / "student.safetensors"
    model = timm.create_model("test_vit", num_classes=29, checkpoint_path=str(path))
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(model.state_dict()[name], tensor)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["recipe"]["student"] == "test_vit"
    assert run["targets"] == LogitStore.open(store).manifest.identity
    assert run["history"][1]["kd_loss"] > 0
    assert len(run["history"]) == 2


def test_store_changes_what_the_student_learns(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    tmp_path: Path,
) -> None:
    for out, weight in (("none", 0), ("some", 50)):
        assert distill(*train(out, "--targets", store, "--kd-weight", weight)).code == 0
    histories = [
        json.loads((tmp_path / out / "run.json").read_text())["history"] for out in ("none", "some")
    ]
    assert histories[1][-1]["kd_loss"] < histories[0][-1]["kd_loss"]


def test_weight_of_the_teacher_is_measured_said_and_kept(
    distill,  # type: ignore[no-untyped-def]
    fails: Callable[..., str],
    train: Command,
    store: Path,
    tmp_path: Path,
    dying_after: Callable[[int], Any],
) -> None:
    def weight(out: str) -> float:
        return float(json.loads((tmp_path / out / "run.json").read_text())["kd_weight"])

    whole = distill(*train("whole", "--targets", store))
    assert (
        f"KD weight: {weight('whole'):.4g}, at which the teacher pulls 3 times as hard" in whole.out
    )
    with dying_after(4):
        distill(*train("stopped", "--targets", store))
    went_on = distill(*train("stopped", "--targets", store))
    assert "KD weight" not in went_on.out
    assert weight("stopped") == weight("whole")
    (tmp_path / "recipe.toml").write_text('kd_weight = "auto"\n')
    config = ("--config", tmp_path / "recipe.toml")
    assert (
        distill(*train("config", "--targets", store, "--scheme", "single-label", *config)).code == 0
    )
    assert weight("config") != weight("whole")
    assert distill(*train("fixed", "--targets", store, "--kd-weight", 7)).code == 0
    assert weight("fixed") == 7
    assert distill(*train("alone", "--label-set", "plane-figures")).code == 0
    assert weight("alone") == 0
    assert "--kd-weight: 'most' found, expected a number or auto" in fails(
        *train("x", "--kd-weight", "most")
    )
    (tmp_path / "recipe.toml").write_text("kd_weight = true\n")
    assert "kd_weight True found, expected a number or auto" in fails(*train("x", *config))


@pytest.mark.parametrize("stop_after", [1, 5, 6, 9])
def test_stopped_at_any_step_it_ends_with_the_same_weights(
    stop_after: int,
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    tmp_path: Path,
    dying_after: Callable[[int], Any],
) -> None:
    command = ("--targets", store, "--checkpoint-every", 1)
    with dying_after(stop_after):
        stopped = distill(*train("stopped", *command))
        assert stopped.code == 75
        assert "stopped; finished work is kept" in stopped.err
    went_on = distill(*train("stopped", *command))
    assert f"resuming at step {stop_after} of 12" in went_on.out
    assert distill(*train("whole", *command)).code == 0
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")
    runs = [json.loads((tmp_path / o / "run.json").read_text()) for o in ("stopped", "whole")]
    assert runs[0]["history"] == runs[1]["history"]


def test_finished_run_is_done_at_once(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> None:
    command = train("run", "--label-set", "plane-figures", "--json")
    first, second = (json.loads(distill(*command).out) for _ in range(2))
    assert (first["steps"], second["steps"]) == (12, 0)
    assert first["validation"] == second["validation"]


def test_bad_images_are_left_out_up_to_a_share(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    train: Command,
    figures: Path,
    tmp_path: Path,
) -> None:
    data, path = tmp_path / "data", tmp_path / "store"
    for wnid, count in (("n13878634", 20), ("n13873502", 13)):
        (data / wnid).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (i * 9, 0, 0)).save(data / wnid / f"{wnid}_{i}.jpg")
    (data / "n13878634" / "n13878634_0.jpg").write_bytes(b"\xff\xd8 torn")
    command = precompute_command(path, "--max-bad-fraction", 0.1, data=data)
    assert distill(*command).code == 0
    allowed = ("--batch-size", 11, "--json", "--max-bad-fraction", 0.1)
    ran = distill(*train("run", "--targets", path, *allowed, data=data))
    assert ran.code == 0, ran.err
    unreadable = json.loads(ran.out)["unreadable"]
    assert [*unreadable] == ["n13878634/n13878634_0"]
    assert "not an image" in unreadable["n13878634/n13878634_0"]
    few = train("few", "--label-set", "plane-figures", "--image-size", 32, data=data)
    message = fails(*few)
    assert "1 of 33 images cannot be read (first: 'n13878634/n13878634_0', not an image" in message
    assert "expected at most 0.10%; repair the data, or raise --max-bad-fraction" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--student", "test_vitt"], "unknown student 'test_vitt' (did you mean test_vit"),
        (["--scheme", "semantik"], "scheme 'semantik' found, expected 'single-label'"),
        (["--label-set", "imagenet21k-p-fall11"], ": hierarchy 67dc96836aba found"),
        (["-o", "views.cutout=0.25"], "views.cutout 0.25 found, but the targets of "),
        (["--view-policy", "plain"], "views.name 'plain' found, but the targets of "),
        (["-o", "model.depthh=3"], "cannot be made with depthh 3 "),
        (["-o", "optimizer_args.beta=3"], "optimizer 'adamw' with {'beta': 3} found"),
        (["--batch-size", 97], "lower --batch-size"),
        (["--epochs", 0], "epochs 0 found, expected more than 0"),
        (["--lr", -1], "lr -1.0 found"),
        (["--init", "/nowhere.pth"], "no such weight file"),
        (["--init", "pretrained"], "pass --init random, or a file"),
        (["-o", "lrr=1"], "unknown setting 'lrr' (did you mean lr?)"),
        (["-o", "views.cutout"], "expected KEY=VALUE"),
        (["-o", "optimizer=adamm"], "optimizer 'adamm' found"),
        (["-o", "accumulate=16"], "expected two images for each; raise --batch-size"),
        (["--config", "/nowhere.toml"], "no such file; expected settings in TOML"),
        (["--samples", "/nowhere.csv"], "--samples: Path '/nowhere.csv' does not exist"),
        (["--teacher-weights", "f"], "without --targets timm:NAME"),
        (["--targets", "/nowhere"], "no such store"),
        (["--data", "/nowhere"], "no such file or folder"),
        (["-o", "model.patch_size=64"], "does not take 32×32 images"),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(
    options: list[object],
    message: str,
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    tmp_path: Path,
) -> None:
    before = {*tmp_path.iterdir()}
    assert message in fails(*train("run", "--targets", store, *options))
    assert {*tmp_path.iterdir()} - before <= {tmp_path / "cache"}


def test_another_run_in_the_same_place_is_refused(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    tree_bytes: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    fixed = ("--label-set", "plane-figures")
    assert distill(*train("run", *fixed)).code == 0
    before = tree_bytes(tmp_path / "run")
    assert "choose another --out" in fails(*train("run", *fixed, "--seed", 1))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "checkpoint.pt").write_bytes(b"torn")
    assert "not a readable checkpoint" in fails(*train("torn", *fixed))
    assert tree_bytes(tmp_path / "run") == before


def test_out_that_is_a_file_is_one_line(
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("precious")
    message = fails(*train("file", "--label-set", "plane-figures", "--image-size", 32))
    assert str(tmp_path / "file") in message
    assert (tmp_path / "file").read_text() == "precious"


def test_incomplete_store_is_refused(
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
) -> None:
    LogitStore.open(store).revoke([2])
    message = fails(*train("run", "--targets", store))
    assert "1 of 6 blocks are missing" in message


def test_changed_transform_is_caught_before_training(
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And it is said which: another library draws one operation differently."""
    monkeypatch.setitem(APPLY, "solarize", lambda image, amount: image)
    message = fails(*train("run", "--targets", store))
    assert re.search(r"sample 'train\d+', view \d: the transform solarize\(", message)
    assert "gives other pixels than the teacher saw" in message
    assert "use the torchvision and Pillow that wrote the store (distill 0.1.0, " in message


def test_changed_resize_is_told_from_changed_images(
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(views, "squish", lambda image, size: image.rotate(90))
    assert "view 0: the transform resize gives other" in fails(*train("run", "--targets", store))


def test_other_draws_are_told_from_other_transforms(
    fails,  # type: ignore[no-untyped-def]
    train: Command,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(OPERATIONS, "rotate", 45.0)
    message = fails(*train("run", "--targets", store))
    assert re.search(r"rotate\(-?40.500\) is drawn where the teacher saw rotate\(", message)


def test_changed_image_is_caught_by_the_replay_proof(
    store: Path, figures: Path, tmp_path: Path
) -> None:
    source, opened = open_source(figures), LogitStore.open(store)
    assert check_replay(stored_proofs(opened), source, ViewPolicy()) == 64
    whole = Path(figures / "train-000000.tar").read_bytes()
    sample = source.samples[3]
    changed = bytearray(whole)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "black.jpg")
    black = (tmp_path / "black.jpg").read_bytes()
    changed[sample.offset : sample.offset + len(black)] = black
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "train-000000.tar").write_bytes(changed)
    with pytest.raises(StoreMismatchError, match="view 0: decode gives other pixels than"):
        check_replay(stored_proofs(opened), open_source(tmp_path / "changed"), ViewPolicy())


@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_store_targets_fetch_any_samples_in_the_order_asked(
    store: Path, tmp_path: Path, random: np.random.Generator, mode: Any
) -> None:
    from distill.errors import DataError

    opened = LogitStore.open(store)
    targets = StoreTargets(opened, Cache(tmp_path / "cache"), mode)
    commits = opened.block_commits()
    for view in (0, 1, 0):
        targets.prepare(view)
        rows = random.integers(0, 96, 40)
        said = targets.fetch(opened.sample_ids[rows], view)
        for i, row in enumerate(rows):
            codes = opened.read_codes(int(row) // 16, view, commits[int(row) // 16])
            block = opened.manifest.coding.dequantise(codes)
            assert torch.equal(said.prob[i], torch.from_numpy(block.prob[row % 16]))
            assert torch.equal(said.confidence[i], torch.from_numpy(block.confidence[row % 16]))
    with pytest.raises(DataError, match="1 of 2 samples are not in the store"):
        targets.fetch(np.array([[1, 2], opened.sample_ids[0]], np.uint64), 0)
    assert isinstance(targets.hierarchy, SemanticHierarchy)
