import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from distill.errors import ConfigError
from distill.models.card import ModelCard, ModelInput
from distill.models.creation import create_model
from distill.models.names import require_known_model
from distill.models.weights import Weights, load_weights, read_weights


def test_unknown_architecture_lists_the_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown teacher 'resnet19' \(did you mean .*resnet18"):
        require_known_model("resnet19", "teacher")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_load_from_safetensors_and_safe_torch_files(
    tmp_path: Path, suffix: str, wrapped: bool
) -> None:
    model, path = create_model("test_vit", 5), tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": model.state_dict()} if wrapped else model.state_dict(), path)
    other = create_model("test_vit", 5)
    load_weights(other, read_weights(path))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "boom"),)

    path = tmp_path / "w.pth"
    torch.save({"weight": Bomb()}, path)
    with pytest.raises(ConfigError, match="not readable as weights"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ConfigError, match="not readable as weights"):
        read_weights(path)
    assert not (tmp_path / "boom").exists()


def test_damaged_and_missing_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match="not readable as weights"):
        read_weights(tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="no such weight file"):
        read_weights(tmp_path / "x.safetensors")


def test_weights_of_another_size_or_model_say_which_tensor() -> None:
    def weights(name: str, classes: int) -> Weights:
        state = create_model(name, classes).state_dict()
        return Weights(path=Path("w.safetensors"), state=state)

    with pytest.raises(ConfigError, match=r"is \[7\], expected \[5\]; .*label set"):
        load_weights(create_model("test_vit", 5), weights("test_vit", 7))
    with pytest.raises(ConfigError, match="tensors missing"):
        load_weights(create_model("test_vit", 5), weights("test_resnet", 5))


def test_card_survives_its_file(tmp_path: Path) -> None:
    card = ModelCard(
        model="test_vit",
        num_classes=5,
        input=ModelInput(size=(48, 64), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)),
        hierarchy_digest="abc",
    )
    card.write(tmp_path / "w.safetensors")
    assert ModelCard.read(tmp_path / "w.safetensors") == card
    assert ModelCard.read(tmp_path / "other.safetensors") is None


@pytest.mark.parametrize("content", ["", "[]", '{"model": 1}', json.dumps({"input_size": "x"})])
def test_damaged_card_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(ConfigError, match="not a model card"):
        ModelCard.read(tmp_path / "w.safetensors")


def test_normalise_is_to_unit_range_then_by_channel() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    found = ModelInput(size=(8, 8), mean=mean, std=std).normalise(pixels)
    torch.testing.assert_close(found, expected)


def test_every_alias_is_a_model_of_timm() -> None:
    from distill.teacher_server.teacher.loading import ALIASES

    for alias in ALIASES.values():
        assert timm.is_model(alias.partition(".")[0])
        config = timm.get_pretrained_cfg(alias)
        assert config is not None
        assert config.num_classes == 11221
