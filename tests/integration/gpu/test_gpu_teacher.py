"""A teacher on a GPU: answers, memory, stores."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from same_store import assert_same_arrays

from distill.events import Event, Journal
from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.encoding import EncodingSpec
from distill.targets.tensors import sparsify
from distill.teacher_server.teacher.forward_pass import Forward
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.teacher_server.teacher.stages import StageSeconds
from distill.teacher_server.teacher.teacher import Teacher

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
KINDS = {
    "transformer": [MemberChoice(name="test_vit", random_weights=True, input_size=32)],
    "convnet": [MemberChoice(name="test_resnet", random_weights=True, input_size=64)],
    "flat head": [
        MemberChoice(name="test_resnet", random_weights=True, input_size=32, head="imagenet-22k-ms")
    ],
    "ensemble": [
        MemberChoice(name="test_resnet", random_weights=True, input_size=64),
        MemberChoice(name="test_vit", random_weights=True, input_size=32),
    ],
}


def pixels(count: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (count, side, side, 3)
    drawn = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return drawn.permute(0, 3, 1, 2)


def loaded(kind: str, device: torch.device, precision: Any = None) -> Teacher:
    """Of the same weights every time."""
    torch.manual_seed(0)
    label_set = "imagenet21k-p-fall11" if kind == "flat head" else "plane-figures"
    hierarchy = SemanticHierarchy.bundled(label_set)
    return load_teacher(KINDS[kind], hierarchy, device=device, precision=precision)


def spec_of(teacher: Teacher) -> EncodingSpec:
    return EncodingSpec.named("standard", teacher.hierarchy.classes_per_hierarchy)


def given(teacher: Teacher, count: int, device: torch.device) -> list[torch.Tensor]:
    made = [pixels(count, side) for side, _ in teacher.sizes]
    return [each.pin_memory() for each in made] if device.type == "cuda" else made


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_batches_under_load_are_their_own(kind: str, device: torch.device) -> None:
    """Many distinct batches in flight: none has another's answers, entry for entry."""
    teacher, reference = loaded(kind, device, "float32"), loaded(kind, CPU)
    spec, counts = spec_of(teacher), [7, 16, 3, 16, 11, 16, 1, 13] * 3
    with Forward(teacher, spec, batch_size=16) as forward:
        batches = [given(teacher, count + 20 * i, device) for i, count in enumerate(counts[:12])]
        launched = [forward.launch(batch) for batch in batches]
        for batch, each in zip(batches, launched, strict=True):
            parts = [part.sparse for part in forward.collect(each)]
            found = type(parts[0]).concatenate(parts)
            exact = reference.targets(batch)
            expected = sparsify(exact, teacher.hierarchy, spec)
            # Where two probabilities are all but equal, either may be kept.
            same = (found.index == expected.index).float().mean()
            assert same > 0.98
            torch.testing.assert_close(found.confidence, expected.confidence, rtol=0, atol=2e-3)
            torch.testing.assert_close(found.prob.float(), expected.prob.float(), rtol=0, atol=4e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32(kind: str, device: torch.device) -> None:
    teacher, reference = loaded(kind, device, "bfloat16"), loaded(kind, CPU)
    with Forward(teacher, spec_of(teacher), batch_size=24) as forward:
        parts = forward.collect(forward.launch(given(teacher, 40, device), exact=40))
    probs = torch.cat([part.exact.probs.cpu() for part in parts if part.exact])
    expected = reference.targets([pixels(40, side) for side, _ in reference.sizes])
    torch.testing.assert_close(probs, expected.probs, rtol=0, atol=0.1)
    own = torch.cat([part.reference.probs.cpu() for part in parts if part.reference])
    torch.testing.assert_close(own, expected.probs, rtol=0, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_answers_are_the_same(kind: str, device: torch.device) -> None:
    teacher = loaded(kind, device, "float32")
    with Forward(teacher, spec_of(teacher), batch_size=8, compiled=True) as forward:
        for count in (8, 5):
            batch = given(teacher, count, device)
            (part,) = forward.collect(forward.launch(batch, exact=count))
            assert part.exact
            expected = teacher.targets(batch)
            torch.testing.assert_close(part.exact.probs, expected.probs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_waits_for_nothing(kind: str, gpu: torch.device) -> None:
    """From the copy to the device to the encoded answer; the first one moves tables there."""
    teacher = loaded(kind, gpu)
    with Forward(teacher, spec_of(teacher), batch_size=16) as forward:
        batch = given(teacher, 16, gpu)
        forward.collect(forward.launch(batch))
        torch.cuda.set_sync_debug_mode("error")
        try:
            launched = forward.launch(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        forward.collect(launched)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_passes_are_captured(kind: str, precision: Any, gpu: torch.device) -> None:
    """Several shapes in turn, two batches in flight: the answers are those of the pass itself."""
    events: list[Event] = []
    teacher, journal = loaded(kind, gpu, precision), Journal(events.append)
    spec = spec_of(teacher)
    with Forward(teacher, spec, batch_size=64, captured=True, journal=journal) as forward:
        for _ in range(3):
            batches = [given(teacher, count, gpu) for count in (64, 16, 16, 1)]
            launched = [forward.launch(each, exact=64) for each in batches]
            for each, own in zip(launched, batches, strict=True):
                (part,) = forward.collect(each)
                assert part.exact
                expected = teacher.targets(own)
                torch.testing.assert_close(part.exact.probs, expected.probs, rtol=0, atol=2e-3)
    assert not events


def test_stages_are_timed(device: torch.device) -> None:
    teacher, stages = loaded("transformer", device), StageSeconds()
    with Forward(teacher, spec_of(teacher), batch_size=24, stages=stages) as forward:
        forward.collect(forward.launch(given(teacher, 64, device)))
    assert stages.forward > 0
    assert stages.encode > 0


def test_batches_are_halved_where_memory_runs_out(gpu: torch.device, little_memory: None) -> None:
    choice = MemberChoice(name="test_vit", random_weights=True, input_size=160)
    teacher = load_teacher([choice], SemanticHierarchy.bundled("plane-figures"), device=gpu)
    events: list[Event] = []
    journal = Journal(events.append)
    with Forward(teacher, spec_of(teacher), batch_size=8192, journal=journal) as forward:
        parts = forward.collect(forward.launch([pixels(8192, 160)]))
    assert sum(len(part.sparse.index) for part in parts) == 8192
    assert events[-1]["batch_size"] < 8192


LOST = """
import torch
from distill.targets.encoding import EncodingSpec
from distill.errors import TeacherUnavailableError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.teacher_server.teacher.forward_pass import Forward
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher

hierarchy = SemanticHierarchy.bundled("plane-figures")
choice = MemberChoice(name="test_vit", random_weights=True, input_size=32)
teacher = load_teacher([choice], hierarchy, device=torch.device("cuda", 0))
spec = EncodingSpec.named("standard", hierarchy.classes_per_hierarchy)
pixels = [torch.zeros(2, 3, 32, 32, dtype=torch.uint8)]
with Forward(teacher, spec, batch_size=2) as forward:  # streams are there before it is lost
    forward.collect(forward.launch(pixels))
    torch.ones(3, device="cuda")[torch.tensor([7], device="cuda")]  # kills the context
    try:
        forward.collect(forward.launch(pixels))
    except TeacherUnavailableError as error:
        print(error, flush=True)
"""


def test_a_lost_gpu_is_one_line(gpu: torch.device) -> None:
    ran = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=False)
    assert "was lost" in ran.stdout, ran.stderr
    assert "run the same command again" in ran.stdout


# -- stores ---------------------------------------------------------------------------------------


def test_a_precompute_goes_on_to_the_same_bytes(
    distill: Callable[..., Any],
    precompute_command: Callable[..., list[str]],
    device: torch.device,
    tmp_path: Path,
) -> None:
    """In batches that measuring found, of which a run that was ended knows."""
    more = ("--views", 2, "--device", device, "--batch-size", 8)
    assert distill(*precompute_command(tmp_path / "whole", *more)).code == 0
    first = ("--shard-index", 0, "--num-shards", 2)
    some = distill(*precompute_command(tmp_path / "parts", *more, *first))
    assert some.code == 0, some.err
    rest = distill(*precompute_command(tmp_path / "parts", *more, "--json"))
    assert json.loads(rest.out)["store"]["complete"]
    assert_same_arrays(tmp_path / "whole", tmp_path / "parts")
    checked = distill("store", "verify", tmp_path / "parts", "--json")
    assert checked.code == 0, checked.err


def test_threads_that_share_a_gpu_do_not_mix_answers(device: torch.device) -> None:
    teacher = loaded("convnet", device)
    spec = spec_of(teacher)

    def ask(seed: int) -> bool:
        with Forward(teacher, spec, batch_size=8) as forward:
            for i in range(6):
                batch = given(teacher, 8 + seed + 10 * i, device)
                parts = forward.collect(forward.launch(batch, exact=len(batch[0])))
                found = torch.cat([part.exact.probs for part in parts if part.exact])
                expected = teacher.targets(batch).probs
                assert np.allclose(found.cpu(), expected.cpu(), atol=5e-3)
        return True

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(ask, range(3)))
