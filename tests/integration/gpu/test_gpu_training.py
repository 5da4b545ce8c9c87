"""Students on a GPU: steps that wait for nothing, resume, memory, every source of targets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from distill.data.loader import ViewBatch
from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.encoding import EncodingSpec
from distill.targets.tensors import encode
from distill.trainers.models.student import create_student, student_input
from distill.trainers.recipe import Recipe
from distill.trainers.training.batches import moved_ahead
from distill.trainers.training.mixing import mixed_losses
from distill.trainers.training.objectives import objective_of
from distill.trainers.training.optimizer import make_optimizer

pytestmark = pytest.mark.gpu
Command = Callable[..., list[str]]
COMMON = ("--label-set", "plane-figures", "--image-size", 32)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "student.safetensors")


def on(device: torch.device, words: list[str]) -> list[str]:
    """Those words, on the device."""
    place = words.index("--device") + 1
    return [*words[:place], str(device), *words[place + 1 :]]


@pytest.mark.parametrize("scheme", ["single-label", "multi-label", "semantic"])
def test_a_step_waits_for_nothing(scheme: Any, gpu: torch.device) -> None:
    """Normalising, model, losses, backward, optimizer; the first step moves tables there."""
    hierarchy = SemanticHierarchy.bundled("plane-figures")
    recipe = Recipe(student="test_resnet", init="random", scheme=scheme, image_size=32)
    model = create_student(recipe, hierarchy.synsets).to(gpu).train()
    optimizer, objective = (
        make_optimizer(recipe, model),
        objective_of(recipe, hierarchy, np.arange(16)),
    )
    spec = EncodingSpec(entries=(4, 4, 4, 3))
    answers = encode(torch.randn(16, hierarchy.num_classes, device=gpu), hierarchy, spec)
    pixels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8).pin_memory()
    labels = objective.labels([*range(16)]).to(gpu)
    for quiet in (False, False, True):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")
        try:
            inputs = student_input(recipe).normalise(pixels.to(gpu, non_blocking=True))
            with torch.autocast("cuda", dtype=torch.bfloat16):
                logits = model(inputs)
            loss, kd = mixed_losses(objective, logits, labels, answers, 0.7)
            (loss + kd).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_batches_that_are_moved_ahead_are_their_own(device: torch.device) -> None:
    drawn = [
        torch.randint(0, 256, (8, 1, 16, 16, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
        for _ in range(20)
    ]
    batches = [
        ViewBatch(rows=[i], pixels=(each,), bad={}, proofs={}, read_s=0, render_s=0)
        for i, each in enumerate(drawn)
    ]
    if device.type == "cuda":
        batches = [batch.pin_memory() for batch in batches]
    for i, (batch, images, pixels) in enumerate(
        moved_ahead(((each, 8) for each in batches), device)
    ):
        assert (batch.rows, images) == ([i], 8)
        assert pixels.device.type == device.type
        assert torch.equal(pixels.cpu(), drawn[i][:, 0])
    assert i == 19


def test_a_run_that_is_killed_goes_on_to_the_same_student(
    distill: Callable[..., Any],
    train: Command,
    store: Path,
    device: torch.device,
    dying_after: Callable[[int], Any],
    tmp_path: Path,
) -> None:
    """With averaged weights."""
    words = ("--targets", store, "--checkpoint-every", 1, "-o", "ema_decay=0.9")
    with dying_after(5):
        assert distill(*on(device, train("parts", *words))).code != 0
    again = distill(*on(device, train("parts", *words)))
    assert "resuming at step 5 of 12" in again.out, again.err
    assert distill(*on(device, train("whole", *words))).code == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-4)


def test_every_source_of_targets(
    distill: Callable[..., Any],
    train: Command,
    store: Path,
    serving: Callable[..., Any],
    teacher_weights: Path,
    device: torch.device,
    tmp_path: Path,
) -> None:
    """And what comes of it is judged there too."""
    live = ("--targets", "timm:test_vit", "--teacher-weights", teacher_weights)
    for name, words in (("stored", ("--targets", store)), ("live", (*live, *COMMON))):
        ran = distill(*on(device, train(name, *words)))
        assert ran.code == 0, ran.err
    with serving() as (server, _):
        ran = distill(*on(device, train("served", "--targets", f"http://{server.address}")))
        assert ran.code == 0, ran.err
    runs = [tmp_path / name for name in ("stored", "live", "served")]
    data = train("x")[train("x").index("--data") + 1]
    words = ("--data", data, "--device", device, "--workers", 0, "--json")
    judged = distill("evaluate", *runs, *words)
    assert judged.code == 0, judged.err
    assert len(json.loads(judged.out)) >= 3
    for run in runs:
        assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_memory_that_runs_out_is_one_line(
    fails: Callable[..., str], train: Command, gpu: torch.device, little_memory: None
) -> None:
    words = train("run", *COMMON, "--student", "vit_base_patch16_224", "--image-size", 224)
    message = fails(*on(gpu, words), code=75)
    assert "out of memory" in message
    assert "--batch-size" in message
