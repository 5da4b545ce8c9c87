"""Live teacher servers in this process, with teachers whose answers tell what they saw."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.data.views import Size
from distill.events import Event, Journal
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.card import ModelInput
from distill.store.format.manifest import TeacherIdentity
from distill.targets.encoding import EncodingSpec
from distill.teacher_server.front.server import Address, make_server
from distill.teacher_server.http.keys import ApiKeys
from distill.teacher_server.serve.admission import Budgets
from distill.teacher_server.serve.samples import SampleAnswers
from distill.teacher_server.serve.service import ServeOptions, Service
from distill.teacher_server.teacher.teacher import Member, Teacher

SIZE = (8, 8)
INFER = "/v2/models/teacher/infer"
POISON, NAN, HANG = 251, 252, 253  # an image whose first value is one of these


class Echo(nn.Module):
    """Logits are the image's first values: every image has its own answer.

    delay_s: of each batch. lost: the device is, from the next batch on.
    """

    def __init__(self, classes: int, delay_s: float = 0.0) -> None:
        super().__init__()
        self.classes, self.delay_s = classes, delay_s
        self.batches: list[int] = []
        self.most = 1 << 30  # images that fit into memory
        self.literal = False  # no value means anything
        self.lost = False
        self.go_on = threading.Event()

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        time.sleep(self.delay_s)
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if len(images) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        seen = images.permute(0, 2, 3, 1).flatten(1)
        first = (seen[:, 0] * 255).round() * (not self.literal)
        if (first == POISON).any():
            raise RuntimeError("poison")
        if (first == HANG).any():
            self.go_on.wait(60)
        logits = seen[:, : self.classes] * 6
        return torch.where((first == NAN)[:, None], float("nan"), logits)


def echo_teacher(hierarchy: SemanticHierarchy, size: Size = SIZE, delay_s: float = 0.0) -> Teacher:
    member = Member(
        name="echo",
        model=Echo(hierarchy.num_classes, delay_s).eval(),
        input=ModelInput(size=size),
        head=None,
        precision="float32",
        fingerprint="e" * 64,
    )
    identity = TeacherIdentity(
        name="echo", fingerprint="e" * 64, input_size=size, precision="float32"
    )
    return Teacher(
        members=(member,), hierarchy=hierarchy, device=torch.device("cpu"), identity=identity
    )


def echo_of(teacher: Teacher) -> Any:
    """Its model."""
    return teacher.members[0].model


def images(count: int, random: np.random.Generator, size: Size = SIZE) -> NDArray[np.uint8]:
    """Random ones, none of which means anything."""
    made = random.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    made[:, 0, 0, 0] %= 250
    return made


def body_of(
    pixels: NDArray[np.uint8], outputs: tuple[str, ...], **parameters: Any
) -> tuple[bytes, dict[str, str]]:
    """A request of raw pixels, and its headers."""
    head = json.dumps(
        {
            "parameters": {"binary_data_output": True, **parameters},
            "inputs": [
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": list(pixels.shape),
                    "parameters": {"binary_data_size": pixels.nbytes},
                }
            ],
            "outputs": [{"name": name} for name in outputs],
        }
    ).encode()
    return head + pixels.tobytes(), {"inference-header-content-length": str(len(head))}


@dataclass
class Live:
    """A server that runs. events: of its log."""

    service: Service
    port: int
    events: list[Event] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event["event"] == name]


@contextmanager
def live(
    teacher: Teacher,
    *,
    lanes: int = 1,
    others: Sequence[Teacher] = (),
    keys: ApiKeys | None = None,
    samples: Callable[[Journal], SampleAnswers] | None = None,
    max_batch_size: int = 8,
    budgets: Budgets | None = None,
    port: int = 0,
    address: Address | None = None,
    makers: Sequence[Callable[[], Teacher]] = (),
    **options: Any,
) -> Iterator[Live]:
    """Serve on a free port of this machine; when it ends nothing may be in flight.

    others: of the same teacher, on devices of their own.
    """
    events: list[Event] = []
    journal = Journal(events.append)
    opened = samples(journal) if samples else None
    spec = EncodingSpec.named("standard", teacher.hierarchy.classes_per_hierarchy)
    service = Service(
        [teacher] * lanes + [*others],
        ServeOptions(
            encoding=opened.encoding if opened else spec,
            max_batch_size=max_batch_size,
            fair=bool(keys),
            budgets=budgets or Budgets(images=1024, bytes=2**26, requests=64),
            **options,
        ),
        journal=journal,
        samples=opened,
        makers=makers,
    )
    listener = Address(port=port).bound()
    server = make_server(service, keys, address or Address())
    thread = threading.Thread(target=server.run, args=([listener],))
    ended = threading.Event()

    def look_after() -> None:
        while not ended.wait(0.05):
            service.look_after()

    looking = threading.Thread(target=look_after)
    looking.start()
    service.start()
    thread.start()
    try:
        port = listener.getsockname()[1]
        wait_until(lambda: _listens(port))
        yield Live(service, port, events)
        wait_until(lambda: service.admission.idle)
    finally:
        ended.set()
        looking.join()
        service.close()
        server.should_exit = True
        thread.join(20)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.005)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
