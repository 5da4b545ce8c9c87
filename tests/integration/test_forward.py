"""The teacher at its own speed: same answers as the plain way, little on the way back."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill.errors import TeacherError, TeacherUnavailableError
from distill.events import Event, Journal
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.devices import is_out_of_memory
from distill.targets.encoding import EncodingSpec
from distill.targets.tensors import SparseTargets, sparsify
from distill.teacher_server.teacher.batch_size import Throughput, choose_speed
from distill.teacher_server.teacher.forward_pass import Encoded, Forward
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.teacher_server.teacher.stages import StageSeconds
from distill.teacher_server.teacher.teacher import Teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(hierarchy: SemanticHierarchy, teacher_weights: Path) -> Teacher:
    choice = MemberChoice(name="test_vit", weights=teacher_weights)
    return load_teacher([choice], hierarchy, device=CPU)


@pytest.fixture(scope="module")
def spec(hierarchy: SemanticHierarchy) -> EncodingSpec:
    return EncodingSpec.named("standard", hierarchy.classes_per_hierarchy)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pixels(count: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (count, 3, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def joined(parts: list[Encoded]) -> dict[str, torch.Tensor]:
    names = ("index", "prob", "confidence", "sq_norm")
    return {name: torch.cat([getattr(part.sparse, name) for part in parts]) for name in names}


def assert_same_targets(found: dict[str, torch.Tensor], expected: SparseTargets) -> None:
    for name, values in found.items():
        wanted = getattr(expected, name)
        torch.testing.assert_close(values, wanted.to(values.dtype), rtol=1e-5, atol=1e-6)


def test_answers_are_those_of_the_plain_way(
    teacher: Teacher, spec: EncodingSpec, two_threads: None
) -> None:
    """Several batches in flight, of which one is taken in parts, against one after another."""
    shown = [pixels(8), pixels(5), pixels(3), pixels(8)]
    stages = StageSeconds()
    with Forward(teacher, spec, batch_size=5, stages=stages) as forward:
        launched = [forward.launch([each], exact=64) for each in shown]
        for each, answer in zip(shown, launched, strict=True):
            parts = forward.collect(answer)
            assert [len(part.sparse.index) for part in parts] in ([5, 3], [5], [3])
            exact = teacher.targets([each])
            assert_same_targets(joined(parts), sparsify(exact, teacher.hierarchy, spec))
            kept = torch.cat([part.exact.probs for part in parts if part.exact])
            torch.testing.assert_close(kept, exact.probs, rtol=1e-5, atol=1e-6)
    assert stages.forward > stages.to_host >= 0


def test_answers_do_not_depend_on_the_number_of_threads(
    teacher: Teacher, spec: EncodingSpec
) -> None:
    answers, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with Forward(teacher, spec, batch_size=16) as forward:
            answers.append(joined(forward.collect(forward.launch([pixels(16)]))))
    torch.set_num_threads(before)
    for other in answers[1:]:
        assert all(torch.equal(other[name], values) for name, values in answers[0].items())


def test_compiled_answers_are_the_same(teacher: Teacher, spec: EncodingSpec) -> None:
    with Forward(teacher, spec, batch_size=4, compiled=True) as forward:
        for count in (4, 3):  # the second is padded, for the compiled shape
            found = joined(forward.collect(forward.launch([pixels(count)])))
            expected = sparsify(teacher.targets([pixels(count)]), teacher.hierarchy, spec)
            torch.testing.assert_close(
                found["confidence"], expected.confidence, rtol=1e-4, atol=1e-5
            )
            assert len(found["index"]) == count


def test_compiling_in_bfloat16_with_several_threads_ends(
    hierarchy: SemanticHierarchy, teacher_weights: Path, spec: EncodingSpec, two_threads: None
) -> None:
    """It once did not: two threads held what the other wanted."""
    choice = MemberChoice(name="test_vit", weights=teacher_weights)
    teacher = load_teacher([choice], hierarchy, device=CPU, precision="bfloat16")
    with Forward(teacher, spec, batch_size=4, compiled=True) as forward:
        launched = [forward.launch([pixels(4)]) for _ in range(6)]
        answers = [joined(forward.collect(each)) for each in launched]
    assert all(torch.equal(each["prob"], answers[0]["prob"]) for each in answers)


class _Copies(TorchDispatchMode):
    """Counts the numbers that go from a device to the host."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.numbers = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        from_device = any(each.device.type == self.device for each in tensors)
        if from_device and isinstance(answer, torch.Tensor) and answer.device.type == "cpu":
            self.numbers += answer.numel()
        if func is torch.ops.aten.copy_.default and args[0].device.type == "cpu":
            self.numbers += args[0].numel() if args[1].device.type == self.device else 0
        return answer


