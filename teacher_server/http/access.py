"""Access control: API keys, or loopback only where there are none.

Programs send `Authorization: Bearer KEY`. For pages a browser asks its user, and sends the key as
password; it would do so for any site that links here, so what programs ask takes no password.
"""

import json
import re
from collections.abc import Mapping

from starlette.types import Send

from distill.teacher_server.http.keys import ApiKeys

LOOPBACK_NAME = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
FOR_PROGRAMS = ("/v2", "/metrics", "/openapi.json")


class AccessDenied(Exception):
    """401. headers: what the client may do about it."""

    def __init__(self, text: str, headers: Mapping[str, str]) -> None:
        super().__init__(text)
        self.text, self.headers = text, dict(headers)


def authenticate(headers: Mapping[bytes, str], path: str, keys: ApiKeys | None) -> str:
    """The name of who asks; empty where anybody on this machine may.

    Raises:
        AccessDenied: no valid key, or without keys a name of this machine that is not of loopback.
    """
    if keys:
        for_programs = path.startswith(FOR_PROGRAMS)
        owner = keys.owner(headers.get(b"authorization", ""), passwords=not for_programs)
        if owner is None:
            if for_programs:
                text = "no valid API key found, expected Authorization: Bearer KEY"
                raise AccessDenied(text, {"www-authenticate": "Bearer"})
            text = "no valid API key found, expected one as password, with any user name"
            raise AccessDenied(text, {"www-authenticate": 'Basic realm="distill", charset="UTF-8"'})
        return owner
    if not LOOPBACK_NAME.fullmatch(headers.get(b"host", "localhost")):
        # A page that a browser shows could otherwise reach this server by a name of its own.
        text = "Host found that is not of loopback, expected localhost; or start it with keys"
        raise AccessDenied(text, {})
    return ""


async def send_error(send: Send, status: int, text: str, headers: Mapping[str, str]) -> None:
    """An error as JSON, where nothing behind the door is asked."""
    body = json.dumps({"error": text}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    pairs = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
