"""A client of the teacher server, which retries until a deadline.

Speaks the same protocol as any client of the Open Inference Protocol. Connections are kept, and
transient failures (a server that is full, starts or restarts, a network that hangs up) are retried.
Every request carries the teacher's fingerprint, so a run never mixes teachers. What a training run
asks is `distill.trainers.sources.server`.
"""

import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Event
from typing import Any

import numpy as np
import urllib3
from numpy.typing import NDArray
from urllib3.exceptions import (
    HTTPError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    SSLError,
)

from distill.data.sample_ids import SampleIds
from distill.data.views import Size
from distill.errors import (
    ConfigError,
    DataError,
    HierarchyError,
    TeacherError,
    TeacherRequestError,
    TeacherUnavailableError,
    first_line,
)
from distill.hierarchy.semantic import SemanticHierarchy
from distill.per_process import per_process
from distill.storage.web import CA_FILE, trusted_authorities
from distill.targets.encoding import Answers
from distill.targets.rows import TargetRows
from distill.targets.tensors import SparseTargets, View
from distill.wire import framing
from distill.wire.refusal import Refused
from distill.wire.status import Status

MODEL_PATH = "/v2/models/teacher"
SAY_EVERY_S = 5.0
ATTEMPT_S = 60.0  # after which one attempt is given up
FIRST_ATTEMPT_S = 10.0  # and before a server has answered
STARTS_WITHIN_S = 30.0  # a server that nothing listens for yet
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
PASSING = (408, 429, 502, 503, 504)  # those a proxy gives among them
CURES = {
    401: "pass its key as --api-key, or in DISTILL_API_KEY",
    404: "expected a distill teacher server; check the URL",
    412: "expected the same teacher, samples and views all through; train into another --out",
}
OUTPUTS = ("index", "prob", "sq_norm", "confidence", "status")


