"""Everything that a machine with a GPU is needed for, in one command, part by part.

    python benchmarks/gpu_day.py [--out FOLDER] [--only PART …] [--device cuda] [--quick]
    python benchmarks/gpu_day.py --pack FOLDER [--have NAME …]

Tests that need a GPU; bare passes, precompute against them, serving, training of three students;
traces of a pass and a step; what bfloat16 costs. Each part takes at most eight minutes and has a
process of its own. day.json in the folder keeps what is done: the same command again goes on
with what is left. Ends with a report, day.md, and prints a table.

The machine needs Python 3.12 and torch with torchvision, and no network: --pack collects the tree,
wheels of what else is missing and a sample of photographs, 64 MiB together; --have names what the
machine has besides. There, `python3 FOLDER/tree/benchmarks/gpu_day.py` finds them.

--quick runs small things, on a CPU as well: three minutes on two cores.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Any

from commands import ratios_in

HERE = Path(__file__).resolve().parent
TREE = HERE.parent
SAMPLE = TREE.parent / "sample"  # where it is packed
PART_S, MOST_BYTES, SPARE_BYTES = 8 * 60, 64 * 2**20, 2**18
AT_HAND = "torch", "torchvision", "triton", "numpy", "pillow", "setuptools"  # as pip brings them
OF_NO_USE = ("hf-xet",)  # without a network
FOR_TESTS = ("pytest", "hypothesis", "beartype")
PLATFORMS = [f"manylinux_2_{glibc}_x86_64" for glibc in (28, 27, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]
STUDENTS = "resnet50", "mobilenetv3_large_100", "vit_small_patch16_224"


@dataclass(frozen=True)
class Part:
    """A command. words: of it, after the interpreter's; quick: with --quick, none for no part."""

    name: str
    words: tuple[str, ...]
    quick: tuple[str, ...] = ()


def parts_for(device: str, out: Path) -> list[Part]:
    """All of the day, the most telling first."""

    def script(name: str, *more: str) -> tuple[str, ...]:
        return str(HERE / f"{name}.py"), "--device", device, *more

    folder = str(TREE / "tests/integration/gpu")
    tests = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", folder)
    small = ("--quick", "--teacher", "resnet10t", "--batch-size", "8")
    looks = ("--policy", "plain", "augmented", "--workers", "8", "16")
    first, *others = STUDENTS
    student = ("--workers", "14", "--student")
    return [
        Part("tests", tests, (*tests, "-k", "stages")),
        Part("bare", script("bare_forward"), script("bare_forward", "--quick")),
        Part(
            "precompute tresnet_l",
            script("precompute", "--teacher", "tresnet_l", *looks),
            script("precompute", *small),
        ),
        Part(
            f"train {first}",
            script("train_step", *student, first),
            script("train_step", "--quick", "--workers", "0", "--threads", "1"),
        ),
        Part(
            "trace",
            script("traces", "--out", str(out)),
            script("traces", "--quick", "--out", str(out)),
        ),
        Part("precision", script("precision"), script("precision", "--quick")),
        Part("serving", script("serving")),
        *(Part(f"train {name}", script("train_step", *student, name)) for name in others),
        Part("train compiled", script("train_step", *student, first, "--compile")),
        Part(
            "precompute flat head",
            script("precompute", "--teacher", "convnext_base.fb_in22k", *looks),
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-day"))
    parser.add_argument("--only", nargs="+", help="parts, by the beginning of their names")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pack", type=Path, metavar="FOLDER")
    parser.add_argument("--have", nargs="+", default=[], help="packages that the machine has")
    options = parser.parse_args()
    if options.pack:
        pack(options.pack, {*AT_HAND, *OF_NO_USE, *map(_plain, options.have)})
        return
    options.out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, _paths(options.out)))}
    done, mode = _read(options.out), f"{options.device}{', quick' if options.quick else ''}"
    parts = parts_for(options.device, options.out.resolve())
    if options.only and not any(part.name.startswith(tuple(options.only)) for part in parts):
        sys.exit(f"no part {' '.join(options.only)}: {', '.join(part.name for part in parts)}")
    for part in parts:
        wanted = not options.only or part.name.startswith(tuple(options.only))
        wanted = wanted and bool(part.quick or not options.quick)
        before = done.get(part.name, {})
        if wanted and not (before.get("ok") and before.get("mode") == mode):
            print(f"{part.name} …", flush=True)
            done[part.name] = {"mode": mode, **run(part, environment, options.quick)}
            (options.out / "day.json").write_text(json.dumps(done, indent=1) + "\n")
            print(f"{part.name}: {_outcome(done[part.name])}", flush=True)
    report = "\n".join(_report(done))
    (options.out / "day.md").write_text(report)
    print(_table(done))
    if not all(each["ok"] for each in done.values()):
        sys.exit(1)


