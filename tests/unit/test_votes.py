"""Processes that ask each other seldom, and always at the same steps."""

import threading
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from distill.trainers.process_group import MOST_STEPS, Votes, World


@dataclass(frozen=True)
class Meeting(World):
    """Two threads stand for two processes; a process that asks alone waits in vain."""

    size: int = 2
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=10))
    said: list[Tensor] = field(default_factory=list)

    def sum(self, values: Tensor) -> Tensor:
        self.said.append(values.clone())
        self.barrier.wait()
        total: Tensor = self.said[-1] + self.said[-2]
        self.barrier.wait()
        return total


def asked(seconds: tuple[float, float], stops_at: int) -> list[list[tuple[int, bool]]]:
    """Of each process, the steps at which one heard of the other's signal, and what."""
    meeting, found = Meeting(), [list[tuple[int, bool]](), list[tuple[int, bool]]()]

    def train(rank: int) -> None:
        now, step = 0.0, 0
        votes = Votes(meeting, 0, lambda: now)
        stopped = False
        while not stopped and step < 400:
            step += 1
            now += seconds[rank]
            before = len(meeting.said)
            (stopped,) = votes.any(step, rank == 0 and step >= stops_at, now=step % 100 == 0)
            if len(meeting.said) > before:
                found[rank].append((step, stopped))

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_ask_at_the_same_steps_about_once_a_second() -> None:
    for seconds in ((0.001, 0.002), (0.1, 0.3), (2.0, 0.5)):
        first, second = asked(seconds, stops_at=230)
        assert first == second
        steps = [step for step, _ in first]
        gaps = [later - earlier for earlier, later in pairwise(steps)]
        mean = sum(seconds) / 2
        assert max(gaps) <= max(1, min(MOST_STEPS, 1 / mean))
        assert {100, 200} <= {*steps}
        assert [stopped for _, stopped in first] == [False] * (len(first) - 1) + [True]
        assert 230 <= steps[-1] <= 230 + MOST_STEPS


def test_one_process_asks_nobody() -> None:
    votes = Votes(World(), 0)
    assert votes.any(1, True, False, now=False) == [True, False]
