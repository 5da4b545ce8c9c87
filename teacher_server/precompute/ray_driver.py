"""A precompute on a Ray cluster: actors hold the teacher, blocks are the unit of work.

The driver hands out blocks, shows the progress of all and finishes the store; a worker computes and
commits its blocks by itself, one in hand and one ahead. What a lost worker had in hand is handed
out again, and another takes its place.
"""

import logging
import re
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.data.source import ImageSource
from distill.errors import ConfigError, DistillError, TeacherUnavailableError, first_line, optional
from distill.events import Journal
from distill.progress import Ticker, progress
from distill.store.logit_store import LogitStore
from distill.teacher_server.precompute.bad_images import BadImages
from distill.teacher_server.precompute.options import PrecomputeOptions
from distill.teacher_server.precompute.ray_worker import LoadTeacher, Worker, WorkerReport
from distill.teacher_server.precompute.run import (
    PrecomputeReport,
    finish_if_complete,
    report_of,
    rows_of,
)
from distill.teacher_server.teacher.batch_size import Throughput
from distill.teacher_server.teacher.stages import StageSeconds

HOST_AND_PORT = re.compile(r"(?:ray://)?([^/:]+):(\d{1,5})")
CONNECT_S = 10.0
POLL_S = 0.25
SLOW_START_S = 60.0  # after which the user is told that no worker has started
LOSSES_IN_A_ROW = 5  # workers lost without a block written between: something else is wrong


