"""Small real things that many tests share: figures, models, stores, the command line."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from distill.data.rendered.plane_figures import FigureSet, write_figures
from distill.hierarchy.semantic import SemanticHierarchy

ROOT = Path(__file__).resolve().parents[1]
PROGRESS = ("data: ", "teacher: ", "model: ", "init: ", "precompute:", "reading:")
SHARED = ROOT.parent / "shared" / "data"

# Several tests run at once: how long an example takes says nothing.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)  # several tests run at once


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's data beside the checkout; users have none."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data")
    return SHARED


@pytest.fixture(scope="session")
def wordnet(shared: Path) -> Path:
    """A folder for NLTK_DATA."""
    import nltk

    nltk.data.path.insert(0, str(shared / "nltk_data"))
    return shared / "nltk_data"


@pytest.fixture(scope="session")
def hierarchy() -> SemanticHierarchy:
    """The demo's: 29 classes, hierarchies of 8 9 8 3, one class dropped."""
    return SemanticHierarchy.bundled("plane-figures")


@pytest.fixture(scope="session")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 training and 32 validation images of 32 × 32 pixels as WebDataset tars."""
    folder = tmp_path_factory.mktemp("figures")
    write_figures(folder, FigureSet(train=96, val=32, pixels=32))
    return folder


@dataclass
class Ran:
    """What a command gave back."""

    code: int
    out: str
    err: str


@pytest.fixture
def distill(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Run a command in this process, through the same entry point as a user."""
    from distill.cli.main import run_command
    from distill.cli.signals import SIGNALS

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["distill", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            run_command()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture
def fails(distill: Callable[..., Ran]) -> Callable[..., str]:
    """Run a command that must fail as a user's error: one line, exit code 2.

    code: 75 of what may pass.
    """

    def call(*arguments: object, code: int = 2) -> str:
        ran = distill(*arguments)
        lines = [line for line in ran.err.splitlines() if not line.startswith(PROGRESS)]
        assert ran.code == code, (ran.code, ran.out, ran.err)
        assert len(lines) == 1, ran.err
        assert lines[0].startswith("distill: ")
        return lines[0]

    return call


@pytest.fixture
def tree_bytes() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, to see that nothing was harmed."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def environment(**more: str) -> dict[str, str]:
    """For subprocesses."""
    return {**os.environ, **more}
