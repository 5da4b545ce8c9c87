"""A live teacher as a `TargetSource`: asks a teacher server, patiently and ahead of time.

Speaks the same protocol as any client of the Open Inference Protocol. Connections are kept, batches
that were announced are on their way while the student computes, and what may pass (a server that is
full, starts or restarts, a network that hangs up) is asked again until a deadline. Every request
carries the teacher's fingerprint, so a run never mixes teachers.
"""

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from types import TracebackType
from typing import Any

import numpy as np
import urllib3
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from urllib3.exceptions import HTTPError, LocationValueError

from distill.answers import Answers
from distill.data import ImageSource
from distill.errors import (
    ConfigError,
    DataError,
    HierarchyError,
    StoreMismatchError,
    TeacherError,
    TeacherRequestError,
    TeacherUnavailableError,
    first_line,
)
from distill.hierarchy import SemanticHierarchy
from distill.order import SampleOrder
from distill.sample_id import SampleIds, samples_digest
from distill.targets import SparseTargets
from distill.training_targets import ReplayProofs
from distill.views import Size, ViewPolicy
from teacher_server.live import protocol
from teacher_server.live.decoding import Status
from teacher_server.live.refusal import Refused

MODEL_PATH = "/v2/models/teacher"
ATTEMPT_S = 60.0  # after which one attempt is given up
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
PASSING = (408, 429, 502, 503, 504)  # those a proxy gives among them
CURES = {
    401: "pass its key as --api-key, or in DISTILL_API_KEY",
    404: "expected a distill teacher server; check the URL",
    412: "expected the same teacher, samples and views all through; train into another --out",
}
OUTPUTS = ("index", "prob", "sq_norm", "confidence", "status")


