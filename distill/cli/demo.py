"""`distill demo`: the whole path on built-in figures, by the very commands a user types."""

import json
import shlex
import sys
import time
from contextlib import nullcontext, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from distill.cli.options import common
from distill.cli.options.command import PATH, command, option

# timm's smallest ResNet (0.4 M parameters) is teacher and student: a few minutes on two cores. What
# the teacher has and the students lack is time.
MODEL = "test_resnet"
TEACHER_EPOCHS = 12
STUDENT_EPOCHS = 5
RUNS = ("without-kd", "with-kd", "teacher")


@command(examples=["--out demo-out"])
@option("--out", type=PATH, default=Path("demo-out"), help="Folder for all files of the demo.")
@common.as_json
def demo(out: Path, as_json: bool) -> None:
    """Render figures, train a teacher, precompute, pretrain with and without KD, inspect.

    Downloads nothing. Run the same command again to resume.
    """
    started = time.monotonic()
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        _walk(out)
    seconds = time.monotonic() - started
    if as_json:
        accuracy = {name: _validation(out / name) for name in RUNS}
        click.echo(json.dumps({"seconds": seconds, "validation": accuracy}, allow_nan=False))
    else:
        _report(out, seconds)


def _walk(out: Path) -> None:
    from distill.data.rendered.plane_figures import HIERARCHY, OUTLINES, FigureSet, write_figures
    from distill.errors import ConfigError

    data, store = out / "figures", out / "store.zarr"
    if out.exists() and not (out / "figures" / "labels.csv").exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: other files found, expected a new folder; choose another --out")
    figures = FigureSet()
    click.echo(
        f"# {figures.train} + {figures.val} images of {len(OUTLINES)} plane figures; "
        f"{figures.ancestor_share:.0%} of the training images are tagged with an ancestor"
    )
    if not (data / "labels.csv").exists():
        write_figures(data, figures)
    # Plain views: RandAugment's shears would turn squares into rhomboids.
    shared = ["--data", data, "--label-set", HIERARCHY, "--device", "cpu", "--workers", 2]
    train = ["pretrain", "--student", MODEL, "--init", "random", *shared]
    train += ["--batch-size", 64, "--lr", 0.003]
    train += ["--label-smoothing", 0.1, "--image-size", figures.pixels]
    plain = ["--view-policy", "plain"]
    _command(*train, *plain, "--epochs", TEACHER_EPOCHS, "--out", out / "teacher")
    weights = out / "teacher" / "student.safetensors"
    _command(
        "precompute", "--teacher", MODEL, "--weights", weights, *shared, *plain, "--store", store
    )
    _command(*train, *plain, "--epochs", STUDENT_EPOCHS, "--out", out / "without-kd")
    kd = ["--targets", store, "--cache", out / "cache"]
    _command(*train, *kd, "--epochs", STUDENT_EPOCHS, "--out", out / "with-kd")
    charts = ["--plot", out / "charts"] if find_spec("matplotlib") else []
    _command("inspect", store, *charts)


def _command(*arguments: object) -> None:
    """Run one of our own commands in this process, after showing what a user would type."""
    from distill.cli.main import distill

    words = [str(argument) for argument in arguments]
    click.echo(f"\n$ distill {shlex.join(words)}")
    distill.main(words, standalone_mode=False)


def _validation(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    validation: dict[str, Any] = record["history"][-1]["validation"]
    return validation


def _report(out: Path, seconds: float) -> None:
    click.echo("\nsemantic top-1 against the true classes (validation images, %)")
    click.echo(f"{'hierarchy':12s}" + "".join(f"{k:>8d}" for k in range(4)) + f"{'total':>8s}")
    for name in RUNS:
        validation = _validation(out / name)
        shares = [*validation["semantic_top1_per_hierarchy"], validation["semantic_top1"]]
        click.echo(f"{name:12s}" + "".join(f"{100 * share:8.1f}" for share in shares))
    click.echo(f"\n{seconds:.0f} s in all; the files it left:")
    for path, description in (
        ("figures", "images as WebDataset tars, labels.csv with true and tagged classes"),
        ("teacher/student.safetensors", "the teacher, loadable by timm"),
        ("store.zarr", "the logit store"),
        ("with-kd/student.safetensors", "the student that learned from the store"),
        ("without-kd/student.safetensors", "the student that did not"),
        ("charts", "the teacher's confidence per hierarchy, classes, agreement of views"),
    ):
        if (out / path).exists():
            click.echo(f"  {out / path}: {description}")
