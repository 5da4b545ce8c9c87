"""Access control: API keys, or loopback only where there are none.

Programs send `Authorization: Bearer KEY`. For pages a browser asks its user, and sends the key as
password; it would do so for any site that links here, so what programs ask takes no password, and
nobody may send anything here from a page of another site.
"""

import json
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.types import Send

from distill.teacher_server.http.keys import ApiKeys

LOOPBACK_NAME = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
FOR_PROGRAMS = ("/v2", "/classify", "/metrics", "/openapi.json")


class AccessDenied(Exception):
    """401 or 403. headers: what the client may do about it."""

    def __init__(self, text: str, headers: Mapping[str, str], status: int = 401) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers)


def authenticate(method: str, path: str, headers: Mapping[bytes, str], keys: ApiKeys | None) -> str:
    """The name of who asks; empty where anybody on this machine may.

    Raises:
        AccessDenied: no valid key; or without keys a name of this machine that is not of loopback;
            or a page of another site sends something.
    """
    if method not in ("GET", "HEAD") and not _of_this_site(headers):
        raise AccessDenied("a request from a page of another site found, expected none", {}, 403)
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


def _of_this_site(headers: Mapping[bytes, str]) -> bool:
    """A browser says where a request comes from, in one of two ways; programs say neither."""
    fetch_site = headers.get(b"sec-fetch-site")
    if fetch_site is not None:
        return fetch_site in ("same-origin", "none")
    origin = headers.get(b"origin")
    if origin is None:
        return True
    try:
        place = urlsplit(origin).netloc
    except ValueError:
        return False
    return place.lower() == headers.get(b"host", "").lower()


async def send_error(send: Send, status: int, text: str, headers: Mapping[str, str]) -> None:
    """An error as JSON, where nothing behind the door is asked."""
    body = json.dumps({"error": text}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    pairs = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