def test_nothing_as_wide_as_the_classes_leaves_the_device() -> None:
    """On a pretended GPU: torch's fake tensors have a device, but no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    hierarchy = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    spec = EncodingSpec.named("standard", hierarchy.classes_per_hierarchy)
    batch, kept = 8, sum(spec.entries)
    choice = MemberChoice(name="test_vit", random_weights=True, input_size=32)
    teacher = load_teacher([choice], hierarchy, device=CPU)
    order = torch.from_numpy(hierarchy.class_order)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, _Copies("cuda") as copies:
        hierarchy.tensors(torch.device("cuda"))  # moved there before anything is counted
        logits = torch.empty(batch, hierarchy.num_classes, device="cuda")
        sparse = sparsify(teacher.answer([logits]), hierarchy, spec)
        assert sparse.index.device.type == "cuda"
        copies.numbers = 0
        host = sparse.to(CPU)
        assert host.index.device.type == "cpu"
        del fake
    hierarchy._moved.pop("cuda", None)
    assert order.numel() > 11_000
    assert copies.numbers == batch * (2 * kept + 2 * hierarchy.num_hierarchies)
    assert copies.numbers / batch < hierarchy.num_classes / 40
    with FakeTensorMode(), _Copies("cuda") as wide:  # it would be seen
        torch.empty(batch, hierarchy.num_classes, device="cuda").cpu()
    assert wide.numbers == batch * hierarchy.num_classes


OUT_OF_MEMORY = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from distill.targets.encoding import EncodingSpec
from distill.hierarchy.semantic import SemanticHierarchy
from distill.events import Journal
from distill.teacher_server.teacher.forward_pass import Forward
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher

hierarchy = SemanticHierarchy.bundled("plane-figures")
side = int(sys.argv[3])
choice = MemberChoice(name="test_resnet", random_weights=True, input_size=side)
teacher = load_teacher([choice], hierarchy, device=torch.device("cpu"))
spec = EncodingSpec.named("standard", hierarchy.classes_per_hierarchy)
events = []
pixels = torch.zeros(int(sys.argv[1]), 3, side, side, dtype=torch.uint8)
with Forward(teacher, spec, batch_size=len(pixels), journal=Journal(events.append)) as forward:
    forward.collect(forward.launch([pixels[:1, :, :32, :32]]))
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    room = used + int(sys.argv[2]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    try:
        parts = forward.collect(forward.launch([pixels]))
        said = [len(part.sparse.index) for part in parts]
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
print(json.dumps([said, [event["batch_size"] for event in events]]))
"""


def short_of_memory(images: int, room_mib: int, side: int) -> Any:
    ran = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(images), str(room_mib), str(side)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    return json.loads(ran.stdout)


