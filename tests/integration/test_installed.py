"""What is released: source archive, wheel, and the image's steps in an empty environment."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy/container/Dockerfile"
NOT_SOURCE = shutil.ignore_patterns(".*", "runs", "build", "dist", "site", "*.egg-info", "*-out")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.{}(sys.argv[1]))"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout as git has it, or nearly: tools leave their caches in any folder."""
    folder = tmp_path_factory.mktemp("source") / "distill"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=NOT_SOURCE)
    (folder / "benchmarks/.mypy_cache").mkdir()
    (folder / "benchmarks/.mypy_cache/cache.json").touch()
    return folder


def built(what: str, source: Path, out: Path) -> Path:
    """An archive by the build backend of pyproject.toml; its warnings fail."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(f"build_{what}"), str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    said = (done.stdout + done.stderr).splitlines()
    assert not [line for line in said if "absent" in line or "deprecat" in line.lower()]
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a release is: from the source archive."""
    out = tmp_path_factory.mktemp("dist")
    with tarfile.open(built("sdist", source, out / "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(out / "unpacked", filter="data")
    expected = ("README.md", "CHANGELOG.md", "LICENSE", "NOTICE", "constraints.txt", "Makefile")
    folders = ("docs/method.md", "tests/conftest.py", "deploy/slurm/precompute.sbatch")
    assert {*expected, *folders, "benchmarks/load.py", "examples/timm_task.py"} <= names
    assert not [name for name in names if "/." in name]
    return built("wheel", next((out / "unpacked").iterdir()), out / "wheel")


def test_a_wheel_has_all_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {*archive.namelist()}
    information = {name for name in names if ".dist-info/" in name}
    assert {name.rpartition("/")[2] for name in information} >= {"LICENSE", "NOTICE"}
    package = names - information
    assert {name.partition("/")[0] for name in package} == {"distill"}
    there = {
        f"distill/{path.relative_to(top).as_posix()}"
        for top in (ROOT / "distill",)
        for folder in (top, *(link for link in top.iterdir() if link.is_symlink()))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package == there


def run(*words: object, code: int = 0, **more: object) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
        **more,  # type: ignore[call-overload]
    )
    said: str = done.stdout + done.stderr
    assert done.returncode == code, said
    return said


@pytest.mark.slow
def test_the_steps_of_the_image_in_an_empty_environment(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    """torch and distill as the Dockerfile installs them; before its extras, without any."""
    steps = re.findall(r"^RUN (pip install .*)$", DOCKERFILE.read_text(), re.MULTILINE)
    torch_alone, with_extras = steps
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment)
    path = {"PATH": f"{environment}/bin:/usr/bin:/bin", "OUT": str(tmp_path)}

    def step(command: str, **more: object) -> str:
        return run("sh", "-c", command, cwd=source, env=_environment(path), **more)

    step(torch_alone)
    step(f"pip install --constraint constraints.txt {wheel}")
    assert "pip install 'distill-kd[charts]'" in step("distill inspect x --plot y", code=2)
    assert "pip install 'distill-kd[s3]'" in step("distill data check --data s3://b/c", code=2)
    assert "epochs = 80" in step("distill settings --recipe imagenet21k-p")
    assert "charts" not in step("cd / && OMP_NUM_THREADS=1 distill demo --out $OUT/demo")
    step(with_extras)
    plot = "distill inspect $OUT/demo/store.zarr --plot $OUT/plots"
    assert "confidence.svg" in step(f"cd / && {plot}")
    _serve_until_healthy(source, _environment(path), tmp_path)


def _environment(more: dict[str, str]) -> dict[str, str]:
    """This one, which may say where packages come from, without what says which Python runs."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return {**kept, **more}


def _serve_until_healthy(source: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """The health check of the image, against the server that it starts."""
    check = re.search(r'CMD \["python", "-c", "(.*)"\]', DOCKERFILE.read_text())
    assert check
    words = ["serve", "--teacher", "test_vit", "--random-weights", "--device", "cpu"]
    server = subprocess.Popen(
        [f"{tmp_path}/environment/bin/distill", *words, "--port", "8000"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ends = time.monotonic() + 120
        while True:
            done = subprocess.run(
                ["python", "-c", check[1]], env=environment, capture_output=True, check=False
            )
            if done.returncode == 0:
                break
            assert server.poll() is None
            assert time.monotonic() < ends, done.stderr.decode()
            time.sleep(1)
    finally:
        server.terminate()
        assert server.wait(30) == 0
