"""No image is lost, given twice or swapped, whatever comes, goes and fails."""

import threading
from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.targets.rows import TargetRows
from distill.teacher_server.serve.admission import Admission, Budgets
from distill.teacher_server.serve.lane import shapes_up_to
from distill.teacher_server.serve.queue import (
    BatchTiming,
    InferJob,
    InferResult,
    JobPart,
    WorkQueue,
)
from distill.wire.refusal import Refused

IMAGES = st.integers(1, 20)


def job(name: int, count: int, **more: Any) -> InferJob:
    """Image i of it holds its name and i."""
    pixels = np.zeros((count, 1, 2, 3), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = name, np.arange(count)
    return InferJob((pixels,), **more)


def answer(parts: list[JobPart]) -> None:
    """With what the images hold."""
    for part in parts:
        seen = part.job.pixels[0][part.start : part.stop, 0, :, 0]
        answers = TargetRows.empty(len(part), 2, 1)
        answers.prob[:] = seen
        part.job.put(
            part.start,
            InferResult(rows=answers, timing=BatchTiming(queue_s=0.0, infer_s=0.0, batch_size=1)),
        )


def is_own(each: InferJob) -> bool:
    said = each.answer.result(0).rows.prob
    own = each.pixels[0][:, 0, :, 0]
    return said.shape == own.shape and bool((said == own).all())


@given(
    jobs=st.lists(st.tuples(IMAGES, st.sampled_from("abc")), min_size=1, max_size=20),
    takes=st.lists(st.integers(1, 16), min_size=1, max_size=20),
    dropped=st.sets(st.integers(0, 19)),
)
def test_every_image_is_answered_once_with_its_own_answer(
    jobs: list[tuple[int, str]], takes: list[int], dropped: set[int]
) -> None:
    queue = WorkQueue()
    put = [job(i, count, client=client) for i, (count, client) in enumerate(jobs)]
    for each in put:
        queue.put(each)
    seen: Counter[tuple[int, int]] = Counter()
    for turn in range(10_000):
        if turn in dropped and turn < len(put):
            queue.give_up(put[turn])
        if not queue.images:
            break
        most = takes[turn % len(takes)]
        parts = queue.take(most)
        assert 1 <= sum(map(len, parts)) <= most
        seen.update((id(p.job), i) for p in parts for i in range(p.start, p.stop))
        answer(parts)
    assert queue.images == 0
    assert not queue._jobs
    assert not queue._clients
    assert all(count == 1 for count in seen.values())
    for i, each in enumerate(put):
        assert each.answer.cancelled() if i in dropped and not each.answer.done() else True
        if not each.answer.cancelled():
            assert is_own(each)


@given(st.lists(IMAGES, min_size=1, max_size=12), st.integers(1, 16))
def test_one_client_is_served_in_the_order_it_asks(counts: list[int], most: int) -> None:
    queue = WorkQueue()
    put = [job(i, count) for i, count in enumerate(counts)]
    for each in put:
        queue.put(each)
    order = []
    while queue.images:
        parts = queue.take(most)
        order += [(put.index(p.job), i) for p in parts for i in range(p.start, p.stop)]
    assert order == sorted(order)


@given(st.integers(1, 200), st.integers(1, 20), st.integers(2, 32))
def test_client_that_asks_little_waits_for_no_backlog(backlog: int, little: int, most: int) -> None:
    """Of two clients that wait each gets half of every batch, and what the other leaves."""
    queue = WorkQueue()
    for i in range(backlog):
        queue.put(job(i, 1, client="greedy"))
    late = job(250, little, client="modest")
    queue.put(late)
    taken, batches = 0, 0
    while late.left:
        taken += sum(map(len, queue.take(most)))
        batches += 1
    assert batches <= -(-little // (most // 2)) + 1


@given(st.lists(st.tuples(IMAGES, st.booleans()), min_size=1, max_size=12))
def test_expired_work_is_dropped_when_a_batch_is_formed(jobs: list[tuple[int, bool]]) -> None:
    clock = [0.0]
    queue = WorkQueue(now=lambda: clock[0])
    put = [job(i, n, deadline=1.0 if late else 9.0) for i, (n, late) in enumerate(jobs)]
    for each in put:
        queue.put(each)
    clock[0] = 5.0
    good = sum(n for n, late in jobs if not late)
    taken = 0
    while taken < good:
        parts = queue.take(7)
        taken += sum(map(len, parts))
        answer(parts)
    assert queue.take(7, at_least=1) == []
    assert queue.images == 0
    for each, (_, late) in zip(put, jobs, strict=True):
        if late:
            with pytest.raises(Refused, match="deadline"):
                each.answer.result(0)
        else:
            assert is_own(each)


@settings(max_examples=20)
@given(
    jobs=st.lists(st.tuples(IMAGES, st.sampled_from("ab")), min_size=1, max_size=40),
    lanes=st.integers(1, 4),
)
def test_threads_share_the_work(jobs: list[tuple[int, str]], lanes: int) -> None:
    queue = WorkQueue()

    def run() -> None:
        while parts := queue.take(8):
            answer(parts)

    threads = [threading.Thread(target=run) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    put = [job(i, count, client=client) for i, (count, client) in enumerate(jobs)]
    for each in put:
        queue.put(each)
    for each in put:
        each.answer.result(10)
        assert is_own(each)
    queue.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_idle_devices_share_a_large_request() -> None:
    queue, sizes, started = WorkQueue(), [], threading.Barrier(5)

    def run() -> None:
        started.wait()
        while parts := queue.take(64):
            sizes.append(sum(map(len, parts)))
            threading.Event().wait(0.05)
            answer(parts)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    while queue._idle < 4:
        threading.Event().wait(0.001)
    large = job(0, 64)
    queue.put(large)
    large.answer.result(10)
    queue.close()
    assert sorted(sizes) == [16, 16, 16, 16]


def test_what_is_not_worth_it_is_not_divided() -> None:
    queue = WorkQueue(undivided=8)
    for count in (5, 20):
        queue._idle = 3  # others
        queue.put(job(0, count))
        assert sum(map(len, queue.take(64))) == (5 if count == 5 else 8)


def test_idle_device_waits_for_a_fuller_batch_only_if_told() -> None:
    for wait_s, expected in ((0.0, 1), (5.0, 4)):
        queue = WorkQueue(max_wait_s=wait_s)
        for i in range(expected):
            threading.Timer(0.05 * i, queue.put, [job(i, 1)]).start()
        assert sum(map(len, queue.take(4))) == expected


@given(st.integers(1, 300), st.integers(1, 300))
def test_batch_is_padded_to_less_than_twice_its_size(most: int, count: int) -> None:
    shapes = shapes_up_to(most)
    assert shapes[-1] == most
    assert list(shapes) == sorted(set(shapes))
    if count <= most:
        shape = next(shape for shape in shapes if shape >= count)
        assert shape < 2 * count or shape == 1


RESERVE = st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.integers(0, 40))


@given(
    steps=st.lists(st.tuples(st.booleans(), RESERVE), max_size=60),
    fair=st.booleans(),
)
def test_budgets_are_never_exceeded_and_all_permits_come_back(
    steps: list[tuple[bool, tuple[str, int, int]]], fair: bool
) -> None:
    budgets = Budgets(images=64, bytes=100, requests=5)
    admission = Admission(budgets, fair=fair)
    held = []
    for ends, (client, size, images) in steps:
        if ends and held:
            held.pop(size % len(held)).__exit__(None, None, None)
            continue
        entered = admission.admit(client, size)
        with suppress(Refused):
            permit = entered.__enter__()
            held.append(entered)
            permit.reserve("images", images)
        for what in ("images", "bytes", "requests"):
            assert 0 <= admission.in_flight[what] <= getattr(budgets, what)
    for each in held:
        each.__exit__(None, None, None)
    assert admission.idle
    assert not +admission._of_client


def test_greedy_client_leaves_room_for_another() -> None:
    admission = Admission(Budgets(images=1000, bytes=10**6, requests=1000), fair=True)
    held = []
    for _ in range(1000):
        entered = admission.admit("greedy", 0)
        try:
            permit = entered.__enter__()
            permit.reserve("images", 9)
        except Refused:
            break
        held.append(entered)
    assert 750 <= admission.in_flight["images"] <= 850
    with admission.admit("modest", 0) as permit:
        permit.reserve("images", 100)


def test_fair_shares_do_not_bind_a_single_client() -> None:
    admission = Admission(Budgets(images=10, bytes=10, requests=10))
    with admission.admit("", 10) as permit:
        permit.reserve("images", 9)
        assert admission.in_flight == {"images": 10, "bytes": 10, "requests": 1}
    assert admission.idle
