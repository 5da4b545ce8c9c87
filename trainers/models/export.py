"""A trained model in forms that others load: timm's own folder, and ONNX."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from timm.models import save_for_hf
from torch import nn

from distill.data.view_policy import CentreCrop
from distill.errors import ConfigError, first_line, optional
from distill.files import write_atomically
from distill.models.creation import model_arguments
from distill.trainers.models.meaning import LogitsMeaning
from distill.trainers.models.trained import TrainedModel

OF_OTHER_WEIGHTS = (
    *("tag", "license", "origin_url", "paper_name", "paper_ids", "notes", "description"),
    *("url", "file", "hf_hub_id", "hf_hub_filename"),
)


def export_folder(trained: TrainedModel, out: Path) -> list[Path]:
    """model.safetensors and config.json as timm's hub has them, and hierarchy.json.

    `timm.create_model("local-dir:OUT", pretrained=True)` loads it, as does the file alone with
    `pretrained_cfg_overlay=dict(file=…, num_classes=…)`. config.json names the classes.
    """
    hierarchy, size = trained.hierarchy, trained.input.size
    labels: dict[str, Any] = {}
    if hierarchy:
        names = [name.replace("_", " ") for name in hierarchy.names]
        labels = {
            "label_names": list(hierarchy.synsets),
            "label_descriptions": dict(zip(hierarchy.synsets, names, strict=True)),
        }
    as_we_do = {
        "input_size": (3, *size),
        "mean": trained.input.mean,
        "std": trained.input.std,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    with tempfile.TemporaryDirectory() as scratch:
        keywords = {
            "model_config": labels,
            "model_args": model_arguments(trained.architecture, size, trained.arguments),
            "safe_serialization": True,
        }
        try:
            if isinstance(trained.policy, CentreCrop):
                save_for_hf(trained.model, scratch, **keywords)
            else:
                _save_squished(trained, scratch, as_we_do, keywords)
        except SafetensorError as error:
            raise ConfigError(
                f"{scratch}: cannot be written ({first_line(error)}), expected room for the "
                "weights; free some, or set TMPDIR to another folder"
            ) from error
        _claim_nothing(Path(scratch) / "config.json")
        written = []
        for file in sorted(Path(scratch).iterdir()):
            write_atomically(out / file.name, file.read_bytes())
            written.append(out / file.name)
    if hierarchy:
        hierarchy.save(out / "hierarchy.json")
        written.append(out / "hierarchy.json")
    return written


def _claim_nothing(config: Path) -> None:
    """timm notes where the weights of the architecture are from; these are others."""
    document = json.loads(config.read_text(encoding="utf-8"))
    for name in OF_OTHER_WEIGHTS:
        document["pretrained_cfg"].pop(name, None)
    # transformers gives the number of classes itself.
    document.get("model_args", {}).pop("num_classes", None)
    config.write_text(json.dumps(document, indent=2), encoding="utf-8")


def _save_squished(
    trained: TrainedModel, folder: str, as_we_do: dict[str, Any], keywords: dict[str, Any]
) -> None:
    """Some models take other sizes though timm calls theirs fixed, as they did in training."""
    try:
        save_for_hf(trained.model, folder, data_config=as_we_do, **keywords)
    except ValueError:
        size = as_we_do.pop("input_size")
        save_for_hf(trained.model, folder, data_config=as_we_do, **keywords)
        path = Path(folder) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["pretrained_cfg"] |= {"input_size": size, "fixed_input_size": False}
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def export_onnx(trained: TrainedModel, path: Path) -> None:
    """float32 pixels in [0, 1], [batch, 3, height, width] → logits, and probabilities by class.

    Any batch size; the model's own normalisation is part of the graph. probs: where it is known
    what the logits mean, the probability of each class, itself or by one below it. No softmax of
    the logits says that of a semantic model.

    Raises:
        ConfigError: the packages for it are not installed, or the model cannot be exported.
    """
    with optional("onnx", "--onnx"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    model = _FromUnitPixels(trained).eval()
    pixels = torch.zeros(2, 3, *trained.input.size)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / path.name
        try:
            torch.onnx.export(
                model,
                (pixels,),
                str(file),
                input_names=["pixels"],
                output_names=["logits", "probs"][: 2 if model.reads else 1],
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever it does not know
            raise ConfigError(
                f"{trained.name}: {trained.architecture} cannot be exported to ONNX "
                f"({first_line(error)}), expected a model that torch.onnx knows; leave --onnx out"
            ) from error
        write_atomically(path, file.read_bytes())


class _FromUnitPixels(nn.Module):
    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.model = trained.model
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(trained.input.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(trained.input.std)[:, None, None])
        self.hierarchy = trained.hierarchy
        self.meaning = trained.scheme and LogitsMeaning(trained.scheme, trained.taught)

    @property
    def reads(self) -> bool:
        """Whether it says what its logits mean."""
        return self.hierarchy is not None and self.meaning is not None

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits: torch.Tensor = self.model((pixels - self.mean) / self.std)
        if self.hierarchy is None or self.meaning is None:
            return (logits,)
        return logits, self.meaning.probs(logits, self.hierarchy)
