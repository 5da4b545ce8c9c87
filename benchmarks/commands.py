"""Commands of ours as a user types them, for benchmarks of what they make."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).resolve().parents[1] / "deploy/configs/tiny-imagenet-h.toml"


def answer_of(*arguments: object) -> Any:
    """What a command says with --json; students train on one core, a teacher runs on all."""
    words = [str(argument) for argument in arguments]
    one_core = {} if words[0] == "precompute" else {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "distill.cli.main", *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **one_core},
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)
