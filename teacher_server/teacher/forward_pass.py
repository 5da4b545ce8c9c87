"""A teacher at its own speed: batches are launched, and collected when the device has them ready.

Copies, forward pass and encoding of a batch are queued on the device without waiting for it. Only
the encoded answer comes back: some hundred numbers an image, nothing of [batch, classes].
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock

import torch
from jaxtyping import UInt8
from torch import Tensor

from distill.errors import TeacherError, TeacherUnavailableError, first_line
from distill.events import Journal
from distill.models.devices import is_lost, is_out_of_memory
from distill.targets.encoding import EncodingSpec
from distill.targets.tensors import DenseTargets, SparseTargets
from distill.teacher_server.teacher.captured import CapturedPasses, Run
from distill.teacher_server.teacher.stages import StageSeconds
from distill.teacher_server.teacher.teacher import Teacher

HOST = torch.device("cpu")
BATCHES_AHEAD = 1  # wait at the device, so that it need not wait
Moment = float | torch.cuda.Event
# Which of an answer's moments each stage lies between.
STAGES = (("to_device", 0, 1), ("forward", 2, 3), ("encode", 3, 4), ("to_host", 4, 5))


@dataclass(frozen=True, eq=False)
class Encoded:
    """TargetRows of some views. sparse: on the host, once `Forward.collect` has waited for it.

    exact: of the first views, and reference: in float32 where the teacher computes in less, on the
    device; dense: all probabilities as float16 on the host. Only where they were asked for.
    """

    sparse: SparseTargets
    exact: DenseTargets | None
    reference: DenseTargets | None
    dense: Tensor | None
    moments: tuple[Moment, ...]


class Forward:
    """Runs one teacher. batch_size: most views in one pass; halved where memory runs out.

    A GPU takes batches one after another. On a CPU lanes take a batch each, `threads` of torch's
    work on it, and the last bits of the answers depend on how many; what is fastest is measured
    (`batch_size`). lanes: None is as many as torch has threads for. captured: a GPU's pass is
    launched as one, for batches of few shapes.
    """

    def __init__(
        self,
        teacher: Teacher,
        spec: EncodingSpec,
        *,
        batch_size: int,
        compiled: bool = False,
        captured: bool = False,
        threads: int = 1,
        lanes: int | None = None,
        journal: Journal | None = None,
        stages: StageSeconds | None = None,
    ) -> None:
        self._plain, self.teacher = teacher, teacher.compiled() if compiled else teacher
        self.spec = spec
        self.batch_size = batch_size
        self.compiled = compiled
        self.journal = journal or Journal()
        self.stages = stages or StageSeconds()
        self._on_gpu = teacher.device.type == "cuda"
        self._logits: Run = self.teacher.logits
        if captured and self._on_gpu:
            self._logits = CapturedPasses(self.teacher.logits, self.journal)
        self._copies = torch.cuda.Stream(teacher.device) if self._on_gpu else None
        self.lanes = 1 if self._on_gpu else lanes or max(1, torch.get_num_threads() // threads)
        self._threads = (
            None
            if self._on_gpu
            else ThreadPoolExecutor(
                self.lanes, "forward", initializer=torch.set_num_threads, initargs=(threads,)
            )
        )
        self._halving, self._compiling = Lock(), Lock()
        self._warm = not compiled  # one thread compiles, the others wait

    def launch(
        self,
        pixels: Sequence[UInt8[Tensor, "views channels _ _"]],
        *,
        exact: int = 0,
        dense: bool = False,
    ) -> "Future[list[Encoded]]":
        """Begin to answer; `collect` waits for it, and raises what went wrong.

        pixels: one tensor for each of the teacher's sizes; pinned memory is copied in the
        background. They must not change until `collect`. exact: of how many of the first views to
        keep the exact answer.
        """
        if self._threads:
            return self._threads.submit(self._in_parts, pixels, exact, dense)
        queued: Future[list[Encoded]] = Future()
        queued.set_result(self._in_parts(pixels, exact, dense))
        return queued

    def collect(self, launched: "Future[list[Encoded]]") -> list[Encoded]:
        """Wait for the answers.

        Raises:
            TeacherError: not even one view fits into memory.
            TeacherUnavailableError: the device was lost.
        """
        started = time.perf_counter()
        parts = launched.result()
        for part in parts:
            self._wait_for(part.moments[-1])
        self.stages.wait_for_device += time.perf_counter() - started
        for part in parts:
            for stage, begun, ended in STAGES:
                seconds = _seconds(part.moments[begun], part.moments[ended]) / self.lanes
                setattr(self.stages, stage, getattr(self.stages, stage) + seconds)
        return parts

    @property
    def in_flight(self) -> int:
        """How many batches a run keeps under way: one in each lane, and one that waits."""
        return self.lanes + BATCHES_AHEAD

    def close(self) -> None:
        """Wait for what was launched, and let the threads go."""
        if self._threads:
            self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> "Forward":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _in_parts(self, pixels: Sequence[Tensor], exact: int, dense: bool) -> list[Encoded]:
        parts, first = [], 0
        while first < len(pixels[0]):
            batch_size = self.batch_size
            part = [each[first : first + batch_size] for each in pixels]
            try:
                with self._compiling if not self._warm else nullcontext(), self._on_its_device():
                    parts.append(self._launch(part, batch_size, exact - first, dense))
                    self._warm = True
            except (RuntimeError, MemoryError) as error:
                self._halve_or_raise(error, batch_size)
                continue
            first += len(part[0])
        return parts

    def _launch(self, pixels: Sequence[Tensor], batch_size: int, kept: int, dense: bool) -> Encoded:
        with self._copying():
            moments = [self._now()]
            on_device = [each.to(self.teacher.device, non_blocking=True) for each in pixels]
            moments.append(self._now())
        if self._copies:
            torch.cuda.current_stream().wait_stream(self._copies)
            for each in on_device:
                each.record_stream(torch.cuda.current_stream())
        count = len(on_device[0])
        if self.compiled:  # for one shape only
            on_device = [_padded(each, batch_size) for each in on_device]
        moments.append(self._now())
        logits = [each[:count] for each in self._logits(on_device)]
        moments.append(self._now())
        exact, sparse = self.teacher.encoded(logits, self.spec)
        sparse = replace(sparse, index=sparse.index.int())
        moments.append(self._now())
        sparse = sparse.to(HOST)
        half_probs = exact.probs.half().to(HOST, non_blocking=True) if dense else None
        moments.append(self._now())
        reference = None
        if kept > 0:
            exact = replace(exact, probs=exact.probs[:kept], confidence=exact.confidence[:kept])
            # Not the compiled teacher: that one is made for one shape.
            reference = self._plain.reference([each[:count][:kept] for each in on_device])
        return Encoded(sparse, exact if kept > 0 else None, reference, half_probs, tuple(moments))

    def _on_its_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.teacher.device) if self._on_gpu else nullcontext()

    def _copying(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._copies) if self._copies else nullcontext()

    def _now(self) -> Moment:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _wait_for(self, moment: Moment) -> None:
        if isinstance(moment, float):
            return
        try:
            moment.synchronize()
        except RuntimeError as error:
            raise _lost(self.teacher, error) from error

    def _halve_or_raise(self, error: RuntimeError | MemoryError, batch_size: int) -> None:
        if not is_out_of_memory(error):
            if is_lost(error):
                raise _lost(self.teacher, error) from error
            raise error
        if self._on_gpu:
            torch.cuda.synchronize(self.teacher.device)
            torch.cuda.empty_cache()
        if batch_size == 1:
            raise TeacherError(
                f"teacher {self.teacher.identity.name}: out of memory with a single image "
                f"({first_line(error)}), expected room for one; use a smaller teacher or "
                "--input-size, or another --device"
            ) from error
        with self._halving:
            if batch_size > self.batch_size:  # another thread was first
                return
            self.batch_size = batch_size // 2
            self.journal.note(
                f"out of memory: continuing with batches of {self.batch_size}",
                "batch halved",
                level="warning",
                batch_size=self.batch_size,
            )


def _lost(teacher: Teacher, error: BaseException) -> TeacherUnavailableError:
    return TeacherUnavailableError(
        f"teacher {teacher.identity.name}: device {teacher.device} was lost ({first_line(error)}), "
        "expected it to answer; finished blocks are kept: run the same command again, or choose "
        "another --device"
    )


def _seconds(begun: Moment, ended: Moment) -> float:
    if isinstance(begun, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
        return float(begun.elapsed_time(ended)) / 1000
    assert isinstance(begun, float)
    assert isinstance(ended, float)
    return ended - begun


def _padded(pixels: Tensor, batch_size: int) -> Tensor:
    missing = batch_size - len(pixels)
    return torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])]) if missing else pixels
