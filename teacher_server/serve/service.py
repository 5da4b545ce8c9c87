"""The service behind the protocol: named input tensors → targets → named output tensors.

Owns the queue, the lanes, the decoders and the budgets, and knows whether it is ready. Knows no
HTTP: `distill.teacher_server.front.app` puts it on the web.
"""

import asyncio
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.images import read_bytes
from distill.errors import DISTRIBUTION, DataError, DataUnavailableError
from distill.events import Journal
from distill.store.format.codes import Coding
from distill.targets.encoding import EncodingSpec
from distill.targets.rows import TargetRows
from distill.teacher_server.serve.admission import Admission, Budgets
from distill.teacher_server.serve.decoding import Decoded, DecodeFailure, Decoder
from distill.teacher_server.serve.device import Device, InItsProcess, InThisProcess
from distill.teacher_server.serve.inputs import MAIN_INPUTS, main_input, require_within
from distill.teacher_server.serve.lane import Lane, shapes_up_to
from distill.teacher_server.serve.metrics import Metrics
from distill.teacher_server.serve.queue import InferJob, InferResult, WorkQueue
from distill.teacher_server.serve.samples import SampleAnswers
from distill.teacher_server.serve.tracing import Tracing
from distill.teacher_server.teacher.teacher import Teacher
from distill.wire.framing import RequestHead, Tensor, requested_outputs
from distill.wire.refusal import Refused, malformed, too_late, unavailable
from distill.wire.status import Status

DEFAULT_OUTPUTS = ("index", "prob", "sq_norm", "confidence", "status")
HANG_FACTOR, HANG_AT_LEAST_S = 5.0, 4.0  # a batch that takes so much longer than usual hangs
UNDIVIDED_ON_GPU = 64  # images; launching a batch's kernels takes as long for fewer
SICK_UNTIL_DEAD_S = 10.0  # ready is off meanwhile, so that nothing more is sent here


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """budgets: of what may be in flight. encoding: of sparse answers.

    deadline_s: of a request that names none; also the most that it may name. hang_after_s: a device
    that is silent so long counts as lost; None is five times its slowest batch. fair: several
    clients share the budgets.
    """

    encoding: EncodingSpec
    max_batch_size: int
    budgets: Budgets
    max_wait_ms: float = 0.0
    max_images_per_request: int = 256
    max_body_bytes: int = 64 * 2**20
    max_image_pixels: int = 25_000_000
    deadline_s: float = 60.0
    decode_threads: int = 2
    hang_after_s: float | None = None
    fair: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class InferRequest:
    """A request. useless: whether nobody waits for it any more."""

    tensors: Mapping[str, Tensor]
    outputs: Sequence[str]
    client: str
    deadline: float  # by time.monotonic
    useless: Callable[[], bool]


@dataclass(eq=False)
class Away:
    """Images that cannot be read now. row: one of them. looking: the last look at it."""

    row: int
    reason: str
    looking: "Future[None] | None" = None