def run(part: Part, environment: Mapping[str, str], quick: bool) -> dict[str, Any]:
    """Log, figures, seconds, and whether it came to its end."""
    begun = time.monotonic()
    words = [*(part.quick if quick else part.words)]
    if SAMPLE.is_dir() and words[0].endswith(("precompute.py", "train_step.py")):
        words += ["--shared", str(SAMPLE)]
    running = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=TREE,
        env=environment,
        start_new_session=True,
    )
    try:
        log, _ = running.communicate(timeout=PART_S)
        code = running.returncode
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)  # and what it started, or that would hold the GPU
        log, code = running.communicate()[0], 124
    figures = _last_json(log) if code == 0 and part.name != "tests" else None
    return {
        "ok": code == 0,
        "code": code,
        "seconds": round(time.monotonic() - begun, 1),
        "log": log[-200_000:],
        "figures": figures,
    }


def _last_json(log: str) -> Any:
    """Of the last line that is a document; warnings may come after it."""
    for line in reversed(log.splitlines()):
        if line.startswith(("{", "[")):
            with suppress(ValueError):
                return json.loads(line)
    return None


def _outcome(result: Mapping[str, Any]) -> str:
    lines = result["log"].strip().splitlines()
    why = f" ({lines[-1][:160]})" if lines and not result["ok"] else ""
    state = "done" if result["ok"] else f"failed with {result['code']}{why}"
    return f"{state} after {result['seconds']:.0f} s"


def _table(done: Mapping[str, Any]) -> str:
    """A line a part, with the ratios that it found."""
    lines = ["| part | | figures |", "| --- | --- | --- |"]
    for name, result in done.items():
        ratios = ", ".join(f"{key} {value:.3f}" for key, value in ratios_in(result["figures"]))
        shown = ratios or (result["log"].strip().splitlines() or [""])[-1][:120]
        lines.append(f"| {name} | {_outcome(result)} | {shown} |")
    return "\n".join(lines)


def _report(done: Mapping[str, Any]) -> Iterator[str]:
    yield f"# A day with a GPU\n\nCommand: `python benchmarks/gpu_day.py`, {time.strftime('%F')}\n"
    yield _table(done) + "\n"
    for name, result in done.items():
        body = result["log"]
        yield f"## {name}\n\n{body if result['figures'] else f'```{chr(10)}{body}```'}\n"


def _read(out: Path) -> dict[str, Any]:
    path = out / "day.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


# -- what a bare machine lacks --------------------------------------------------------------------


def pack(folder: Path, have: set[str]) -> None:
    """tree, wheels and sample in `folder`.

    Ends the program where they are larger than 64 MiB.
    """
    if folder.exists():
        shutil.rmtree(folder)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=TREE, capture_output=True, check=True)
    for name in filter(None, tracked.stdout.decode().split("\0")):
        target = folder / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TREE / name, target, follow_symlinks=False)
    about = folder / f"tree/distill_kd-{version('distill-kd')}.dist-info/METADATA"
    about.parent.mkdir()  # the version that manifests and pages name
    about.write_text(distribution("distill-kd").read_text("METADATA") or "")
    wheels = folder / "wheels"
    for wanted in sorted(_needed(have)):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(wheels)]
        pip += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
        pip += [word for each in PLATFORMS for word in ("--platform", each)]
        subprocess.run([*pip, wanted], check=True)
    room = MOST_BYTES - sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    _pack_sample(folder, room - SPARE_BYTES)
    sizes = {path: path.lstat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    largest = sorted(sizes, key=lambda path: -sizes[path])[:5]
    shown = ", ".join(f"{path.name} {sizes[path] / 2**20:.1f}" for path in largest)
    print(f"{folder}: {total / 2**20:.1f} MiB; the largest: {shown}")
    if total > MOST_BYTES:
        sys.exit("expected 64 MiB at most: name with --have what the machine has")


def _pack_sample(folder: Path, room: int) -> None:
    """As many of ImageNet's sample as there is room for; without it photographs are rendered."""
    given = TREE.parent / "shared/data/imagenet-sample/sample.tar"
    if not given.exists():
        return
    target = folder / "sample/data/imagenet-sample/sample.tar"
    target.parent.mkdir(parents=True)
    with tarfile.open(given) as tar, tarfile.open(target, "w") as some:
        for member in tar:
            room -= 1024 + member.size
            if room < 0:
                break
            some.addfile(member, tar.extractfile(member))


def _needed(have: set[str]) -> set[str]:
    """name==version of what distill and its GPU tests need, as they are here."""
    found: dict[str, str] = {}
    waiting = ["distill-kd", *FOR_TESTS]
    while waiting:
        name = _plain(waiting.pop())
        if name in found or name in have or name.startswith(("nvidia-", "cuda-")):
            continue
        try:
            found[name] = distribution(name).version
        except PackageNotFoundError:  # for another system
            continue
        for line in requires(name) or ():
            if "extra ==" not in line:
                waiting.append(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0])
    del found["distill-kd"]
    return {f"{name}=={version}" for name, version in found.items()}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _paths(out: Path) -> Iterable[Path]:
    """Where modules are found: the tree, and packed wheels of what is not installed."""
    wheels = TREE.parent / "wheels"
    site = out.resolve() / f"site-{platform.python_version()}"
    if wheels.is_dir() and not site.is_dir():
        missing = [path for path in wheels.glob("*.whl") if not _is_installed(path)]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--target", str(site), *map(str, missing)], check=True)
    return [TREE, *([site] if site.is_dir() else [])]


def _is_installed(wheel: Path) -> bool:
    try:
        distribution(wheel.name.split("-")[0])
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
