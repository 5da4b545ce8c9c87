"""The day with a GPU, rehearsed on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_day_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Every part in small; what is done is not done again, what failed is."""
    day = [sys.executable, str(ROOT / "benchmarks/gpu_day.py"), "--quick", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def go_on() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*day, "--out", str(tmp_path)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=550,
            check=False,
        )

    first = go_on()
    assert first.returncode == 0, first.stdout
    done = json.loads((tmp_path / "day.json").read_text())
    parts = {"tests", "bare", "precompute tresnet_l", "train resnet50", "trace", "precision"}
    assert {*done} == parts
    assert all(each["ok"] for each in done.values())
    assert "1 passed" in done["tests"]["log"]
    assert done["trace"]["figures"]["step"]["wall_ms"] > 0
    assert done["precision"]["figures"]["angle_deg"]["precision"]["p99"] > 0
    assert {path.name for path in tmp_path.glob("*.gz")} == {
        "trace-pass.json.gz",
        "trace-step.json.gz",
    }
    assert "## precompute tresnet_l" in (tmp_path / "day.md").read_text()
    done["bare"]["ok"] = False
    (tmp_path / "day.json").write_text(json.dumps(done))
    again = go_on()
    assert again.returncode == 0, again.stdout
    begun = [line for line in again.stdout.splitlines() if line.endswith("…")]
    assert begun == ["bare …"]
