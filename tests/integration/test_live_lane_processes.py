"""Lanes in processes of their own: the same answers, and every way in which such a process ends."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import urllib3
from live import INFER, NAN, POISON, Live, body_of, echo_teacher, images, live, wait_until
from made_teachers import another, real_teacher, tight, unavailable

from distill.errors import TeacherError
from distill.events import Journal
from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.encoding import EncodingSpec
from distill.teacher_server.serve.device import InItsProcess
from distill.teacher_server.teacher.teacher import Teacher


@contextmanager
def apart(make: Callable[[], Teacher], lanes: int = 2, **options: Any) -> Iterator[Live]:
    with live(make(), lanes=lanes, makers=[make] * lanes, **options) as server:
        yield server


def ask(server: Live, pixels: Any, *outputs: str) -> Any:
    body, headers = body_of(pixels, outputs or ("probs",))
    url = f"http://{server.address}{INFER}"
    return urllib3.request("POST", url, body=body, headers=headers, retries=False, timeout=30)


def raw(reply: Any) -> bytes:
    assert reply.status == 200, reply.data
    return bytes(reply.data[int(reply.headers["inference-header-content-length"]) :])


def test_answers_are_those_of_threads(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    make = partial(real_teacher, hierarchy)
    outputs = ("index", "prob", "sq_norm", "confidence", "probs", "status")
    batches = [images(count, random, (32, 32)) for count in (1, 3, 8, 20)]
    with live(make()) as server:
        expected = [raw(ask(server, pixels, *outputs)) for pixels in batches]
    with apart(make, lanes=1) as server:
        assert [raw(ask(server, pixels, *outputs)) for pixels in batches] == expected


def test_many_clients_are_never_mixed_up(hierarchy: SemanticHierarchy) -> None:
    teacher = echo_teacher(hierarchy)
    with apart(partial(echo_teacher, hierarchy)) as server:

        def client(seed: int) -> None:
            random = np.random.default_rng(seed)
            for _ in range(40):
                pixels = images(int(random.integers(1, 12)), random)
                direct = teacher.targets([torch.from_numpy(pixels).permute(0, 3, 1, 2)])
                assert raw(ask(server, pixels)) == direct.probs.half().numpy().tobytes()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client, range(8)))
        used = [lane for lane in server.service.lanes if lane.device._next > 50]  # type: ignore[attr-defined]
        assert len(used) == 2


def test_poison_and_nan_are_their_own(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    with apart(partial(echo_teacher, hierarchy), lanes=1) as server:
        bad, worse, good = (images(2, random) for _ in range(3))
        bad[0, 0, 0, 0], worse[0, 0, 0, 0] = POISON, NAN
        with ThreadPoolExecutor(3) as pool:
            replies = list(pool.map(lambda pixels: ask(server, pixels), (bad, worse, good)))
        assert [reply.status for reply in replies] == [500, 500, 200]
        assert b"poison" in replies[0].data
        assert ask(server, good).status == 200


def test_memory_that_is_short_gives_smaller_batches(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    with apart(partial(tight, hierarchy, 2), lanes=1) as server:
        assert server.service.lanes[0].shapes == (1, 2)
        assert ask(server, images(9, random)).status == 200


def test_process_that_is_killed_turns_ready_off(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    with apart(partial(echo_teacher, hierarchy), lanes=1) as server:
        (lane,) = server.service.lanes
        os.kill(lane.device._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        reply = ask(server, images(1, random))
        assert reply.status == 503
        assert b"exit code -9" in reply.data
        wait_until(lambda: bool(server.service.why_not_ready()))


@pytest.mark.parametrize(
    ("make", "text"), [(another, "another teacher found"), (unavailable, "no such file")]
)
def test_process_without_the_teacher_is_one_line(
    hierarchy: SemanticHierarchy, make: Callable[..., Teacher], text: str
) -> None:
    teacher = echo_teacher(hierarchy)
    spec = EncodingSpec.named("standard", hierarchy.classes_per_hierarchy)
    made = partial(make, hierarchy) if make is another else make
    device = InItsProcess(teacher, made, spec, shapes=(1, 2), journal=Journal())
    with pytest.raises(TeacherError, match=text):
        device.start()
    device.close()


def test_processes_end_with_a_server_that_is_killed(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    """And with one that ends."""
    with apart(partial(echo_teacher, hierarchy)) as server:
        processes = [lane.device._process for lane in server.service.lanes]  # type: ignore[attr-defined]
        assert ask(server, images(1, random)).status == 200
    wait_until(lambda: not any(process.is_alive() for process in processes))
    assert [process.exitcode for process in processes] == [0, 0]
