"""Clips through every command that takes them: stores, students with and without a teacher."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from videos import WNIDS, greys, write_clips, write_video

import distill as distill_package
from distill.data.loader import in_batches, load_views
from distill.data.source import open_source
from distill.data.view_policy import ViewPolicy
from distill.models.card import ModelInput
from distill.models.frames import logits_of
from distill.teacher_server.inspect.findings import Rules
from distill.teacher_server.inspect.inspection import open_inspection
from distill.teacher_server.inspect.tag_lists import ListedImages
from distill.teacher_server.pages.error import PageError
from distill.teacher_server.pages.images import image_of
from distill.teacher_server.pages.site import StoreSnapshot

Command = Callable[..., list[str]]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def clip_store(clips: Path, precompute_command: Command, distill: Any, tmp_path: Path) -> Path:
    path = tmp_path / "store"
    words = precompute_command(path, "--views", 2, "--frames", 3, "--workers", 1, data=clips)
    ran = distill(*words)
    assert ran.code == 0, ran.err
    assert "data: train: 18 clips, 3 labels" in ran.err
    assert "data: each view is of 3 frames, from equal parts of its clip" in ran.err
    return path


def finetune(clips: Path, out: Path, *more: object) -> list[str]:
    fixed = ["finetune", "--student", "test_vit", "--init", "random", "--data", clips, "--out", out]
    fixed += ["--epochs", 2, "--batch-size", 6, "--image-size", 32, "--device", "cpu"]
    return [str(word) for word in (*fixed, "--workers", 0, *more)]


def test_a_clip_is_what_its_frames_are_on_average() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3), torch.nn.Flatten(2), torch.nn.AdaptiveAvgPool1d(1)
    )
    head = torch.nn.Linear(5, 7)
    clips = torch.randint(0, 256, (2, 12, 8, 8), dtype=torch.uint8)
    card = ModelInput(size=(8, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    frames = [model(card.normalise(clips[:, i : i + 3]))[..., 0] for i in range(0, 12, 3)]
    of_mean = head(torch.stack(frames).mean(0))
    answer = logits_of(lambda x: head(model(x)[..., 0]), card.normalise(clips))
    torch.testing.assert_close(answer, of_mean)


def test_pixels_are_those_of_the_frames(clips: Path) -> None:
    """All frames of a view get the same transforms; a view is of other frames than the next."""
    source = open_source(clips, "train", frames=4)
    for workers in (0, 1):
        (batch,) = load_views(
            source,
            ViewPolicy(name="plain", frames=4),
            [(32, 32), (16, 16)],
            in_batches(range(len(source)), (0,), 32),
            workers=workers,
        )
        assert batch.rows == list(range(18))
        assert [tuple(each.shape) for each in batch.pixels] == [
            (18, 1, 12, 32, 32),
            (18, 1, 12, 16, 16),
        ]
    first = open_source(clips, "train", frames=1)
    (single,) = load_views(
        first,
        ViewPolicy(name="plain", frames=1),
        [(32, 32)],
        in_batches(range(18), (0,), 32),
        workers=0,
    )
    assert single.pixels[0].shape[2] == 3
    moved = (batch.pixels[0][:, 0, :3] != batch.pixels[0][:, 0, 9:]).flatten(1).any(1)
    assert moved.all()


def test_a_store_of_clips_teaches_students(
    clips: Path, clip_store: Path, distill: Any, fails: Any, tmp_path: Path, train: Command
) -> None:
    info = json.loads(distill("store", "info", clip_store, "--json").out)
    assert info["view_policy"]["frames"] == 3
    targets = ("--targets", clip_store, "--cache", tmp_path / "cache")
    ran = distill(*train("run", "--frames", 3, *targets, "--batch-size", 6, data=clips))
    assert ran.code == 0, ran.err
    assert "views drawn again, pixel for pixel what the teacher saw" in ran.err + ran.out
    history = json.loads((tmp_path / "run" / "run.json").read_text())["history"]
    assert history[-1]["kd_loss"] > 0
    judged = distill("evaluate", tmp_path / "run", "--data", clips, "--frames", 8, "--json")
    assert judged.code == 0, judged.err
    for frames, found in (
        ((), "images found, expected clips of 3 frames"),
        (("--frames", 2), "clips of 2 frames found"),
    ):
        out = fails(*train(f"other{len(frames)}", *frames, *targets, data=clips))
        assert found in out
    opened = distill_package.open(
        clip_store, data=open_source(clips, frames=3), cache=tmp_path / "cache"
    )
    item = opened.dataset()[0]
    assert item["pixels"].shape[0] == 9


def test_teachers_of_clips_are_asked_again(
    clips: Path, clip_store: Path, precompute_command: Command, distill: Any, tmp_path: Path
) -> None:
    """By verify, by another precompute of the same, and in the student's own process."""
    words = precompute_command(tmp_path / "again", "--views", 2, "--frames", 3, data=clips)
    assert distill(*words).code == 0
    assert (
        "equal: the same answers to 18 samples"
        in (ran := distill("store", "diff", clip_store, tmp_path / "again")).out
    ), ran
    teacher = words[words.index("--teacher") : words.index("--data")]
    ran = distill(
        *("store", "verify", clip_store, *teacher, "--data", clips, "--frames", 3),
        *("--device", "cpu", "--workers", 0),
    )
    assert ran.code == 0, ran.err
    assert "asked again; 0 differ" in ran.out + ran.err