class Service:
    """teachers: the same one on each device; CPU devices get a lane a core.

    makers: of each of them, for lanes that run in processes of their own.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        options: ServeOptions,
        *,
        journal: Journal | None = None,
        samples: SampleAnswers | None = None,
        makers: Sequence[Callable[[], Teacher]] = (),
    ) -> None:
        self.teacher, self.options, self.samples = teachers[0], options, samples
        self.hierarchy = self.teacher.hierarchy
        self.journal, self.metrics = journal or Journal(), Metrics()
        self.tracing = Tracing()
        self.coding = Coding(
            options.encoding, self.hierarchy.classes_per_hierarchy, self.teacher.answers
        )
        on_gpu = self.teacher.device.type == "cuda"
        self.queue = WorkQueue(
            max_wait_s=options.max_wait_ms / 1000, undivided=UNDIVIDED_ON_GPU if on_gpu else 1
        )
        self.decoder = Decoder(
            self.teacher.sizes,
            threads=options.decode_threads,
            max_pixels=options.max_image_pixels,
            say=lambda line: self.journal.event("decoding takes long", text=line),
        )
        self.lanes = [
            Lane(
                teacher,
                self._device(teacher, makers[i] if makers else None),
                self.queue,
                journal=self.journal,
                on_batch=self._count_batch,
            )
            for i, teacher in enumerate(teachers)
        ]
        self.admission = Admission(
            options.budgets, fair=options.fair, retry_after_s=self._retry_after_s
        )
        self.draining = False
        self.closers: list[Callable[[], None]] = []  # of what stands on the service
        self._warm = self._warming = False
        self._sick_since: float | None = None
        self._away: Away | None = None
        self.metrics.build.info(
            {
                "version": version(DISTRIBUTION),
                "torch": version("torch"),
                "teacher": self.teacher.identity.name,
                "fingerprint": self.teacher.identity.fingerprint,
            }
        )
        self.metrics.queue_images.set_function(lambda: self.queue.images)
        self.metrics.inflight_bytes.set_function(lambda: self.admission.in_flight["bytes"])
        self.metrics.ready.set_function(lambda: not self.why_not_ready())

    def _device(self, teacher: Teacher, make: Callable[[], Teacher] | None) -> Device:
        most, spec = self.options.max_batch_size, self.options.encoding
        if make is None:
            return InThisProcess(teacher, spec, batch_size=most, journal=self.journal)
        shapes = shapes_up_to(most)
        return InItsProcess(teacher, make, spec, shapes=shapes, journal=self.journal)

    # -- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Warm all lanes up, side by side, and begin to answer.

        Raises:
            TeacherError: a device cannot run the teacher.
        """
        self._warming = True
        with ThreadPoolExecutor(len(self.lanes)) as pool:
            list(pool.map(Lane.warm_up, self.lanes))
        self._warming = False
        if self.queue.closed:
            return
        for lane in self.lanes:
            lane.start()
        self._warm = True
        self.journal.event(
            "warm",
            devices=[str(lane.teacher.device) for lane in self.lanes],
            seconds_by_batch=[
                {str(n): round(s, 5) for n, s in sorted(lane.seconds.items())}
                for lane in self.lanes
            ],
        )

    def why_not_ready(self) -> str:
        """Empty while requests are answered."""
        if self.draining:
            return "the server is shutting down"
        if not self._warm:
            return "the teacher is warming up"
        away = f"images cannot be read: {self._away.reason}" if self._away else ""
        return self.failure() or away

    def failure(self) -> str:
        """Why a device answers no more; empty while all do."""
        now = time.monotonic()
        for lane in self.lanes:
            if lane.failure:
                return f"{lane.teacher.device} failed: {lane.failure}"
            silent = now - (lane.busy_since or now)
            if silent > self._hang_after_s(lane):
                return f"{lane.teacher.device} has been silent for {silent:.0f} s"
        return ""

    def _hang_after_s(self, lane: Lane) -> float:
        slowest = max(lane.seconds.values(), default=0.0)
        return self.options.hang_after_s or max(HANG_AT_LEAST_S, HANG_FACTOR * slowest)

    def look_after(self) -> None:
        """To be called every second: a sick service tells those that wait, and dies in time."""
        if self.samples:
            self.samples.look_after()
        if self._away and (self._away.looking is None or self._away.looking.done()):
            self._away.looking = self.decoder.pool.submit(self._look_again, self._away)
        for lane in self.lanes * (not self.draining):
            lane.look_after()
        failure = self.failure()
        if not failure:
            self._sick_since = None
        elif self._sick_since is None:
            self._sick_since = time.monotonic()
            self.journal.event("not ready", level="error", text=failure)
            if any(lane.failure for lane in self.lanes):
                self.queue.fail(unavailable(failure, "device_lost"))

    def _look_again(self, away: "Away") -> None:
        """Whether the images are back."""
        assert self.samples is not None
        assert self.samples.source is not None
        try:
            read_bytes(self.samples.source.samples[away.row])
        except DataUnavailableError:
            return
        except DataError:
            pass  # it is gone, others are there
        self._away = None
        self.journal.event("images can be read again")

    @property
    def is_dead(self) -> bool:
        """Sick for so long that only a new process helps."""
        since = self._sick_since
        return since is not None and time.monotonic() - since > SICK_UNTIL_DEAD_S

    def close(self, within_s: float = 5.0) -> bool:
        """Answer what waits, put what was computed on the disk, and let everything go.

        Whether all threads came to their end; those that hang end with the process.
        """
        self.draining = True
        for close in self.closers:
            close()
        self.queue.close()
        ends = time.monotonic() + within_s
        ended = [lane.join(max(0.0, ends - time.monotonic())) for lane in self.lanes]
        self.decoder.close()
        self.tracing.close()
        if self.samples:
            ended.append(self.samples.close(max(0.0, ends - time.monotonic())))
        return all(ended) and (self._warm or not self._warming)

    @property
    def images_per_s(self) -> float:
        """Throughput of all lanes at full batches."""
        return sum(lane.images_per_s for lane in self.lanes)

    def _retry_after_s(self) -> int:
        return max(1, math.ceil(self.admission.in_flight["images"] / self.images_per_s))

    def _count_batch(self, images: int, padded: int, seconds: float) -> None:
        self.metrics.batch_size.observe(images)
        self.metrics.forward.observe(seconds)

    @cached_property
    def answers_about(self) -> dict[str, Any]:
        """What a client's targets depend on beside the teacher: the encoding and the samples."""
        about = self.samples.about() if self.samples else None
        return {
            "answers": self.teacher.answers,
            "encoding": self.options.encoding.to_json(),
            "samples": about,
        }

    @cached_property
    def answers_digest(self) -> str:
        """SHA-256 of that; a client that sends it as `expect` is refused by a server of another."""
        document = json.dumps(self.answers_about, sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()

    # -- requests ---------------------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, tuple[str, list[int]]]:
        """Datatype and shape of each."""
        slots, hierarchies = sum(self.options.encoding.entries), self.hierarchy.num_hierarchies
        members = sum(self.hierarchy.classes_per_hierarchy)
        return {
            "index": ("UINT16", [-1, slots]),
            "prob": ("FP32", [-1, slots]),
            "sq_norm": ("FP32", [-1, hierarchies]),
            "confidence": ("FP32", [-1, hierarchies]),
            "probs": ("FP16", [-1, members]),
            "status": ("INT32", [-1]),
        }

    def count_images(self, head: RequestHead) -> int:
        """How many images a request holds, by its head alone.

        Raises:
            Refused: 400, inputs do not go together; 413, there are too many images.
        """
        name, shape = main_input(head)
        require_within(
            name,
            shape,
            max_images=self.options.max_images_per_request,
            max_pixels=self.options.max_image_pixels,
        )
        if name == "sample_id" and not self.samples:
            raise malformed(
                "input sample_id found, but this server has no samples; send image or jpeg, or "
                "start it with --store or --data"
            )
        return shape[0]

    def request_of(
        self,
        head: RequestHead,
        tensors: Mapping[str, Tensor],
        *,
        client: str,
        started: float,
        useless: Callable[[], bool],
        outputs: Sequence[str] = DEFAULT_OUTPUTS,
    ) -> InferRequest:
        """What a head asks for. started: by time.monotonic. outputs: where it names none.

        Raises:
            Refused: 400, no such output; 412, the server has other samples than it expects.
        """
        if head.parameters.expect not in (None, self.answers_digest):
            raise Refused(
                412,
                "the server has other samples, views or encoding than the request expects; start "
                "it as before, or start the run anew",
                "changed",
            )
        patience = self.options.deadline_s
        if head.parameters.timeout:
            patience = min(patience, head.parameters.timeout / 1e6)
        return InferRequest(
            tensors=tensors,
            outputs=requested_outputs(head, list(self.outputs), outputs),
            client=client,
            deadline=started + patience,
            useless=useless,
        )

    async def infer(self, request: InferRequest) -> InferResult:
        """The answers to a request whose head `count_images` accepted.

        Raises:
            Refused: an element is bad and `status` was not asked for; or the teacher fails.
        """
        dense = "probs" in request.outputs
        if "sample_id" in request.tensors:
            result = await self._infer_samples(request, dense)
        else:
            result = await self._infer_images(request, dense)
        if result.bad and "status" not in request.outputs:
            self._count_elements(result)
            element, bad = min(result.bad.items())
            name = next(name for name in MAIN_INPUTS if name in request.tensors)
            raise _refusal(f"{name}[{element}]: {bad.reason}", bad.status)
        result.bad = dict(sorted(result.bad.items()))
        self._count_elements(result)
        return result

    def _count_elements(self, result: InferResult) -> None:
        counts = Counter(bad.status for bad in result.bad.values())
        counts[Status.OK] = len(result.rows) - len(result.bad)
        for status, count in counts.items():
            self.metrics.elements.labels(status.name).inc(count)

    async def _infer_images(self, request: InferRequest, dense: bool) -> InferResult:
        crcs: Any = request.tensors.get("crc32")
        images: Any = request.tensors.get("image")
        jpegs: Any = request.tensors.get("jpeg")
        with self.metrics.decode.time(), self.tracing.part("decode"):
            if images is not None:
                decoded = await self.decoder.images(images, crcs, request.useless)
            else:
                decoded = await self.decoder.jpegs(jpegs, crcs, request.useless)
        result = self._empty_result(len(images if images is not None else jpegs), dense)
        await self._ask(request, decoded, np.arange(len(result.rows)), result)
        self.metrics.images.labels("teacher").inc(len(result.rows) - len(result.bad))
        return result

    async def _infer_samples(self, request: InferRequest, dense: bool) -> InferResult:
        """What the store has is not asked again; what is asked is written through."""
        samples = self.samples
        assert samples is not None
        if dense and samples.source is None:
            raise malformed("output probs: a store keeps none; ask for index and prob")
        ids: Any = request.tensors["sample_id"]
        views: Any = request.tensors.get("view", np.zeros(len(ids), np.int32))
        looked_up = await samples.look_up(ids, views.astype(np.int64), stored=not dense)
        result = self._empty_result(len(ids), dense)
        result.bad |= looked_up.bad
        known, missing = np.flatnonzero(looked_up.known), looked_up.missing
        result.rows.put(known, looked_up.answers.select(known))
        self.metrics.images.labels("store").inc(len(known))
        if len(missing):
            with self.metrics.decode.time(), self.tracing.part("decode"):
                decoded = await samples.draw(self.decoder, looked_up, request.useless)
            for i, failure in decoded.bad.items():
                if failure.status == Status.NOT_NOW and self._away is None:
                    self._away = Away(int(looked_up.rows[missing[i]]), failure.reason)
                    self.journal.event("images cannot be read", level="error", text=failure.reason)
            await self._ask(request, decoded, missing, result)
            samples.keep(looked_up, self._to_keep(missing, result), result.rows)
            self.metrics.images.labels("teacher").inc(len(missing))
        return result

    def _to_keep(self, computed: NDArray[np.int64], result: InferResult) -> NDArray[np.int64]:
        """Those that would come out the same again; of images that are away nothing is known."""
        passing = (Status.NOT_NOW, Status.NOT_FINITE, Status.UNREADABLE)
        kept = [i for i in computed if i not in result.bad or result.bad[i].status not in passing]
        return np.array(kept, np.int64)

    async def _ask(
        self,
        request: InferRequest,
        decoded: Decoded,
        elements: NDArray[np.int64],
        result: InferResult,
    ) -> None:
        """Ask the teacher, and put its answers where `elements` says."""
        result.bad |= {int(elements[i]): bad for i, bad in decoded.bad.items()}
        good = np.delete(elements, list(decoded.bad))
        if request.useless():
            raise too_late("the client went away")  # the rest was not even decoded
        if not len(good):
            return
        job = InferJob(decoded.pixels, result.probs is not None, request.client, request.deadline)
        self.queue.put(job)
        with self.tracing.part("teacher") as span:
            try:
                batch = await asyncio.wrap_future(job.answer)
            finally:
                self.queue.give_up(job)  # for a request that was cancelled
            if batch.timing:
                self.metrics.queue.observe(batch.timing.queue_s)
                span.set_attributes(
                    {
                        "distill.queue_s": batch.timing.queue_s,
                        "distill.infer_s": batch.timing.infer_s,
                        "distill.batch_size": batch.timing.batch_size,
                    }
                )
        finite = np.isfinite(batch.rows.confidence).all(1)
        for element in good[~finite]:
            result.bad[int(element)] = DecodeFailure(
                Status.NOT_FINITE, "the teacher's output contains NaN or Inf; check its weights"
            )
        # As a store keeps it, so that a student sees the same from either.
        answers = batch.rows.select(np.flatnonzero(finite))
        result.rows.put(good[finite], self.coding.dequantise(self.coding.quantise(answers)))
        if result.probs is not None and batch.probs is not None:
            result.probs[good[finite]] = batch.probs[finite]
        result.timing = batch.timing

    def _empty_result(self, count: int, dense: bool) -> InferResult:
        slots, hierarchies = sum(self.options.encoding.entries), self.hierarchy.num_hierarchies
        members = sum(self.hierarchy.classes_per_hierarchy)
        return InferResult(
            rows=TargetRows.empty(count, slots, hierarchies),
            probs=np.zeros((count, members), np.float16) if dense else None,
        )


def _refusal(text: str, status: Status) -> Refused:
    """Whose fault it is that an element has no answer."""
    if status == Status.NOT_NOW:
        return unavailable(text, "images")
    if status == Status.NOT_FINITE:
        return Refused(500, text, "failed")
    return Refused(404, text, "samples") if status == Status.UNKNOWN_SAMPLE else malformed(text)
