"""Commands in processes of their own, to interrupt, kill or let compete."""

import subprocess
import sys
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