def test_batches_are_halved_where_memory_runs_out() -> None:
    """A real limit on the address space, of a process of its own."""
    sizes, halvings = short_of_memory(20_000, 300, 32)
    assert halvings
    assert halvings == [20_000 // 2 ** (i + 1) for i in range(len(halvings))]
    assert sum(sizes) == 20_000
    assert max(sizes) <= halvings[0]
    assert sizes[-1] <= halvings[-1]


@pytest.mark.slow
def test_out_of_memory_with_one_image_is_an_error() -> None:
    said, _ = short_of_memory(1, 4, 2048)
    assert said.startswith("TeacherError: teacher test_resnet: out of memory with a single image")
    assert "use a smaller teacher" in said


class _Breaking(torch.nn.Module):
    """Raises what a device raises that breaks: nothing else here can."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), TeacherUnavailableError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), TeacherUnavailableError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), TeacherError),
        (RuntimeError("shapes differ"), RuntimeError),
    ],
)
def test_errors_of_a_device_are_told_apart(
    teacher: Teacher, spec: EncodingSpec, error: Exception, expected: type[Exception]
) -> None:
    from dataclasses import replace

    member = replace(teacher.members[0], model=_Breaking(error))
    broken = replace(teacher, members=(member,))
    with (
        Forward(broken, spec, batch_size=2) as forward,
        pytest.raises(expected) as raised,
    ):
        forward.collect(forward.launch([pixels(2)]))
    assert type(raised.value) is expected
    assert is_out_of_memory(error) == (expected is TeacherError)


def choose(teacher: Teacher, spec: EncodingSpec, **given: Any) -> tuple[Throughput, list[Event]]:
    events: list[Event] = []
    asked: dict[str, Any] = {"views": 10**6, "frames": 0, "batch_size": None, "compiled": False}
    asked |= {"earlier": None}
    speed = choose_speed(teacher, spec, **{**asked, **given}, journal=Journal(events.append))
    return speed, events


def test_batch_size_is_measured_for_long_runs_alone(teacher: Teacher, spec: EncodingSpec) -> None:
    measured, events = choose(teacher, spec)
    assert measured.views_per_s
    assert measured.batch_size >= 8
    assert events[-1]["event"] == "speed chosen"
    short, _ = choose(teacher, spec, views=100)
    assert short == Throughput(batch_size=16)
    clips, _ = choose(teacher, spec, views=100, frames=4)
    assert clips == Throughput(batch_size=4)
    fixed, _ = choose(teacher, spec, batch_size=24)
    assert fixed == Throughput(batch_size=24)


def test_a_run_that_goes_on_takes_the_speed_of_its_finished_blocks(
    teacher: Teacher, spec: EncodingSpec
) -> None:
    earlier = {"batch_size": 40, "compiled": False}
    assert choose(teacher, spec, compiled=None, earlier=earlier)[0] == Throughput(batch_size=40)
    assert choose(teacher, spec, batch_size=8, earlier=earlier)[0] == Throughput(batch_size=8)


def test_bottleneck_is_named() -> None:
    teacher_bound = StageSeconds(wall=10, forward=9.5, wait_for_device=9)
    assert teacher_bound.bottleneck == "the teacher's forward pass: 95% of the time"
    starved = StageSeconds(wall=10, forward=4, wait_for_images=5)
    assert starved.bottleneck.startswith("decoding images (raise --workers")
    slow_disk = StageSeconds(wall=10, forward=4, wait_for_write=5)
    assert slow_disk.bottleneck.startswith("writing the store")
    starved.add(slow_disk)
    assert starved == StageSeconds(wall=20, forward=8, wait_for_images=5, wait_for_write=5)


def test_ranking_once_gives_what_ranking_twice_gives(
    teacher: Teacher, hierarchy: SemanticHierarchy
) -> None:
    """To the bit, whether the encoding keeps more entries than confidence sums, or fewer."""
    logits = teacher.logits([pixels(40)])
    for name in ("small", "standard", "fine"):
        spec = EncodingSpec.named(name, hierarchy.classes_per_hierarchy)
        dense, sparse = teacher.encoded(logits, spec)
        exact = teacher.answer(logits)
        expected = sparsify(exact, hierarchy, spec)
        assert torch.equal(dense.confidence, exact.confidence)
        for column in ("index", "prob", "confidence", "sq_norm"):
            assert torch.equal(getattr(sparse, column), getattr(expected, column)), column
