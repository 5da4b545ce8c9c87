"""The page "Your own loop" and examples/, as they stand, with a store of the figures."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OF_THE_DEMO, BRIEF = '"test_resnet", 5, 64', '"test_resnet", 2, 16'
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


# Who tells of the epoch differs from loop to loop; the batches show whether anybody did.
NOTING = """
import distill.api.criterion as criterion
forward = criterion.Criterion.forward
def noting(self, logits, batch):
    print("views", sorted({*batch["view"].tolist()}), flush=True)
    return forward(self, logits, batch)
criterion.Criterion.forward = noting
"""


def run(script: Path, *words: object, where: Path, **environment: str) -> str:
    command = [sys.executable, str(script), *map(str, words)]
    own = {"DISTILL_CACHE": str(where / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=where,
        env={**os.environ, **own, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def judged(out: Path, figures: Path, distill: Callable[..., Any]) -> float:
    ran = distill("evaluate", out, "--data", figures, "--device", "cpu", "--workers", 0, "--json")
    assert ran.code == 0, ran.err
    (values,) = json.loads(ran.out).values()
    return float(values["semantic_top1"])


def test_the_page_runs_beside_modules_of_our_packages_names(
    distill: Callable[..., Any], store: Path, figures: Path, tmp_path: Path
) -> None:
    """`store.py` and `trainers/` of a user's, in the working directory and on the path."""
    (script,) = re.findall(
        r"```python\n(import timm.*?)```", (ROOT / "docs/your-own-loop.md").read_text(), re.S
    )
    own = tmp_path / "own"
    (own / "trainers").mkdir(parents=True)
    (own / "teacher_server").mkdir()
    for name in ("store.py", "trainers/__init__.py", "teacher_server/__init__.py"):
        (own / name).write_text("raise ImportError('a module of the user')\n")
    (own / "STORE").symlink_to(store)
    (own / "DATA").symlink_to(figures)
    (own / "loop.py").write_text(script)
    assert sum(bool(line.strip()) for line in script.splitlines()) <= 30
    told = run(own / "loop.py", where=own, PYTHONPATH=str(own))
    assert "epoch 1: labels" in told
    assert judged(own / "OUT", figures, distill) >= 0
    command = [sys.executable, "-m", "distill.cli.main", "store", "info", "STORE"]
    done = subprocess.run(command, cwd=own, env={**os.environ, "PYTHONPATH": str(own)}, check=False)
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_a_student_that_we_can_judge(
    name: str, distill: Callable[..., Any], store: Path, figures: Path, tmp_path: Path
) -> None:
    text = (ROOT / "examples" / name).read_text().replace(OF_THE_DEMO, BRIEF)
    script = tmp_path / name
    script.write_text(NOTING + text)
    more = ("--batch-size", 16, "--epochs", 2) if "argparse" in text else ()
    told = run(script, store, figures, tmp_path / "out", *more, where=tmp_path)
    views = [line for line in told.splitlines() if line.startswith("views")]
    assert views == ["views [0]"] * (len(views) // 2) + ["views [1]"] * (len(views) // 2)
    assert len(views) > 2
    assert judged(tmp_path / "out", figures, distill) >= 0


@pytest.mark.slow
def test_ddp_and_a_live_server_from_a_loop(
    distill: Callable[..., Any],
    serving: Callable[..., Any],
    store: Path,
    figures: Path,
    tmp_path: Path,
) -> None:
    text = (ROOT / "examples/plain_pytorch.py").read_text()
    script = tmp_path / "loop.py"
    script.write_text(text.replace(OF_THE_DEMO, BRIEF))
    launcher = tmp_path / "launch.py"
    launcher.write_text("from torch.distributed.run import main\nmain()\n")
    words = ("--standalone", "--nproc-per-node", 2, script, store, figures, tmp_path / "ddp")
    run(launcher, *words, where=tmp_path)
    assert judged(tmp_path / "ddp", figures, distill) >= 0
    with serving(store) as (server, _):
        run(script, f"http://{server.address}", figures, tmp_path / "live", where=tmp_path)
    assert judged(tmp_path / "live", figures, distill) >= 0
