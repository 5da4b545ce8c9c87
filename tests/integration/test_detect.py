"""`distill detect`: annotations of any kind, detectors on backbones, runs that go on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from distill.data.rendered.scenes import SceneSet, render_scene, write_scenes
from distill.errors import ConfigError, DataError
from distill.models.card import ModelInput
from distill.models.creation import create_model
from distill.trainers.detection.coco import DetectionDataset, mask_of, open_scenes
from distill.trainers.detection.detector import KINDS, make_detector
from distill.trainers.detection.train import DetectionRecipe
from distill.trainers.recipe import Recipe
from distill.trainers.training.finetune import start_name

SMALL = ("--channels", 16, "--batch-size", 2, "--image-size", 64, "--workers", 0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, SceneSet(train=12, val=4, pixels=64), workers=0)
    return folder


@pytest.fixture
def words(scenes: Path, tmp_path: Path) -> list[object]:
    """The command, a few iterations of it."""
    return [
        *("detect", "--student", "test_resnet", "--init", "random", "--data", scenes, *SMALL),
        *("--iterations", 4, "--detector", "retinanet", "--device", "cpu"),
        *("--out", tmp_path / "out"),
    ]


# -- annotations ----------------------------------------------------------------------------------


def test_scenes_are_the_same_for_the_same_seed_and_their_masks_fit() -> None:
    image, figures = render_scene(96, np.random.default_rng(5))
    again, _ = render_scene(96, np.random.default_rng(5))
    assert (np.asarray(image) == np.asarray(again)).all()
    for figure in figures:
        mask = mask_of(figure["segmentation"], (96, 96))
        assert mask.sum() == pytest.approx(figure["area"], rel=0.2)
        rows, columns = np.nonzero(mask)
        x, y, w, h = figure["bbox"]
        expected = (x, y, x + w, y + h)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(found, expected)).max() <= 2


def test_masks_of_polygons_and_run_lengths() -> None:
    plane = Image.new("1", (20, 10))
    ImageDraw.Draw(plane).rectangle((3, 2, 8, 6), fill=1)
    expected = np.asarray(plane, np.uint8)
    assert (mask_of([[3, 2, 9, 2, 9, 7, 3, 7]], (10, 20)) == expected).all()
    flat = expected.T.reshape(-1)  # column by column
    counts, value, run = [], 0, 0
    for each in flat:
        if each != value:
            counts.append(run)
            value, run = each, 0
        run += 1
    runs = {"counts": [*counts, run], "size": [10, 20]}
    assert (mask_of(runs, (10, 20)) == expected).all()
    for wrong in ([], [["x"]], {"counts": "nonsense\0", "size": [10, 20]}, 7):
        with pytest.raises(DataError):
            mask_of(wrong, (10, 20))


def write(folder: Path, document: Any, *, split: str = "train", images: int = 2) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for i in range(images):
        Image.new("RGB", (40, 30)).save(folder / f"{i}.png")
    (folder / f"{split}.json").write_text(
        document if isinstance(document, str) else json.dumps(document)
    )
    return folder


def coco(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(2)],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {"image_id": 0, "category_id": 9, "bbox": [1, 2, 10, 10]},
            *annotations,
        ],
        **more,
    }


def test_boxes_are_clipped_and_what_has_no_extent_is_counted(tmp_path: Path) -> None:
    annotations = [
        {"image_id": 0, "category_id": 4, "bbox": [30, 20, 100, 100], "iscrowd": 1},
        {"image_id": 1, "category_id": 4, "bbox": [5, 5, 0, 10]},
        {"image_id": 1, "category_id": 4, "bbox": [50, 5, 10, 10]},
        {"image_id": 1, "category_id": 4, "bbox": [float("nan"), 5, 10, 10]},
    ]
    found = open_scenes(write(tmp_path, coco(*annotations)), "train", masks=False)
    assert found.classes == ("dog", "cat")  # by their ids
    assert [len(scene.things) for scene in found.scenes] == [2, 0]
    assert found.scenes[0].things[1].box == (30, 20, 40, 30)
    assert sum(found.skipped.values()) == 3
    assert "2 with a box of no extent" in found.describe()
    judged = DetectionDataset(found, masks=False, crowds=True)
    trained = DetectionDataset(found, masks=False, crowds=False)
    assert judged[0, False][1]["iscrowd"].tolist() == [0, 1]
    assert trained[0, False][1]["labels"].tolist() == [2]
    assert trained[1, False][1]["boxes"].shape == (0, 4)
    _, flipped = trained[0, True]
    assert flipped["boxes"].tolist() == [[29, 2, 39, 12]]
    with pytest.raises(DataError, match="no object found"):
        open_scenes(tmp_path, "train", masks=True)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("", "cannot be read as COCO"),
        ("[]", "cannot be read as COCO"),
        ("[" * 100_000, "cannot be read as COCO"),
        (coco({"image_id": 7, "category_id": 9, "bbox": [1, 1, 5, 5]}), "expected ones that"),
        (coco({"image_id": 0, "category_id": 7, "bbox": [1, 1, 5, 5]}), "expected ones that"),
        (coco({"image_id": 0, "category_id": 9, "bbox": [1, 1, 5]}), "cannot be read as COCO"),
        (coco(categories=[{"id": 9, "name": "a"}, {"id": 9, "name": "b"}]), "two categories"),
        (coco(annotations=[]), "no object found"),
        (
            coco(images=[{"id": 0, "file_name": "../x.png", "width": 4, "height": 3}]),
            "inside the folder",
        ),
        (
            coco(images=[{"id": 0, "file_name": "/etc/passwd", "width": 4, "height": 3}]),
            "inside the folder",
        ),
        (
            coco(images=[{"id": 0, "file_name": "none.png", "width": 4, "height": 3}]),
            "1 of 1 images are not in",
        ),
    ],
)
def test_hostile_annotations_are_one_line(tmp_path: Path, document: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        open_scenes(write(tmp_path, document), "train", masks=False)
    assert "\n" not in str(error.value)


def test_images_of_another_size_and_classes_of_another_split(tmp_path: Path) -> None:
    write(tmp_path, coco())
    Image.new("RGB", (41, 30)).save(tmp_path / "0.png")
    found = open_scenes(tmp_path, "train", masks=False)
    wrong = DetectionDataset(found, masks=False, crowds=True)[0, False]
    assert isinstance(wrong, DataError)
    assert "0.png: 41×30 pixels found, annotated are 40×30" in str(wrong)
    with pytest.raises(DataError, match="not those of the training images"):
        open_scenes(tmp_path, "train", ("cat", "dog"), masks=False)


def test_an_image_is_turned_as_its_annotations_are(tmp_path: Path) -> None:
    write(tmp_path, coco())
    stored = Image.fromarray(np.arange(40 * 30, dtype=np.uint16).astype(np.uint8).reshape(40, 30))
    turned = Image.Exif()
    turned[0x0112] = 6
    stored.convert("RGB").save(tmp_path / "0.png", exif=turned)  # upright it is 40 × 30
    upright = open_scenes(tmp_path, "train", masks=False)
    as_stored = coco(
        images=[
            {"id": i, "file_name": f"{i}.png", "width": 30 + 10 * i, "height": 40 - 10 * i}
            for i in range(2)
        ]
    )
    (tmp_path / "train.json").write_text(json.dumps(as_stored))
    for scenes, size in (
        (upright, (30, 40)),
        (open_scenes(tmp_path, "train", masks=False), (40, 30)),
    ):
        item = DetectionDataset(scenes, masks=False, crowds=True)[0, False]
        assert not isinstance(item, DataError)
        assert tuple(item[0].shape[1:]) == size


def test_fields_that_mean_something_else_are_told(tmp_path: Path) -> None:
    text = {"image_id": 0, "category_id": 9, "bbox": [1, 1, 5, 5], "iscrowd": "0"}
    half = coco(images=[{"id": 0.5, "file_name": "0.png", "width": 40, "height": 30}])
    endless = json.dumps(coco()).replace('"id": 0', '"id": Infinity')
    for document in (coco(text), half, endless):
        with pytest.raises(DataError, match="cannot be read as COCO"):
            open_scenes(write(tmp_path, document), "train", masks=False)
    crowds = coco(annotations=[{**text, "iscrowd": 1}])
    with pytest.raises(DataError, match="no object found"):
        open_scenes(write(tmp_path, crowds), "train", masks=False)
    few = {**text, "iscrowd": 0, "segmentation": [[1, 1, 60, 60]], "area": float("nan")}
    found = open_scenes(write(tmp_path, coco(few)), "train", masks=False)
    assert found.skipped == {"with a polygon of fewer than three corners": 1}


def test_cocos_own_layout(tmp_path: Path) -> None:
    for split, number in (("train", 0), ("val", 1)):
        (tmp_path / f"{split}2017").mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / f"{split}2017/{number}.png")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        document = coco(images=[{"id": 0, "file_name": f"{number}.png", "width": 40, "height": 30}])
        name = f"annotations/instances_{split}2017.json"
        (tmp_path / name).write_text(json.dumps(document))
    for split, number in (("train", 0), ("val", 1)):
        (scene,) = open_scenes(tmp_path, split, masks=False).scenes
        assert scene.path == tmp_path / f"{split}2017/{number}.png"
    with pytest.raises(
        DataError, match=r"found instances_train2017\.json, instances_val2017\.json"
    ):
        open_scenes(tmp_path, "test", masks=False)


# -- detectors ------------------------------------------------------------------------------------


def detector(kind: Any, name: str) -> Any:
    """A small one, of three classes."""
    return make_detector(
        kind,
        create_model(name, 3),
        name=name,
        model_input=ModelInput(size=(64, 64)),
        classes=3,
        image_size=64,
        channels=16,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stands_on_any_pyramid(kind: Any) -> None:
    for name in ("test_resnet", "test_efficientnet"):
        model = detector(kind, name)
        images = [torch.rand(3, 64, 80), torch.rand(3, 70, 64)]
        targets = [
            {
                "boxes": torch.tensor([[5.0, 5, 30, 30]])[:n],
                "labels": torch.ones(1, dtype=torch.int64)[:n],
                "masks": torch.ones(n, *image.shape[1:], dtype=torch.uint8),
            }
            for n, image in zip((1, 0), images, strict=True)
        ]
        losses = model.train()(images, targets)
        assert all(torch.isfinite(loss) for loss in losses.values())
        found = model.eval()(images[:1])[0]
        assert {"boxes", "labels", "scores"} <= {*found}
        assert ("masks" in found) == (kind == "mask-rcnn")
    with pytest.raises(ConfigError, match="expected a model with a pyramid"):
        detector(kind, "test_vit")


@pytest.mark.parametrize("kind", ["retinanet", "faster-rcnn"])
def test_a_small_image_has_anchors_for_what_is_in_it(kind: Any) -> None:
    model = detector(kind, "test_resnet")
    pixels = torch.zeros(1, 3, 64, 64)
    generator = model.anchor_generator if kind == "retinanet" else model.rpn.anchor_generator
    (anchors,) = generator(ImageList(pixels, [(64, 64)]), [*model.backbone(pixels).values()])
    boxes = torch.tensor(
        [
            [x, y, x + w, y + h]
            for i in range(50)
            for x, y, w, h in (f["bbox"] for f in render_scene(64, np.random.default_rng(i))[1])
        ]
    )
    best = box_iou(boxes, anchors).max(1).values
    assert (best > 0.4).float().mean() > 0.9  # what RetinaNet calls an object


def test_schedules_are_those_of_the_paper() -> None:
    def drops(iterations: int) -> list[int]:
        recipe = DetectionRecipe(backbone=Recipe(student="x"), iterations=iterations)
        rates = [recipe.rate(i) for i in (0, 499, 500, iterations - 1)]
        assert rates == pytest.approx([0.02 / 501, 0.02 * 500 / 501, 0.02, 0.0002])
        steps = range(500, iterations)
        return [i for i in steps if recipe.rate(i) < 0.5 * recipe.rate(i - 1)]

    assert drops(90_000) == [60_000, 80_000]  # 1x
    assert drops(180_000) == [120_000, 160_000]  # 2x
    assert drops(540_000) == [480_000, 520_000]  # 6x


def test_a_run_goes_on_to_the_same_detector(
    words: list[object], tmp_path: Path, distill: Callable[..., Any], fails: Callable[..., str]
) -> None:
    whole = distill(*words, "--validate-every", 2, "--json")
    assert whole.code == 0, whole.err
    report = json.loads(whole.out)
    assert [each["iteration"] for each in report["history"]] == [2, 4]
    parts = [*map(str, words[:-1]), str(tmp_path / "parts"), "--validate-every", "2"]
    command = [sys.executable, "-m", "distill.cli.main", *parts]
    alike = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums of other threads round otherwise
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=alike)
    while not (tmp_path / "parts/checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    again = distill(*parts)
    assert again.code == 0, again.err
    name = "detector.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert "recipe.lr is 0.02, this run has 0.01" in fails(*parts, "--lr", 0.01)
    assert "begun with other images or labels (dataset_digest" in fails(*parts, "--limit", 3)
    (tmp_path / "parts/checkpoint.pt").write_bytes(b"torn")
    assert "the run begins anew" in fails(*parts)


def test_a_signal_to_all_processes_ends_a_run_after_an_iteration(
    words: list[object], tmp_path: Path
) -> None:
    """As Ctrl-C, timeout and Slurm send it: to those that decode as well."""
    more = ("--iterations", 100_000, "--validate-every", 2, "--workers", 1)
    command = [sys.executable, "-m", "distill.cli.main", *map(str, (*words, *more))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "out/checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "distill: stopped by SIGTERM; finished work is kept" in said.splitlines()[-1]


def test_pretrained_against_random(
    words: list[object], teacher_weights: Path, tmp_path: Path, distill: Callable[..., Any]
) -> None:
    student = tmp_path / "run"
    trained = distill(
        *("pretrain", "--student", "test_resnet", "--init", "random", "--epochs", 1),
        *("--data", _folders(tmp_path), "--label-set", _labels(tmp_path), "--out", student),
        *("--image-size", 32, "--batch-size", 4, "--device", "cpu", "--workers", 0),
    )
    assert trained.code == 0, trained.err
    ran = distill(*words, "--compare", f"{student},random", "--longer", 2, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert {*found["last"]} == {"run", "random"}
    assert (tmp_path / "out/comparison.png").stat().st_size > 1000
    records = {
        name: json.loads((tmp_path / "out" / name / "run.json").read_text())
        for name in ("run", "random")
    }
    assert records["random"]["iteration"] == 2 * records["run"]["iteration"]
    backbones = [records[name]["recipe"]["backbone"] for name in ("run", "random")]
    assert backbones[0]["init"] == str(student)
    assert backbones[0]["normalisation"] == backbones[1]["normalisation"]


def _folders(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "images/train" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(
                tmp_path / f"images/train/{name}/{name}{i}.png"
            )
    return tmp_path / "images"


def _labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"parents": {"a": None, "b": None}}))
    return path


def test_errors_are_one_line(
    words: list[object], scenes: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    vit = [word if word != "test_resnet" else "test_vit" for word in words]
    assert "expected a model with a pyramid" in fails(*vit)
    assert "expected two or more starts" in fails(*words, "--compare", "random")
    assert "no such weight file" in fails(*words, "--init", tmp_path / "none")
    assert "train.json or one annotations" in fails(*words, "--data", tmp_path)
    assert "expected a new folder" in fails("data", "scenes", "--out", scenes)
    (tmp_path / "bad").mkdir()
    for split in ("train", "val"):
        (tmp_path / "bad" / split).mkdir()
        for path in (scenes / split).iterdir():
            (tmp_path / "bad" / split / path.name).write_bytes(b"no image")
        (tmp_path / f"bad/{split}.json").write_text((scenes / f"{split}.json").read_text())
    for workers in (0, 1):
        said = fails(*words, "--data", tmp_path / "bad", "--workers", workers)
        assert ".jpg: not an image" in said
        assert "Traceback" not in said


def test_starts_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run.1", "random"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "run.1")
    assert [start_name(init) for init in (".", "../run.1", "../w.safetensors", "random")] == [
        *("run.1", "run.1", "w", "random")
    ]
    for init in ("../random", "/"):
        with pytest.raises(ConfigError, match="expected one of its own"):
            start_name(init)


@pytest.mark.slow
def test_a_detector_learns_to_find_what_it_was_shown(
    scenes: Path, tmp_path: Path, distill: Callable[..., Any]
) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "few/train").symlink_to(scenes / "train")
    document = json.loads((scenes / "train.json").read_text())
    document["categories"] = [{"id": 1, "name": "figure"}]
    for annotation in document["annotations"]:
        annotation["category_id"] = 1
    for split in ("train", "val"):
        (tmp_path / f"few/{split}.json").write_text(json.dumps(document))
    ran = distill(
        *("detect", "--student", "test_resnet", "--init", "random", "--data", tmp_path / "few"),
        *("--channels", 32, "--batch-size", 4, "--image-size", 128, "--workers", 0, "--json"),
        *("--iterations", 400, "--lr", 0.02, "--device", "cpu", "--out", tmp_path / "out"),
        *("--validate-every", 400),
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["history"][-1]["validation"]["ap50"] > 0.5
