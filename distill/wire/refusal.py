"""Why a request is not answered: an HTTP status, a line for the client, a word for the metrics."""

CLIENT_GONE = 499  # nginx's status for a client that did not wait


class Refused(Exception):
    """status: of HTTP. reason: what `teacher_rejected_total` counts it under."""

    def __init__(
        self, status: int, text: str, reason: str, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(text)
        self.status, self.text, self.reason = status, text, reason
        self.retry_after_s = retry_after_s


def malformed(text: str) -> Refused:
    """400: the request itself is wrong; asking again will not help."""
    return Refused(400, text, "malformed")


def too_large(text: str) -> Refused:
    """413: over a cap that no later moment changes."""
    return Refused(413, text, "too_large")


def too_slow() -> Refused:
    """408: the request's body holds up others."""
    return Refused(408, "body cut off: it came too slowly while others waited; try again", "slow")


def too_late(text: str) -> Refused:
    """504: the request's deadline is over."""
    return Refused(504, text, "deadline")


def unavailable(text: str, reason: str = "not_ready", retry_after_s: int = 1) -> Refused:
    """503: not now, perhaps never again by this process."""
    return Refused(503, text, reason, retry_after_s=retry_after_s)
