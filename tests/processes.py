"""Commands in processes of their own, to interrupt, kill or let compete."""

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any


def started(words: list[str], **more: Any) -> "subprocess.Popen[str]":
    """`distill` with those words, its output piped."""
    return subprocess.Popen(
        [sys.executable, "-m", "distill.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


class Process:
    """A server and what its log says."""

    def __init__(self, running: "subprocess.Popen[str]") -> None:
        self.running = running
        self.events: list[dict[str, Any]] = []
        self.plain: list[str] = []
        self._told: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.running.stderr is not None
        for line in self.running.stderr:
            if line.startswith("{"):
                self.events.append(json.loads(line))
                self._told.put(self.events[-1]["event"])
            else:
                self.plain.append(line)

    def wait_for(self, event: str, seconds: float = 60.0) -> dict[str, Any]:
        ends = time.monotonic() + seconds
        while self._told.get(timeout=max(0.1, ends - time.monotonic())) != event:
            pass
        return next(e for e in self.events if e["event"] == event)

    @property
    def port(self) -> int:
        heard = (e for e in self.events if e["event"] == "listening" and "protocol" not in e)
        return int(next(heard)["port"])

    def end(self, number: int = signal.SIGTERM, seconds: float = 40.0) -> int:
        self.running.send_signal(number)
        code = self.running.wait(seconds)
        self._reader.join(5)
        assert self.running.stdout is not None
        assert self.running.stderr is not None
        self.running.stdout.close()
        self.running.stderr.close()
        return code