class TeacherClient:
    """url: http://host:port. deadline_s: of one call, all attempts together, and of connecting.

    connections: kept open. fingerprint: of the expected teacher; None takes the one that answers
    first. say: told every few seconds what is waited for. give_up: asked meanwhile whether to stop.
    sizes: height and width of each of the teacher's models.

    Where nothing listens yet, the first request waits half a minute for a server that starts; not
    at all where no host of that name is known, or TLS fails.

    Raises:
        TeacherUnavailableError: no server answers there, or `give_up` said so.
        TeacherRequestError: it refuses, or is of another teacher.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        deadline_s: float = 300.0,
        connections: int = 5,
        fingerprint: str | None = None,
        say: Callable[[str], None] = lambda line: None,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url}: expected http://HOST:PORT of a teacher server")
        self.location, self.deadline_s = url.rstrip("/"), deadline_s
        self.api_key = api_key
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        if fingerprint:
            self._headers["if-match"] = f'"{fingerprint}"'
        self._connections = connections
        self._closing, self._say, self._give_up = Event(), say, give_up
        self._known = False  # whether a server has answered

        about = self._json("GET", MODEL_PATH)["parameters"]
        self.fingerprint: str = about["teacher"]["fingerprint"]
        self._headers["if-match"] = f'"{self.fingerprint}"'
        try:
            self.hierarchy = SemanticHierarchy.from_json(
                self._json("GET", f"{MODEL_PATH}/hierarchy")
            )
            self._slots = tuple(about["encoding"]["entries"])
            self.answers: Answers = about["answers"]
            self._most = int(about["max_images_per_request"])
            self.samples: Mapping[str, Any] | None = about["samples"]
            self.sizes: list[Size] = [(int(h), int(w)) for h, w in about["sizes"]]
            self._digest = str(about["digest"])
        except (KeyError, TypeError, ValueError, HierarchyError) as error:
            raise TeacherRequestError(
                f"{self.location}: not a distill teacher server ({first_line(error)}), expected "
                "one; start it with `distill serve`"
            ) from error
        store = self.samples and self.samples["store"]
        self.identity: str = store or f"{self.fingerprint} {json.dumps(about['encoding'])}"

    @per_process
    def _pool(self) -> urllib3.PoolManager:
        return urllib3.PoolManager(
            maxsize=self._connections, block=True, retries=False, ca_certs=trusted_authorities()
        )

    @property
    def input_size(self) -> Size:
        """Height and width that the teacher sees."""
        return self.sizes[0]

    def replay(self) -> Mapping[str, Any]:
        """What the server draws of some of its samples."""
        document: Mapping[str, Any] = self._json("GET", f"{MODEL_PATH}/replay")
        return document

    def infer_samples(self, sample_ids: SampleIds, view: View) -> SparseTargets:
        """Targets of samples that the server has, in one of its views, or in one each."""
        ids = np.ascontiguousarray(sample_ids, "<u8")
        views = np.broadcast_to(np.asarray(view, "<i4"), len(ids))
        return self._infer_all({"sample_id": ids, "view": np.ascontiguousarray(views)}, len(ids))

    def infer_jpegs(self, jpegs: Sequence[bytes]) -> SparseTargets:
        """Targets of JPEG files; rows of those that are none are not valid."""
        return self._infer_all({"jpeg": list(jpegs)}, len(jpegs))

    def infer_images(self, images: NDArray[np.uint8]) -> SparseTargets:
        """Targets of pixels [n, height, width, 3]; the server resizes those of another size."""
        return self._infer_all({"image": images}, len(images))

    def close(self) -> None:
        """Close connections; calls in progress give up."""
        self._closing.set()
        self._pool.clear()

    def _infer_all(self, inputs: Mapping[str, Any], count: int) -> SparseTargets:
        """In as many requests as the server's cap asks for."""
        ends = time.monotonic() + self.deadline_s
        parts = [
            self._infer_once(
                {name: all_[i : i + self._most] for name, all_ in inputs.items()}, ends
            )
            for i in range(0, count, self._most)
        ]
        return SparseTargets.from_rows(TargetRows.concatenate(parts), self._slots, self.answers)

    def _infer_once(self, inputs: Mapping[str, Any], ends: float) -> TargetRows:
        fields = {
            "parameters": {"binary_data_output": True, "expect": self._digest},
            "outputs": [{"name": name} for name in OUTPUTS],
        }
        body, head_bytes = framing.encode_body(fields, "inputs", inputs, set(inputs))
        headers = {"content-type": "application/octet-stream"}
        headers[framing.HEAD_LENGTH] = str(head_bytes)
        for pause_s in _pauses():
            head, arrays = self._post(body, headers, ends)
            status = arrays["status"]
            if not (status == Status.NOT_NOW).any():
                break
            self._wait(pause_s, ends, "the server cannot read images now")
        self._require_answers(status, head)
        return TargetRows(
            index=arrays["index"].astype(np.int32),
            prob=arrays["prob"].copy(),
            confidence=arrays["confidence"].copy(),
            sq_norm=arrays["sq_norm"].copy(),
            valid=status == Status.OK,
        )

    def _post(
        self, body: bytes, headers: Mapping[str, str], ends: float
    ) -> tuple[Mapping[str, Any], dict[str, NDArray[Any]]]:
        reply = self._request("POST", f"{MODEL_PATH}/infer", ends, body=body, headers=headers)
        try:
            head_bytes = int(reply.headers[framing.HEAD_LENGTH])
            head = json.loads(reply.data[:head_bytes])
            raw = memoryview(reply.data)[head_bytes:]
            arrays = framing.raw_arrays(head["outputs"], raw)
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
        why, began, said = "no time to ask", time.monotonic(), 0.0
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
                    timeout=urllib3.Timeout(
                        connect=min(FIRST_ATTEMPT_S, left),
                        read=min(ATTEMPT_S if self._known else FIRST_ATTEMPT_S, left),
                    ),
                )
            except LocationValueError as error:
                raise ConfigError(
                    f"{self.location}: not a URL ({first_line(error)}), expected http://HOST:PORT"
                ) from error
            except HTTPError as error:
                why = first_line(error)
                waited = time.monotonic() - began
                if cure := self._cure(error, waited):
                    raise TeacherRequestError(f"{self.location}: {why}; {cure}") from error
            else:
                self._known = True
                if reply.status == 200:
                    return reply
                why = _error_text(reply)
                if reply.status not in PASSING:
                    cure = CURES.get(reply.status, "expected an answer; look at the server's log")
                    raise TeacherRequestError(f"{self.location}: {reply.status}: {why}; {cure}")
                retry_after = reply.headers.get("retry-after", "")
                pause_s = max(pause_s, float(retry_after)) if retry_after.isdecimal() else pause_s
            waited = time.monotonic() - began
            if waited - said >= (SAY_EVERY_S if said else 1.0):
                said = waited
                self._say(f"waiting for {self.location} for {waited:.0f} s: {why}")
            self._wait(pause_s, ends, why)
        raise self._unavailable(why)

    def _cure(self, error: HTTPError, waited: float) -> str:
        """What to do where asking again is of no use; nothing where it may be of some."""
        if isinstance(error, SSLError) or isinstance(error.__cause__, ssl.SSLError):
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                return f"expected a certificate that is trusted; name its authority in {CA_FILE}"
            return "expected a port that speaks TLS; check http:// and https://, and the port"
        if self._known:  # it may come back
            return ""
        if isinstance(error, NameResolutionError):
            return "expected the name of a host; check the URL"
        if isinstance(error, NewConnectionError) and waited > STARTS_WITHIN_S:
            return "expected a teacher server; start it with `distill serve`, or check the port"
        if isinstance(error, ProtocolError) and _speaks_tls(self.location):
            return "expected plain HTTP, but the port speaks TLS; pass https://"
        return ""

    def _wait(self, pause_s: float, ends: float, why: str) -> None:
        until = min(time.monotonic() + pause_s, ends)
        while (left := until - time.monotonic()) > 0:
            if self._closing.wait(min(left, 0.5)) or self._give_up():
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


def _speaks_tls(location: str) -> bool:
    url = urllib3.util.parse_url(location)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError):
        address = (url.host or "", url.port or 80)
        with socket.create_connection(address, timeout=2.0) as plain:
            context.wrap_socket(plain).close()
            return True
    return False


def _error_text(reply: urllib3.BaseHTTPResponse) -> str:
    try:
        return str(json.loads(reply.data)["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {reply.status}"
