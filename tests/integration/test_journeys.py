"""The journeys of docs/journeys.md, command by command as they stand there, with smaller models."""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Process, started
from small_models import as_the_authors_have_it

from distill.models.creation import create_model

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "journeys.md"
TRAINING = "--init random --image-size 32 --epochs 1 --batch-size 4 --workers 0 --device cpu"
SMALLER = {
    "--student resnet50": f"--student test_resnet {TRAINING}",
    "--student resnet18": f"--student test_resnet {TRAINING}",
    "serve --teacher resnet50": "serve --teacher test_resnet --workers 1 --device cpu",
    "--teacher resnet50": "--teacher test_resnet --workers 0 --device cpu",
    "--teacher tresnet_m": "--teacher tresnet_m --input-size 64 --workers 0 --device cpu",
    "--teacher NAME": "--teacher test_resnet --random-weights --input-size 32 --label-set tree.json"
    " --workers 0 --device cpu",
}
Distill = Callable[..., object]


def commands(title: str) -> list[list[str]]:
    """The words of each command below a heading."""
    section = DOCUMENT.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\n(distill .*?)^```", section, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    for whole, small in SMALLER.items():
        lines = [line.replace(whole, small) for line in lines]
    return [shlex.split(line)[1:] for line in lines]


def images(*folders: str, count: int = 4) -> None:
    """Noise of another brightness in each folder."""
    for shade, folder in enumerate(folders):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = np.random.default_rng([shade, i]).integers(0, 60, (40, 40, 3))
            pixels = Image.fromarray((noise + 20 * shade).astype(np.uint8))
            pixels.save(f"{folder}/{i}.jpg")


def walk(distill: Distill, title: str) -> str:
    said = ""
    for words in commands(title):
        ran = distill(*words)
        assert ran.code == 0, (words, ran.err)  # type: ignore[attr-defined]
        said += ran.err + ran.out  # type: ignore[attr-defined]
    return said


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))


def test_classes_of_ones_own_and_images_without_labels(distill: Distill) -> None:
    classes = [f"kind {i}" for i in range(10)]
    images(*(f"flowers/train/{name}" for name in classes))
    images(*(f"flowers/val/{name}" for name in classes), count=1)
    said = walk(distill, "Classes of one's own, in folders")
    assert "data: train: 40 images, 10 labels (kind 0, kind 1, kind 2, …)" in said
    assert "10 classes of one softmax" in said
    assert "agreement with the tags" in said
    images("more/kind 0", "more/unlabelled")
    _serve_to_another_machine(distill)
    said = walk(distill, "Images without labels")
    assert "without a label: 4 images" in said
    assert "unlabelled was taken for images without a label" in said


def _serve_to_another_machine(distill: Distill) -> None:
    api_key, serve, student = commands("A teacher for students on other machines")
    os.environ["DISTILL_API_KEY"] = distill(*api_key).out.split()[-1]  # type: ignore[attr-defined]
    server = Process(started([word.replace("8000", "0") for word in serve]))
    try:
        server.wait_for("ready")
        here = f"http://127.0.0.1:{server.port}"
        ran = distill(*(word.replace("http://gpu-box:8000", here) for word in student))
        assert ran.code == 0, ran.err  # type: ignore[attr-defined]
    finally:
        server.end()
        del os.environ["DISTILL_API_KEY"]


def test_a_taxonomy_of_ones_own(distill: Distill) -> None:
    section = DOCUMENT.read_text().partition("## A taxonomy of one's own")[2]
    Path("shop.json").write_text(re.findall(r"```\n({.*?})\n```", section, re.DOTALL)[0])
    images(*(f"shop/train/{name}" for name in ("apple", "granny smith", "sku-8", "pear", "bread")))
    said = walk(distill, "A taxonomy of one's own")
    assert "nothing validates: splits found: train, none of them val" in said
    assert Path("missing.csv").read_text().startswith("key,tag,")


def test_the_authors_files_and_data_that_changes(distill: Distill) -> None:
    classes = ["n00015388", "n02084071", "n02121808"]
    tree = {"class_tree_list": [[0], [1, 0], [2, 0]], "class_list": classes}
    torch.save(tree, "imagenet21k_miil_tree.pth")
    state = create_model("tresnet_m", 3).state_dict()
    torch.save({"state_dict": as_the_authors_have_it(state)}, "tresnet_m_miil_21k.pth")
    images("data/n02084071", "data/n02121808")
    said = walk(distill, "The authors' weights and tree")
    assert "input 64×64, mean 0 0 0, std 1 1 1" in said
    assert "names or shapes converted as timm does" in said
    teacher = ["--teacher", "test_resnet", "--random-weights", "--input-size", 32]
    teacher += ["--label-set", "tree.json", "--workers", 0, "--device", "cpu"]
    command = ["precompute", *teacher, "--data", "data", "--store", "changing"]
    assert distill(*command, "--views", 4).code == 0  # type: ignore[attr-defined]
    Path("data/n02084071/0.jpg").unlink()
    images("data/n00015388", count=2)
    refused = distill(*command, "--views", 4).err  # type: ignore[attr-defined]
    assert "2 images new to it, 1 images no longer there; go on with" in refused
    assert "--not-in changing --store NEW" in refused
    changes = [
        [word.replace("store", "changing") if word == "store" else word for word in words]
        for words in commands("When the data changes")
    ]
    subset, new, merge_samples, more, merge_views = changes
    subset = ["store", *subset[1:]]
    merge_samples, merge_views = ["store", *merge_samples[1:]], ["store", *merge_views[1:]]
    for words in (subset, new, merge_samples, more, merge_views):
        ran = distill(*words)
        assert ran.code == 0, (words, ran.err)  # type: ignore[attr-defined]
    assert "9 images × 8 views, complete" in distill("store", "info", "all").out  # type: ignore[attr-defined]
    asked = distill(*command[:-1], "grown", "--views", 8).err  # type: ignore[attr-defined]
    assert "--first-view 4 --views 4 --store MORE" in asked
