"""What is known of a request, whether it comes over HTTP or gRPC, and what the log says of it."""

import re
import time
import uuid
from dataclasses import dataclass, field

from distill.teacher_server.serve.service import Service

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass
class RequestState:
    """client: the name of its key. status: of HTTP; 0 before it is known. body_bytes: of gRPC's."""

    request_id: str
    client: str = ""
    images: int = 0
    body_bytes: int = 0
    status: int = 0
    started: float = field(default_factory=time.monotonic)

    def log(self, service: Service, *, method: str, route: str, path: str, address: str) -> None:
        """At its end. route: what metrics count it under."""
        service.metrics.requests.labels(route, self.status).inc()
        service.journal.event(
            "request",
            request_id=self.request_id,
            method=method,
            path=path[:200],
            status=self.status,
            client=self.client,
            address=address,
            images=self.images,
            ms=round(1000 * (time.monotonic() - self.started), 2),
        )

    def log_bug(self, service: Service, error: Exception) -> None:
        """What nobody expected; the client is told no more than that."""
        service.journal.event(
            "error",
            level="error",
            request_id=self.request_id,
            error=type(error).__name__,
            text=str(error),
        )


def etag(service: Service) -> str:
    """The teacher's fingerprint, as a header has it."""
    return f'"{service.teacher.identity.fingerprint}"'


def expects_another(if_match: str, etag: str) -> bool:
    """Whether a request is meant for other teachers only; an empty text is meant for any."""
    return bool(if_match) and all(tag.strip() not in ("*", etag) for tag in if_match.split(","))


def request_id_of(given: str) -> str:
    """The client's own where it is one, else a new one."""
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