class TeacherClient:
    """url: http://host:port. deadline_s: of one `fetch`, all attempts together, and of connecting.

    ahead: how many batches before their turn are asked for. fingerprint: of the teacher that is
    expected; None takes the one that answers first.

    Raises:
        TeacherUnavailableError: no server answers there.
        TeacherRequestError: it refuses, or is of another teacher.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        deadline_s: float = 300.0,
        ahead: int = 4,
        fingerprint: str | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url}: expected http://HOST:PORT of a teacher server")
        self.location, self.deadline_s, self.ahead = url.rstrip("/"), deadline_s, ahead
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        if fingerprint:
            self._headers["if-match"] = f'"{fingerprint}"'
        self._pool = urllib3.PoolManager(maxsize=ahead + 1, block=True, retries=False)
        self._threads = ThreadPoolExecutor(max(1, ahead), thread_name_prefix="ask")
        self._closing = Event()
        self._announced: dict[tuple[bytes, int], Future[SparseTargets]] = {}

        about = self._about = self._json("GET", MODEL_PATH)["parameters"]
        self.fingerprint: str = about["teacher"]["fingerprint"]
        self._headers["if-match"] = f'"{self.fingerprint}"'
        try:
            self.hierarchy = SemanticHierarchy.from_json(
                self._json("GET", f"{MODEL_PATH}/hierarchy")
            )
            self._slots = tuple(about["encoding"]["entries"])
            self._most = int(about["max_images_per_request"])
            self._samples: Mapping[str, Any] | None = about["samples"]
            sizes = [(int(height), int(width)) for height, width in about["sizes"]]
            self._size, self._digest = sizes[0], str(about["digest"])
        except (KeyError, TypeError, ValueError, HierarchyError) as error:
            raise TeacherRequestError(
                f"{self.location}: not a distill teacher server ({first_line(error)}), expected "
                "one; start it with `distill serve`"
            ) from error
        # Of an ensemble the largest: the server squishes it for the others.
        self.sizes: tuple[Size, ...] = () if self._samples else (max(sizes),)
        self.policy = ViewPolicy.from_json(self._samples["policy"]) if self._samples else None
        store = self._samples and self._samples["store"]
        self.identity: str = store or f"{self.fingerprint} {json.dumps(about['encoding'])}"

    @property
    def input_size(self) -> Size:
        """Height and width that the teacher sees."""
        return self._size

    # -- as targets of a training run -------------------------------------------------------------

    def require_dataset(self, source: ImageSource, labels: NDArray[np.int64]) -> None:
        """See `distill.training_targets`."""
        digest = samples_digest(source.ids, labels)
        if self._samples and self._samples["dataset"]["digest"] != digest:
            theirs = self._samples["dataset"]
            raise StoreMismatchError(
                f"{self.location}: dataset {theirs['digest'][:12]} ({theirs['rows']} rows) found, "
                f"this run expects {digest[:12]} ({len(source)} rows); train on the data that the "
                "server was started with"
            )

    def replay_proofs(self) -> ReplayProofs | None:
        """What the server draws of some samples; None where it draws nothing."""
        if not self._samples:
            return None
        said = self._json("GET", f"{MODEL_PATH}/replay")
        return said["proofs"] and ReplayProofs(
            where=self.location,
            proofs=said["proofs"],
            views=tuple(said["views"]),
            size=self._size,
            provenance=said["provenance"],
        )

    def view(self, epoch: int) -> int:
        """See `distill.training_targets`."""
        views = self._samples and self._samples["views"]
        return epoch % views if views else epoch

    def drawn_view(self, epoch: int) -> int:
        """See `distill.training_targets`."""
        return self.view(epoch) + (self._samples["first_view"] if self._samples else 0)

    def sample_order(self, rows: int, seed: int) -> SampleOrder:
        """Any order is as fast."""
        return SampleOrder(rows, seed)

    def prepare(self, epoch: int) -> None:
        """The server knows what to do."""

    def announce(
        self, sample_ids: SampleIds, view: int, pixels: Sequence[UInt8[Tensor, "batch 3 _ _"]] = ()
    ) -> None:
        """Ask now, for a `fetch` that is coming."""
        key = sample_ids.tobytes(), view
        if key not in self._announced:
            self._announced[key] = self._threads.submit(self._ask, sample_ids, view, pixels)

    def fetch(
        self, sample_ids: SampleIds, view: int, pixels: Sequence[UInt8[Tensor, "batch 3 _ _"]] = ()
    ) -> SparseTargets:
        """See `distill.targets.TargetSource`."""
        announced = self._announced.pop((sample_ids.tobytes(), view), None)
        return announced.result() if announced else self._ask(sample_ids, view, pixels)

    # -- any images -------------------------------------------------------------------------------

    def ask_jpegs(self, jpegs: Sequence[bytes]) -> SparseTargets:
        """Targets of JPEG files; rows of those that are none are not valid."""
        return self._ask_all({"jpeg": list(jpegs)}, len(jpegs))

    def ask_images(self, images: NDArray[np.uint8]) -> SparseTargets:
        """Targets of pixels [n, height, width, 3]; the server resizes those of another size."""
        return self._ask_all({"image": images}, len(images))

    def close(self) -> None:
        """Let go of connections and threads."""
        self._closing.set()
        self._threads.shutdown(cancel_futures=True)
        self._pool.clear()

    def __enter__(self) -> "TeacherClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, sample_ids: SampleIds, view: int, pixels: Sequence[Tensor]) -> SparseTargets:
        if not self.sizes:
            ids = np.ascontiguousarray(sample_ids, "<u8")
            views = np.full(len(ids), view, "<i4")
            return self._ask_all({"sample_id": ids, "view": views}, len(ids))
        if not len(pixels):
            raise ValueError("this server has no images: pass pixels of its size")
        images = pixels[0].permute(0, 2, 3, 1).contiguous().numpy()
        return self._ask_all({"image": images}, len(images))

    def _ask_all(self, inputs: Mapping[str, Any], count: int) -> SparseTargets:
        """In as many requests as the server's cap asks for."""
        ends = time.monotonic() + self.deadline_s
        parts = [
            self._ask_once({name: all_[i : i + self._most] for name, all_ in inputs.items()}, ends)
            for i in range(0, count, self._most)
        ]
        return SparseTargets.from_answers(Answers.joined(parts), self._slots)

    def _ask_once(self, inputs: Mapping[str, Any], ends: float) -> Answers:
        fields = {
            "parameters": {"binary_data_output": True, "expect": self._digest},
            "outputs": [{"name": name} for name in OUTPUTS],
        }
        body, head_bytes = protocol.to_body(fields, "inputs", inputs, set(inputs))
        headers = {"content-type": "application/octet-stream"}
        headers[protocol.HEAD_LENGTH] = str(head_bytes)
        for pause_s in _pauses():
            head, arrays = self._infer(body, headers, ends)
            status = arrays["status"]
            if not (status == Status.NOT_NOW).any():
                break
            self._wait(pause_s, ends, "the server cannot read images now")
        self._require_answers(status, head)
        return Answers(
            index=arrays["index"].astype(np.int32),
            prob=arrays["prob"].copy(),
            confidence=arrays["confidence"].copy(),
            sq_norm=arrays["sq_norm"].copy(),
            valid=status == Status.OK,
        )

    def _infer(
        self, body: bytes, headers: Mapping[str, str], ends: float
    ) -> tuple[Mapping[str, Any], dict[str, NDArray[Any]]]:
        reply = self._request("POST", f"{MODEL_PATH}/infer", ends, body=body, headers=headers)
        try:
            head_bytes = int(reply.headers[protocol.HEAD_LENGTH])
            head = json.loads(reply.data[:head_bytes])
            raw = memoryview(reply.data)[head_bytes:]
            arrays = protocol.raw_arrays(head["outputs"], raw)
            missing = set(OUTPUTS) - set(arrays)
            if missing:
                raise ValueError(f"no {', '.join(sorted(missing))}")
        except (KeyError, TypeError, ValueError, Refused) as error:
            raise TeacherRequestError(
                f"{self.location}: not a reply of a teacher server ({first_line(error)}), expected "
                "one; is a proxy in between?"
            ) from error
        return head, arrays

    def _require_answers(self, status: NDArray[np.int32], head: Mapping[str, Any]) -> None:
        for code, kind in ((Status.UNKNOWN_SAMPLE, DataError), (Status.NOT_FINITE, TeacherError)):
            elements = np.flatnonzero(status == code)
            if len(elements):
                reason = head.get("parameters", {}).get("bad", {}).get(str(elements[0]), code.name)
                raise kind(
                    f"{self.location}: {len(elements)} of {len(status)} samples have no answer "
                    f"({reason}), expected one for each; train on the data that the server has"
                )

    # -- HTTP -------------------------------------------------------------------------------------

    def _json(self, method: str, path: str) -> Any:
        reply = self._request(method, path, time.monotonic() + self.deadline_s)
        try:
            return json.loads(reply.data)
        except ValueError as error:
            raise TeacherRequestError(
                f"{self.location}{path}: not JSON, expected a teacher server; check the URL"
            ) from error

    def _request(
        self,
        method: str,
        path: str,
        ends: float,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Ask until there is an answer, or no time left.

        Raises:
            TeacherUnavailableError: the deadline is over.
            TeacherRequestError: asking again will not help.
        """
        why = "no time to ask"
        for pause_s in _pauses():
            left = ends - time.monotonic()
            if left <= 0:
                break
            try:
                reply = self._pool.request(
                    method,
                    self.location + path,
                    body=body,
                    headers={**self._headers, **(headers or {})},
                    timeout=urllib3.Timeout(connect=min(10.0, left), read=min(ATTEMPT_S, left)),
                )
            except LocationValueError as error:
                raise ConfigError(
                    f"{self.location}: not a URL ({first_line(error)}), expected http://HOST:PORT"
                ) from error
            except HTTPError as error:
                why = first_line(error)
            else:
                if reply.status == 200:
                    return reply
                why = _error_text(reply)
                if reply.status not in PASSING:
                    cure = CURES.get(reply.status, "expected an answer; look at the server's log")
                    raise TeacherRequestError(f"{self.location}: {reply.status}: {why}; {cure}")
                asked = reply.headers.get("retry-after", "")
                pause_s = max(pause_s, float(asked)) if asked.isdecimal() else pause_s
            self._wait(pause_s, ends, why)
        raise self._unavailable(why)

    def _wait(self, pause_s: float, ends: float, why: str) -> None:
        if self._closing.wait(min(pause_s, max(0.0, ends - time.monotonic()))):
            raise self._unavailable(why)

    def _unavailable(self, why: str) -> TeacherUnavailableError:
        return TeacherUnavailableError(
            f"{self.location}: no answer within {self.deadline_s:.0f} s ({why}), expected a "
            "teacher server; start it with `distill serve`, then run the same command again"
        )


def _pauses() -> Iterator[float]:
    """Seconds: doubled each time, and each client its own, lest all come back at once."""
    pause = FIRST_PAUSE_S
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(LONGEST_PAUSE_S, 2 * pause)


def _error_text(reply: urllib3.BaseHTTPResponse) -> str:
    try:
        return str(json.loads(reply.data)["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {reply.status}"
