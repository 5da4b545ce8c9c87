"""A small teacher and a store that it filled, made once for all tests that only read them."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from live import Live, live
from small_models import write_test_vit

from distill.data.source import open_source
from distill.data.view_policy import ViewPolicy
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.creation import create_model
from distill.teacher_server.precompute.options import PrecomputeOptions
from distill.teacher_server.serve.samples import open_samples
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.teacher_server.teacher.teacher import Teacher
from distill.trainers.sources.server import ServerTargets
from distill.wire.client import TeacherClient


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory, hierarchy: SemanticHierarchy) -> Path:
    """A test_vit for the figures with fixed weights, sharpened so that answers differ."""
    torch.manual_seed(5)
    model = create_model("test_vit", hierarchy.num_classes)
    state = {name: tensor * 3 for name, tensor in model.state_dict().items()}
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    write_test_vit(path, state, hierarchy)
    return path


@pytest.fixture
def precompute_command(figures: Path, teacher_weights: Path) -> Callable[..., list[str]]:
    """`distill precompute` of the figures into a store, with more options."""

    def command(
        store: Path, *more: object, data: Path = figures, weights: Path = teacher_weights
    ) -> list[str]:
        fixed = ["precompute", "--teacher", "test_vit", "--weights", weights]
        fixed += ["--label-set", "plane-figures", "--data", data, "--store", store]
        fixed += ["--device", "cpu", "--workers", 0, "--block-rows", 16]
        return [str(word) for word in (*fixed, *more)]

    return command


@pytest.fixture
def store(tmp_path: Path, distill: Callable[..., object], precompute_command) -> Path:  # type: ignore[no-untyped-def]
    """The figures in two views."""
    path = tmp_path / "store"
    assert distill(*precompute_command(path, "--views", 2)).code == 0  # type: ignore[attr-defined]
    return path


@pytest.fixture
def train(figures: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """`distill pretrain` of a small student on the figures."""

    def command(out: str, *more: object, data: Path = figures) -> list[str]:
        fixed = [
            "pretrain",
            "--student",
            "test_vit",
            "--init",
            "random",
            "--data",
            data,
            "--out",
            tmp_path / out,
        ]
        fixed += ["--device", "cpu", "--workers", 0, "--batch-size", 16, "--epochs", 2]
        fixed += ["--lr", 0.003, "--cache", tmp_path / "cache"]
        return [str(word) for word in (*fixed, *more)]

    return command


@pytest.fixture(scope="session")
def teacher(teacher_weights: Path) -> Teacher:
    """The one that made the store."""
    choice = MemberChoice(name="test_vit", weights=teacher_weights)
    figures = SemanticHierarchy.bundled("plane-figures")
    return load_teacher([choice], figures, device=torch.device("cpu"))


@pytest.fixture
def serving(teacher: Teacher, figures: Path, tmp_path: Path) -> Callable[..., Any]:
    """A server and its client; data and store as asked for."""

    @contextmanager
    def start(
        store: Path | None = None, data: bool = True, views: int = 2, **more: Any
    ) -> Iterator[tuple[Live, ServerTargets]]:
        options = PrecomputeOptions(
            policy=ViewPolicy(),
            views=views,
            batch_size=8,
            compiled=False,
            block_rows=16,
            workers=0,
            max_bad_fraction=0.1,
        )

        def samples(journal: Any) -> Any:
            return open_samples(
                teacher,
                options,
                store=None if store is None else str(store),
                source=open_source(figures) if data else None,
                cache=tmp_path / "cache",
                journal=journal,
            )

        asks = samples if store or data else None
        with (
            live(teacher, samples=asks, max_batch_size=8, **more) as server,
            closing(
                ServerTargets(TeacherClient(f"http://{server.address}", deadline_s=20))
            ) as client,
        ):
            yield server, client

    return start


@pytest.fixture
def dying_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """While it is entered, training is interrupted once the checkpoint of that step is saved."""
    from distill.trainers.training.checkpoint import CheckpointWriter

    saved = CheckpointWriter.save

    @contextmanager
    def dying(step: int) -> Iterator[None]:
        def save_then_die(self: CheckpointWriter, **keywords: Any) -> None:
            saved(self, **keywords)
            if keywords["progress"].steps == step:
                self.wait()
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(CheckpointWriter, "save", save_then_die)
            yield

    return dying


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """An S3 server process; its URL."""
    from buckets import s3_server

    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, and the environment that leads to it; s3://… of it."""
    from buckets import make_bucket

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return make_bucket(server, f"bucket-{uuid.uuid4().hex}")
