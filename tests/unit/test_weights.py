"""Weight files as timm, torch.compile, DDP and Lightning leave them."""

import argparse
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from small_models import as_the_authors_have_it
from timm.utils import CheckpointSaver
from torch import nn

from distill.errors import ConfigError, HierarchyError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.card import ModelCard
from distill.models.creation import classifier_names, create_model, default_input
from distill.models.weights import (
    Weights,
    find_weights,
    load_weights,
    read_weights,
    with_classifier,
)

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(1)
    return create_model("test_resnet", 3)


def halved(state: State) -> State:
    return {k: v * 0.5 if v.is_floating_point() else v for k, v in state.items()}


def loaded(path: Path, name: str = "test_resnet", classes: int = 3) -> tuple[State, Weights]:
    torch.manual_seed(2)
    fresh = create_model(name, classes)
    weights = load_weights(fresh, read_weights(path))
    return fresh.state_dict(), weights


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_weights_that_are_not_finite_are_refused(model: nn.Module, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["fc.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"fc\.weight contains NaN or Inf, expected finite"):
        loaded(tmp_path / "a.pth")


def test_a_checkpoint_of_timms_train_py_gives_its_ema_weights(
    model: nn.Module, tmp_path: Path
) -> None:
    state = model.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averaged = timm.utils.ModelEmaV3(model)
    averaged.module.load_state_dict(halved(state))
    saver = CheckpointSaver(
        model=model,
        optimizer=optimizer,
        args=argparse.Namespace(lr=1, model="test_resnet"),
        model_ema=averaged,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(3, metric=77.1)
    taken, weights = loaded(find_weights(tmp_path))
    assert same(taken, halved(state))
    assert weights.notes == ("state_dict_ema taken, not state_dict",)
    assert weights.architecture == "test_resnet"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_of_wrappers_are_taken_off(
    model: nn.Module, tmp_path: Path, prefix: str, suffix: str
) -> None:
    state = {prefix + k: v.contiguous() for k, v in model.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    assert same(loaded(path)[0], model.state_dict())


def test_of_a_lightning_module_the_model_is_taken(model: nn.Module, tmp_path: Path) -> None:
    state = {"model." + k: v for k, v in model.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(3)}, "epoch": 1}, path)
    taken, weights = loaded(path)
    assert same(taken, model.state_dict())
    assert weights.notes == ("1 tensors outside model. left out",)


def test_the_filter_of_an_architecture_converts_names(tmp_path: Path) -> None:
    """The authors' TResNet files: other names, and weights of InplaceABN that may be negative."""
    state = create_model("tresnet_m", 5).state_dict()
    authors = as_the_authors_have_it(state)
    path = tmp_path / "tresnet_m_miil_21k.pth"
    torch.save({"state_dict": authors}, path)
    taken, weights = loaded(path, "tresnet_m", 5)
    assert "converted as timm does" in weights.notes[0]
    assert torch.equal(taken["head.fc.weight"], state["head.fc.weight"])


def test_position_embeddings_are_resized_as_timm_does(tmp_path: Path) -> None:
    torch.save(create_model("test_vit", 3).state_dict(), tmp_path / "w.pth")
    larger = timm.create_model("test_vit", num_classes=3, img_size=224)
    load_weights(larger, read_weights(tmp_path / "w.pth"))


def test_code_in_a_file_is_named_and_not_run(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(ConfigError, match=r"holds timm.*, which is code and is not executed"):
        read_weights(tmp_path / "whole.pth")


def test_folders_and_what_is_no_weight_file(model: nn.Module, tmp_path: Path) -> None:
    timm.models.save_for_hf(model, tmp_path / "export", safe_serialization=True)
    path = find_weights(f"local-dir:{tmp_path}/export")
    assert path.name == "model.safetensors"
    assert same(loaded(path)[0], model.state_dict())
    card = ModelCard.read(path)
    assert card
    assert (card.model, card.num_classes, card.input.size) == ("test_resnet", 3, (160, 160))
    with pytest.raises(ConfigError, match="no weights found"):
        find_weights(tmp_path)
    with pytest.raises(ConfigError, match="no such weight file"):
        find_weights(tmp_path / "none")


@pytest.mark.parametrize(
    ("known", "wanted", "rows", "note"),
    [
        (["a", "b", "c"], ["a", "b", "c"], [0, 1, 2], "classifier kept"),
        (["a", "b", "c"], ["c", "a"], [2, 0], "classifier: 2 of 3 rows kept"),
        (["a", "b", "c"], ["a", "b", "d"], None, "classifier new: its 3 classes lack 1 of 3"),
        (None, ["a", "b", "c"], None, "classifier new: nothing says its classes"),
    ],
)
def test_a_classifier_is_kept_by_the_names_of_its_classes(
    model: nn.Module,
    known: list[str] | None,
    wanted: list[str],
    rows: list[int] | None,
    note: str,
) -> None:
    torch.manual_seed(3)
    fresh = create_model("test_resnet", len(wanted))
    expected = fresh.state_dict()["fc.weight"].clone()
    weights = Weights(path=Path("w"), state=model.state_dict())
    chosen = with_classifier(weights, fresh, classifier_names(fresh), known, wanted)
    notes = load_weights(fresh, chosen).notes
    if rows is not None:
        expected = model.state_dict()["fc.weight"][rows]
    assert torch.equal(fresh.state_dict()["fc.weight"], expected)
    assert torch.equal(fresh.state_dict()["conv1.0.weight"], model.state_dict()["conv1.0.weight"])
    assert notes == (note,)


def test_the_authors_files_take_pixels_in_the_unit_range() -> None:
    usual = default_input("mobilenetv3_large_100")
    theirs = default_input("mobilenetv3_large_100", Path("mobilenetv3_large_100_miil_21k.pth"))
    assert usual.mean != (0.0, 0.0, 0.0)
    assert (theirs.mean, theirs.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_a_tree_may_hold_numbers_of_numpy(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "class_list": ["n00015388", "n02084071"],
        "class_description": {"n00015388": "animal", "n02084071": "dog"},
        "class_tree_list": [[np.int64(0)], np.array([1, 0])],
    }
    torch.save(tree, tmp_path / "tree.pth")
    hierarchy = SemanticHierarchy.from_miil_tree(tmp_path / "tree.pth")
    assert hierarchy.ancestors("n02084071") == ("n00015388",)
    torch.save({"class_tree_list": [Path("x")]}, tmp_path / "code.pth")
    with pytest.raises(HierarchyError, match=r"pathlib.*, which is code"):
        SemanticHierarchy.from_miil_tree(tmp_path / "code.pth")


def test_a_card_says_how_its_model_was_trained(tmp_path: Path) -> None:
    document = {"model": "m", "num_classes": 2, "input_size": [3, 8, 8], "mean": [0, 0, 0]}
    path = tmp_path / "w.json"
    path.write_text(json.dumps({**document, "std": [1, 1, 1], "scheme": "single-label"}))
    card = ModelCard.read(tmp_path / "w.safetensors")
    assert card
    assert (card.scheme, card.taught) == ("single-label", False)
    path.write_text(json.dumps({**document, "std": [1, 1, 1], "scheme": "other"}))
    with pytest.raises(ConfigError, match="scheme 'other', expected semantic, single-label"):
        ModelCard.read(tmp_path / "w.safetensors")


# Older versions of torch read what newer ones refuse; then it is refused here.
SPARSE = (
    r"no torch file of plain tensors|\(fc.bias is sparse or quantised, expected plain tensors\)"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "module.fc.bias": s["fc.bias"]}, "two tensors have one name"),
        (lambda s: {**s, "fc.bias": s["fc.bias"].to_sparse()}, SPARSE),
        (lambda s: {**s, "epoch": 3}, "epoch is no tensor"),
    ],
)
def test_odd_state_dicts_are_refused(
    model: nn.Module, tmp_path: Path, change: Any, message: str
) -> None:
    torch.save(change(model.state_dict()), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=message):
        read_weights(tmp_path / "w.pth")


def test_whole_numbers_and_what_is_no_torch_file_are_refused(
    model: nn.Module, tmp_path: Path
) -> None:
    torch.save({k: v.to(torch.int8) for k, v in model.state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"is torch\.int8, expected floating-point numbers"):
        loaded(tmp_path / "w.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ConfigError, match="it is damaged, or no torch file of plain tensors"):
        read_weights(tmp_path / "page.pth")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks of: files of one commit, by HEAD and GET."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        content = self.files.get(self.path.partition("/resolve/main/")[2])
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("X-Repo-Commit", "c" * 40)
        if content:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.files.get(self.path.partition("/resolve/main/")[2], b""))

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_the_hub_come_with_their_config(
    model: nn.Module, tmp_path: Path, file: str
) -> None:
    if file.endswith(".bin"):
        torch.save(model.state_dict(), tmp_path / file)
    else:
        safetensors.torch.save_file(model.state_dict(), tmp_path / file)
    taken = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": taken}
    Hub.files = {file: (tmp_path / file).read_bytes(), "config.json": json.dumps(config).encode()}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = subprocess.run(
            [
                *(sys.executable, "-c"),
                "from distill.models.weights import find_weights\n"
                "print(find_weights('hf-hub:someone/model'))",
            ],
            env={
                **os.environ,
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HOME": str(tmp_path / "hub"),
                "HF_HUB_OFFLINE": "0",
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        server.shutdown()
    assert found.returncode == 0, found.stderr
    path = Path(found.stdout.splitlines()[-1])
    assert same(loaded(path)[0], model.state_dict())
    card = ModelCard.read(path)
    assert card is not None
    assert (card.model, card.num_classes) == ("test_resnet", 3)
