"""The log of a long run: events as JSON lines in a file, the important ones also said to the user.

Free of secrets: credentials in URLs are blotted out, and no environment variable is ever written.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CREDENTIALS = re.compile(r"(?<=://)[^/@\s\"]+@|(?<=[?&])[^=&\s\"]+=[^&\s\"]+")
Event = dict[str, Any]


class Journal:
    """Takes events from any thread. write: where they go; say: what is told to the user."""

    def __init__(
        self,
        write: Callable[[Event], None] = lambda event: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._write, self._say = write, say

    def event(self, name: str, **fields: Any) -> None:
        """Write an event; fields are JSON values."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        self.pass_on({"time": f"{now}Z", "event": name, **fields})

    def note(self, text: str, name: str, **fields: Any) -> None:
        """An event that the user should read now."""
        self.event(name, text=text, **fields)
        self.say(text)

    def say(self, text: str) -> None:
        """Tell the user."""
        self._say(without_secrets(text))

    def pass_on(self, event: Event) -> None:
        """Write an event that another journal took."""
        self._write(event)


@contextmanager
def journal_file(path: Path | None, say: Callable[[str], None]) -> Iterator[Journal]:
    """A journal whose events are appended to a file, as JSON lines; what ends it is its last."""
    if path is None:
        yield Journal(say=say)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:

        def write(event: Event) -> None:
            line = without_secrets(json.dumps(event, default=str, ensure_ascii=False))
            with lock:
                file.write(line + "\n")
                file.flush()

        journal = Journal(write, say)
        try:
            yield journal
        except BaseException as error:
            journal.event("stopped", error=type(error).__name__, text=str(error))
            raise


def without_secrets(text: str) -> str:
    """URLs without user names, passwords and query values, which may be signatures."""
    return CREDENTIALS.sub(lambda match: "***@" if match[0].endswith("@") else "***", text)