@contextmanager
def cluster(address: str | None = None) -> Iterator[Any]:
    """Ray, joined to the cluster at `address` (RAY_ADDRESS).

    None is, as everywhere in Ray, the cluster that runs on this machine, or else a new one of this
    machine alone.

    What Ray prints of its workers goes to standard error.

    Raises:
        ConfigError: Ray is not installed, or the cluster does not answer.
    """
    with optional("ray", "--engine ray"):
        import ray
    with redirect_stdout(sys.stderr):
        try:
            if address and (match := HOST_AND_PORT.fullmatch(address)):
                # Ray itself would try for minutes.
                socket.create_connection((match[1], int(match[2])), timeout=CONNECT_S).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"Ray cluster {address or 'of this machine'}: does not answer "
                f"({first_line(error)}), expected one; start it, or unset RAY_ADDRESS to have one "
                "of this machine"
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def precompute_on_ray(
    ray_module: Any,
    *,
    source: ImageSource,
    load: LoadTeacher,
    path: str | Path,
    options: PrecomputeOptions,
    device: str = "auto",
    workers: int | None = None,
    journal: Journal | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> PrecomputeReport:
    """`distill.teacher_server.precompute.run.precompute` by the workers of a cluster.

    Images, weights and store must be where every node finds them. load: the teacher on a device of
    that name; called in each worker. workers: None is one a GPU, or one a node where there is none.

    Raises:
        TeacherUnavailableError: workers are lost again and again.
    """
    journal = journal or Journal()
    crew = _Crew(ray_module, source, str(path), options, load, device, workers, journal, stopping)
    try:
        pending = crew.prepare()
        store = LogitStore.open(path)
        bad_images = BadImages(store, source, options.max_bad_fraction)
        done = len(source) - rows_of(store.manifest, pending)
        with progress("precompute", len(source), "images", done=done) as tick:
            crew.compute(store, pending, bad_images, tick)
    finally:
        crew.dismiss()
    left = finish_if_complete(store, journal, stopping)
    return report_of(store, bad_images, crew.speed, crew.stages, crew.seconds, left)


@dataclass(eq=False)
class _Hand:
    """A worker as the driver sees it. held: blocks it has; images: done of those."""

    actor: Any
    work: Any = None  # these two are answers to come
    report: Any = None
    held: list[int] = field(default_factory=list)
    images: int = 0
    started: bool = False
    closed: bool = False  # it will get no more blocks


class _Crew:
    """All workers of a run."""

    def __init__(
        self,
        ray_module: Any,
        source: ImageSource,
        path: str,
        options: PrecomputeOptions,
        load: LoadTeacher,
        device: str,
        workers: int | None,
        journal: Journal,
        stopping: Callable[[], bool],
    ) -> None:
        self.ray_module, self.journal, self.stopping = ray_module, journal, stopping
        self.stages, self.seconds = StageSeconds(), 0.0
        self.speed: Throughput | None = None
        nodes = [
            (int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
            for node in ray_module.nodes()
            if node["Alive"]
        ]
        gpus = 0 if device == "cpu" else sum(has for _, has in nodes)
        self.size = workers or gpus or max(1, sum(cpus > 0 for cpus, _ in nodes))
        needs = {
            "num_cpus": cpus_a_worker(nodes, self.size, on_gpu=gpus > 0),
            "num_gpus": 1 if gpus else 0,
            "max_concurrency": 4,
        }
        self.new_actor = ray_module.remote(Worker).options(**needs).remote
        self.job = ray_module.put(source), path, options, load, device
        self.hands: list[_Hand] = []
        self.losses = 0

    def prepare(self) -> list[int]:
        """The pending blocks, as the first worker that is there finds or makes the store."""
        while True:
            hand = self._hire()
            try:
                pending = list(self._patiently(hand.actor.prepare.remote()))
                hand.started = True
                return pending
            except self.ray_module.exceptions.RayError as error:
                self._dismiss(hand)
                self._count_loss(error)

    def compute(
        self, store: LogitStore, pending: Sequence[int], bad_images: BadImages, tick: Ticker
    ) -> None:
        """Hand out the blocks and take in the news, until all workers have ended."""
        blocks, started = deque(pending), time.perf_counter()
        rows = rows_of(store.manifest, pending) // max(1, min(self.size, len(pending)))
        run = _Run(store, blocks, bad_images, tick)
        stopped = False
        while blocks or (pending and self.hands):
            if self.stopping() and not stopped:
                stopped = True
                blocks.clear()
                for hand in self.hands:
                    hand.closed = True
                    hand.actor.stop.remote()
            while sum(not hand.closed for hand in self.hands) < min(self.size, len(blocks)):
                self._hire()
            for hand in list(self.hands):
                if not blocks and not hand.started:  # the cluster has no room for it, or not yet
                    self._dismiss(hand)
                    continue
                try:
                    self._listen(hand, run, rows)
                except self.ray_module.exceptions.RayError as error:
                    self._lost(hand, error, run)
            time.sleep(POLL_S)
        self.seconds = time.perf_counter() - started

    def dismiss(self) -> None:
        """Let all workers go; what they have not committed is lost."""
        for hand in list(self.hands):
            self._dismiss(hand)

    def _dismiss(self, hand: _Hand) -> None:
        self.hands.remove(hand)
        self.ray_module.kill(hand.actor)

    def _hire(self) -> _Hand:
        hand = _Hand(self.new_actor(*self.job))
        self.hands.append(hand)
        return hand

    def _listen(self, hand: _Hand, run: "_Run", rows: int) -> None:
        """Take in what a worker has to say, and hand it a block if it wants one."""
        hand.work = hand.work or hand.actor.work.remote(rows)
        hand.report = hand.report or hand.actor.report.remote()
        if self._is_there(hand.report):
            report: WorkerReport = self.ray_module.get(hand.report)
            hand.report, hand.started = None, True
            self._take_in(hand, report, run)
            if report.wants and not hand.closed:
                block = run.blocks.popleft() if run.blocks else None
                hand.closed = block is None
                hand.held += [] if block is None else [block]
                hand.actor.take.remote(block)
        if self._is_there(hand.work):
            speed, stages = self.ray_module.get(hand.work)
            self.speed = speed or self.speed
            self.stages.add(stages)
            waiting = [hand.report] if hand.report else []
            for answer in (*waiting, hand.actor.report.remote()):
                self._take_in(hand, self.ray_module.get(answer), run)
            self._dismiss(hand)

    def _take_in(self, hand: _Hand, report: WorkerReport, run: "_Run") -> None:
        for text in report.notes:
            self.journal.say(text)
        for event in report.events:
            self.journal.pass_on(event)
            if event["event"] == "block written":
                hand.held.remove(event["block"])
                hand.images -= event["rows"]
                self.losses = 0
        hand.images += report.images
        run.bad_images.add(report.images, report.bad)
        run.tick(report.images, run.bad_images.note)

    def _lost(self, hand: _Hand, error: Exception, run: "_Run") -> None:
        """Give back what it held, but for what it committed before it could say so."""
        self._count_loss(error)
        pending = set(run.store.pending_blocks())
        again = [] if self.stopping() else [block for block in hand.held if block in pending]
        committed = [block for block in hand.held if block not in pending]
        difference = rows_of(run.store.manifest, committed) - hand.images
        run.bad_images.add(difference, {})
        run.tick(difference, run.bad_images.note)
        run.blocks.extendleft(reversed(again))
        self._dismiss(hand)
        self.journal.note(
            f"a worker was lost ({_why(error)}); its blocks {again} go to others",
            "worker lost",
            blocks=again,
        )

    def _count_loss(self, error: Exception) -> None:
        """Raise what a user can mend, and give up after too many losses."""
        if isinstance(error, self.ray_module.exceptions.RayTaskError) and not isinstance(
            error.cause, TeacherUnavailableError
        ):
            raise error.cause if isinstance(error.cause, DistillError) else error
        self.losses += 1
        if self.losses >= LOSSES_IN_A_ROW:
            raise TeacherUnavailableError(
                f"{self.losses} workers were lost one after another (the last: "
                f"{_why(error)}), expected them to keep running; look at the nodes' memory and "
                "GPUs, then run the same command again"
            ) from error

    def _patiently(self, answer: Any) -> Any:
        """Wait, and tell the user when it takes long: the cluster may have no room."""
        began, warned = time.monotonic(), False
        while not self._is_there(answer, POLL_S):
            if self.stopping():
                raise KeyboardInterrupt
            if not warned and time.monotonic() - began > SLOW_START_S:
                warned = True
                self.journal.note(
                    "no worker has started yet; the cluster has "
                    f"{self.ray_module.cluster_resources()}",
                    "waiting for a worker",
                )
        return self.ray_module.get(answer)

    def _is_there(self, answer: Any, wait_s: float = 0.0) -> bool:
        ready, _ = self.ray_module.wait([answer], timeout=wait_s)
        return bool(ready)


def _why(error: Exception) -> str:
    return first_line(getattr(error, "cause", None) or error)


def cpus_a_worker(nodes: Sequence[tuple[int, int]], workers: int, *, on_gpu: bool) -> int:
    """The most processors a worker can have if all workers are to run at once, one a GPU.

    nodes: processors and GPUs of each.
    """

    def fitting(cpus: int) -> int:
        return sum(min(has // cpus, gpus) if on_gpu else has // cpus for has, gpus in nodes)

    most = max((has for has, _ in nodes), default=1)
    return next((cpus for cpus in range(most, 1, -1) if fitting(cpus) >= workers), 1)


@dataclass(frozen=True, eq=False)
class _Run:
    """blocks: those that nobody has yet."""

    store: LogitStore
    blocks: deque[int]
    bad_images: BadImages
    tick: Ticker
