"""Train a detector by iterations, judge it by COCO's average precision, go on where it was stopped.

Schedules are those of "Rethinking ImageNet pre-training" (He et al. 2018, arXiv 1811.08883): SGD,
a short linear warm-up, and two steps down by ten: before the last third and the last ninth, of long
schedules before the last 60,000 and 20,000 iterations. Images are flipped, and nothing else.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from distill.data.order import SampleOrder
from distill.errors import ConfigError, NotFiniteError
from distill.files import write_atomically
from distill.models.torch_files import load_torch_file
from distill.process_pool import leave_signals_to_the_parent
from distill.progress import progress
from distill.settings import flat
from distill.trainers.detection.coco import DetectionDataset, Scenes, collated, whole
from distill.trainers.detection.detector import Kind, make_detector
from distill.trainers.models.student import create_student, student_input
from distill.trainers.recipe import Recipe
from distill.trainers.training.checkpoint import require_same
from distill.trainers.training.finetune import RANDOM, start_names

SHARES, MOST_S = (3, 9), (60_000, 20_000)  # of the last iterations, at a tenth and a hundredth
RECORD, CHECKPOINT, WEIGHTS = "run.json", "checkpoint.pt", "detector.safetensors"
FIGURES = {"map": "ap", "map_50": "ap50", "map_75": "ap75"}
FIGURES |= {f"map_{size}": f"ap_{size}" for size in ("small", "medium", "large")}


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe:
    """backbone: student, init, image_size, normalisation and model arguments of a recipe.

    channels: of the feature pyramid and the heads. lr: after the warm-up, for `batch_size` images.
    """

    backbone: Recipe
    detector: Kind = "faster-rcnn"
    channels: int = 256
    iterations: int = 90_000
    batch_size: int = 16
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("channels", "iterations", "batch_size", "lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} {getattr(self, name)} found, expected more than 0")

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration, from 0."""
        warmup = min(self.warmup, self.iterations // 10)
        if iteration < warmup:
            return self.lr * (iteration + 1) / (warmup + 1)
        lasts = (min(self.iterations // s, most) for s, most in zip(SHARES, MOST_S, strict=True))
        steps = sum(iteration >= self.iterations - last for last in lasts)
        return float(self.lr * 0.1**steps)

    @property
    def masks(self) -> bool:
        """Whether masks are learned."""
        return self.detector == "mask-rcnn"


@dataclass(frozen=True, kw_only=True)
class DetectionReport:
    """history: iteration and figures of each time it was judged. stopped: before its end."""

    iterations: int
    history: tuple[Mapping[str, Any], ...]
    detector: Path
    stopped: bool


def train_detector(
    recipe: DetectionRecipe,
    training: Scenes,
    validation: Scenes,
    out: Path,
    *,
    device: torch.device,
    workers: int,
    validate_every: int,
    checkpoint_minutes: float,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> DetectionReport:
    """Train, or go on; leaves detector.safetensors in `out`. The same seed gives the same detector.

    Raises:
        ConfigError: `out` holds another run, or the backbone has no pyramid of features.
        NotFiniteError: a loss is no number.
        DataError: an image or a mask cannot be read.
    """
    model = _detector(recipe, training.classes, say).to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    run = _Run.opened(out, recipe, training, validation)
    done, history = run.resume(model, optimizer, device)
    dataset = DetectionDataset(training, masks=recipe.masks, crowds=False)
    loader = _loader(dataset, _Batches(recipe, len(dataset), done), workers)
    saved_at, stopped = time.monotonic(), False
    model.train()
    with progress("detect", recipe.iterations, "iterations", done=done) as tick:
        for images, targets in whole(loader):
            if stopped := stop():
                break
            torch.manual_seed((recipe.seed << 32) + done)  # detectors draw what they learn from
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(done)
            losses = model(
                [image.to(device) for image in images],
                [{name: each.to(device) for name, each in target.items()} for target in targets],
            )
            loss = sum(losses.values())
            if not torch.isfinite(loss):
                shown = ", ".join(f"{name} {each.item():g}" for name, each in losses.items())
                kept = " (the last checkpoint is kept)" if (out / CHECKPOINT).exists() else ""
                raise NotFiniteError(
                    f"losses {shown} at iteration {done + 1}{kept}, expected numbers; lower --lr"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            tick(1)
            if done % validate_every == 0 or done == recipe.iterations:
                figures = judge(model, validation, device, masks=recipe.masks, workers=workers)
                history = (*history, {"iteration": done, "validation": figures})
                say(f"iteration {done}: AP {100 * (figures['ap'] or 0):.1f}%")
                run.save(model, optimizer, done, history)
                saved_at = time.monotonic()
            elif time.monotonic() - saved_at > 60 * checkpoint_minutes:
                run.save(model, optimizer, done, history)
                saved_at = time.monotonic()
    if stopped:
        run.save(model, optimizer, done, history)
    return DetectionReport(
        iterations=done, history=history, detector=out / WEIGHTS, stopped=stopped
    )


def _detector(
    recipe: DetectionRecipe, classes: Sequence[str], say: Callable[[str], None]
) -> nn.Module:
    backbone = create_student(recipe.backbone, classes, say)
    torch.manual_seed(recipe.seed)
    return make_detector(
        recipe.detector,
        backbone,
        name=recipe.backbone.student,
        model_input=student_input(recipe.backbone),
        classes=len(classes),
        image_size=recipe.backbone.image_size,
        channels=recipe.channels,
    )


class _Batches(Sampler[list[tuple[int, bool]]]):
    """Rows and whether they are flipped, a pure function of seed and iteration."""

    def __init__(self, recipe: DetectionRecipe, rows: int, first: int) -> None:
        self.recipe, self.order, self.first = recipe, SampleOrder(rows, recipe.seed), first

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        size = self.recipe.batch_size
        for iteration in range(self.first, self.recipe.iterations):
            flips = np.random.default_rng([self.recipe.seed, iteration]).random(size) < 0.5
            parts = self.order.at(iteration * size, size)
            rows = [int(row) for _, part in parts for row in part]
            yield list(zip(rows, flips.tolist(), strict=True))


def _loader(
    dataset: DetectionDataset, batches: Iterable[list[tuple[int, bool]]], workers: int
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collated,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=lambda worker: leave_signals_to_the_parent(),
        generator=torch.Generator(),
    )


@torch.no_grad()
def judge(
    model: nn.Module, scenes: Scenes, device: torch.device, *, masks: bool, workers: int
) -> dict[str, float | None]:
    """COCO's average precision: over overlaps, at 0.5 and 0.75, by size; of boxes, and of masks."""
    from torchmetrics.detection import MeanAveragePrecision

    kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if masks else ("bbox",)
    metric = MeanAveragePrecision(iou_type=kinds, backend="faster_coco_eval")
    metric.warn_on_many_detections = False
    training = model.training
    model.eval()
    dataset = DetectionDataset(scenes, masks=masks, crowds=True)
    one_by_one = [[(row, False)] for row in range(len(dataset))]
    for images, targets in whole(_loader(dataset, one_by_one, workers)):
        found = [
            {name: each.cpu() for name, each in one.items()}
            for one in model([image.to(device) for image in images])
        ]
        if masks:
            found = [{**one, "masks": one["masks"][:, 0] > 0.5} for one in found]
            targets = [{**one, "masks": one["masks"].bool()} for one in targets]
        metric.update(found, targets)
    model.train(training)
    computed: Mapping[str, Tensor] = metric.compute()
    prefixes = {"bbox_": "", "segm_": "mask_"} if masks else {"": ""}
    return {
        f"{shown}{name}": _share(computed[f"{prefix}{key}"])
        for prefix, shown in prefixes.items()
        for key, name in FIGURES.items()
    }


def _share(value: Tensor) -> float | None:
    """None where there is no such object."""
    return None if value < 0 else float(value)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """A run on the disk."""

    out: Path
    identity: Mapping[str, Any]
    recipe: DetectionRecipe

    @classmethod
    def opened(
        cls, out: Path, recipe: DetectionRecipe, training: Scenes, validation: Scenes
    ) -> "_Run":
        identity = {
            **flat({"recipe": asdict(recipe)}),
            "dataset_digest": _digest(training),
            "validation_digest": _digest(validation),
        }
        return cls(out=out, identity=identity, recipe=recipe)

    def resume(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> tuple[int, tuple[Mapping[str, Any], ...]]:
        """How far it is."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return 0, ()
        try:
            saved: Any = load_torch_file(path)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}; delete it, and the run begins anew") from error
        if not isinstance(saved, dict) or not isinstance(saved.get("identity"), dict):
            raise ConfigError(
                f"{path}: no checkpoint of a detector that this version of distill wrote; expected "
                "one: delete it, or choose another --out"
            )
        require_same(path, saved["identity"], self.identity)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        return int(saved["iteration"]), tuple(json.loads(saved["history"]))

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        iteration: int,
        history: tuple[Mapping[str, Any], ...],
    ) -> None:
        """Checkpoint, record, and the detector as it is."""
        buffer = io.BytesIO()
        torch.save(
            {
                "identity": dict(self.identity),
                "iteration": iteration,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": json.dumps(history),
            },
            buffer,
        )
        write_atomically(self.out / CHECKPOINT, buffer.getbuffer())
        state = {
            name: each.detach().cpu().contiguous() for name, each in model.state_dict().items()
        }
        write_atomically(self.out / WEIGHTS, safetensors.torch.save(state))
        record = {"recipe": asdict(self.recipe), "iteration": iteration, "history": history}
        write_atomically(self.out / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def _digest(scenes: Scenes) -> str:
    about = hashlib.sha256(json.dumps(scenes.classes).encode())
    for scene in scenes.scenes:
        things = [(t.box, t.label, t.crowd, t.area, t.shape) for t in scene.things]
        about.update(json.dumps([str(scene.path), scene.size, things]).encode())
    return about.hexdigest()[:12]


# -- pretrained against random --------------------------------------------------------------------


def starts_of(recipes: Mapping[str, DetectionRecipe], longer: float) -> dict[str, DetectionRecipe]:
    """By the name of its start; random weights get `longer` times the iterations. recipes: by init.

    Raises:
        ConfigError: fewer than two, or two of one name.
    """
    return {
        name: replace(
            recipe, iterations=round(recipe.iterations * (longer if init == RANDOM else 1))
        )
        for name, (init, recipe) in zip(start_names([*recipes]), recipes.items(), strict=True)
    }