def test_clips_are_listed_split_and_shown(
    clips: Path, clip_store: Path, precompute_command: Command, distill: Any, tmp_path: Path
) -> None:
    """What else reads images, for people and for lists."""
    frames = ("--data", clips, "--frames", 3)
    plain = tmp_path / "plain"
    words = precompute_command(plain, "--view-policy", "plain", "--frames", 3, data=clips)
    computed = distill(*words)
    assert f"--data {clips} --frames 3 --targets {plain} --out RUN" in computed.out
    listed = distill("inspect", plain, *frames, "--missing", tmp_path / "missing.csv")
    assert listed.code == 0, listed.err
    kept = distill("store", "subset", clip_store, *frames, "--out", tmp_path / "kept")
    assert kept.code == 0, kept.err
    folds = distill("data", "folds", *frames, "--folds", 3, "--out", tmp_path / "folds", "--json")
    assert json.loads(folds.out)["images"] == 18
    inspection = open_inspection(str(clip_store), rules=Rules())
    look = StoreSnapshot(inspection, ListedImages.of(inspection, open_source(clips, frames=3)))
    assert image_of(look, 0, None).size == (48, 48)
    assert image_of(look, 0, 1).size == (3 * 32, 32)
    other = StoreSnapshot(inspection, ListedImages.of(inspection, open_source(clips, frames=2)))
    with pytest.raises(PageError, match="clips of 2 frames found"):
        image_of(other, 0, 1)


def test_students_learn_clips(clips: Path, distill: Any, tmp_path: Path) -> None:
    ran = distill(*finetune(clips, tmp_path / "run", "--frames", 2))
    assert ran.code == 0, ran.err
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert recipe["views"]["frames"] == 2
    again = distill(*finetune(clips, tmp_path / "run", "--frames", 2, "--epochs", 3))
    assert again.code == 0, again.err
    other = distill(*finetune(clips, tmp_path / "run", "--frames", 4, "--epochs", 4))
    assert other.code == 2
    assert "views.frames is 2, this run has 4" in other.err


def test_damaged_clips_are_listed_and_bounded(
    clips: Path, distill: Any, fails: Any, tmp_path: Path
) -> None:
    data = write_clips(tmp_path / "data", each=4)
    folder = data / "train" / WNIDS[0]
    whole = write_video(folder / "cut.mp4", greys(20)).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(folder / "one.mp4", greys(1))
    (folder / "notes.txt").write_text("no clip")
    words = finetune(
        data, tmp_path / "run", "--frames", 2, "--max-bad-fraction", 0.2, "--epochs", 4
    )
    ran = distill(*words)
    assert ran.code == 0, ran.err
    assert "notes.txt" in ran.err
    assert "2 images cannot be read and were left out (first: " in ran.out + ran.err
    assert "of 14 images cannot be read" in fails(
        *finetune(data, tmp_path / "strict", "--frames", 2, "--epochs", 4)
    )


def test_clips_and_images_are_not_taken_for_each_other(
    clips: Path, figures: Path, fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    for wnid in WNIDS:
        (images / wnid).mkdir(parents=True)
        greys(1)[0].save(images / wnid / "a.png")
    for data, found in (
        (figures, "WebDataset tars found with --frames, expected clips"),
        (images, "no clips found, only 3 no videos by their suffix"),
        (tmp_path / "absent", "no such file or folder"),
    ):
        assert found in fails(*finetune(data, tmp_path / "run", "--frames", 2))
    videos = tmp_path / "videos"
    write_video(videos / WNIDS[0] / "a.mp4", greys(2))
    assert "only 1 videos, which commands with --frames take" in fails(
        *finetune(videos, tmp_path / "run")
    )
    assert "--frames" in fails(*finetune(clips, tmp_path / "run", "--frames", 0))
    monkeypatch.setitem(sys.modules, "av", None)
    needed = fails(*finetune(clips, tmp_path / "run", "--frames", 2))
    assert "decoding videos needs av, which is not installed" in needed


def test_a_table_names_clips(clips: Path, tmp_path: Path) -> None:
    table = clips / "clips.csv"
    table.write_text(f"path,label\ntrain/{WNIDS[0]}/clip0.mp4,a\ntrain/{WNIDS[0]}/clip5,b\n")
    source = open_source(table, frames=2)
    (batch,) = load_views(
        source, ViewPolicy(name="plain", frames=2), [(8, 8)], in_batches((0, 1), (0,), 2), workers=0
    )
    assert not batch.bad
    assert sorted(str(sample.label) for sample in source.samples) == ["a", "b"]
    table.unlink()


def test_a_check_decodes_clips_whole(tmp_path: Path, distill: Any) -> None:
    root = write_clips(tmp_path / "clips")
    first = sorted(root.glob("train/*/*.mp4"))[0]
    shutil.copy(first, root / "val" / first.parent.name / "again.mp4")
    cut = sorted(root.glob("train/*/*.webm"))[0]
    cut.write_bytes(cut.read_bytes()[:-400])
    torn = sorted(root.glob("train/*/clip5/frame3.png"))[0]  # none of the frames that are shown
    torn.write_bytes(b"torn")
    words = ("data", "check", "--data", root, "--label-set", "plane-figures", "--workers", 2)
    ran = distill(*words, "--frames", 3, "--near", 2, "--out", tmp_path / "lists")
    assert ran.code == 0, ran.err
    assert "clips: 25 clips (18 train, 7 val)" in ran.out
    assert re.search(r"unreadable: 2 clips; 1 (cut off|not an image); 1 ", ran.out)
    assert "frame3.png" in ran.out
    assert "duplicates: 1 pairs show the same frames, 1 of them in two splits" in ran.out
    assert cut.stem in (tmp_path / "lists/unreadable.csv").read_text()
    report = json.loads(distill(*words, "--frames", 3, "--json").out)
    assert (report["images"], report["unreadable"]) == ({"train": 18, "val": 7}, 2)


def test_videos_and_frames_side_by_side_are_no_classes(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    write_video(tmp_path / "both/videos/a.mp4", greys(4))
    frames = tmp_path / "both/frames/a"
    frames.mkdir(parents=True)
    for i, grey in enumerate(greys(4)):
        grey.save(frames / f"{i}.png")
    said = fails("data", "check", "--data", tmp_path / "both", "--frames", 2)
    assert "videos/ and frames/ found, expected class folders" in said
    assert said.endswith("both/videos; if they are classes, rename them")
