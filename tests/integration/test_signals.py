"""How commands end that are stopped, doubled or orphaned, or that wait: exit codes, last words."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.store.logit_store import LogitStore

DISTILL = [sys.executable, "-m", "distill.cli.main"]
Command = Callable[..., list[str]]


@pytest.fixture
def train(figures: Path, tmp_path: Path) -> Command:
    def command(*more: object) -> list[str]:
        words = ["pretrain", "--student", "test_resnet", "--init", "random", "--image-size", 32]
        words += ["--label-set", "plane-figures", "--data", figures, "--out", tmp_path / "run"]
        words += ["--batch-size", 16, "--workers", 0, "--device", "cpu", *more]
        return [*DISTILL, *map(str, words)]

    return command


def started(command: list[str], **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def until(happens: Callable[[], object], process: "subprocess.Popen[str] | None" = None) -> None:
    ends = time.monotonic() + 90
    while not happens():
        assert time.monotonic() < ends
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.mark.slow
def test_srun_trains_one_student_with_all_its_tasks(train: Command, tmp_path: Path) -> None:
    step = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    step["MASTER_PORT"] = free_port()
    both = [
        started(train("--epochs", 2), **step, SLURM_PROCID=rank, SLURM_LOCALID=rank)
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert "12 steps at" in said[0][0]
    assert said[1][0] == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_waits_for_other_processes_hears_signals(
    number: signal.Signals, train: Command
) -> None:
    group = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    process = started(train(), **group)
    assert process.stderr
    line = process.stderr.readline()
    assert line == f"process 0 of 2 waits for the others at 127.0.0.1:{group['MASTER_PORT']}\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 75, (out, err)
    assert f"distill: stopped by {number.name}; finished work is kept" in err


def test_who_waits_for_a_server_hears_signals(train: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        process = started(train("--targets", f"http://127.0.0.1:{silent.getsockname()[1]}"))
        connection, _ = silent.accept()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
        connection.close()
    assert process.returncode == 75
    assert "stopped by SIGTERM" in err


def test_who_waits_in_native_code_ends_all_the_same(tmp_path: Path) -> None:
    """A collective whose peer hangs: Python's handlers do not run meanwhile."""
    script = (
        "import ctypes, distill.cli.signals as signals\n"
        "signals.DEAF_S = 0.5\n"
        "library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)\n"
        "with signals.finish_on_signal('pretrain') as stopping:\n"
        "    stopping()\n"
        "    library.pthread_mutex_lock(mutex)\n"
        "    print('waiting', flush=True)\n"
        "    library.pthread_mutex_lock(mutex)  # for ever: no signal interrupts it\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "stopped by SIGTERM while pretrain waited; finished work is kept" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_during_an_import_throws_nothing_into_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Native code that an import runs, as torch's, answers an exception with abort()."""
    (tmp_path / "native.py").write_text(
        f"import os\ntry:\n    os.kill(os.getpid(), {number:d})\n"
        "    sum(range(10**6))\nexcept BaseException:\n    os.abort()\n"
    )
    code = "from distill.cli.signals import end_on_signals as on; on(); import native"
    end = subprocess.run(
        [sys.executable, "-c", code, "precompute"],
        env={**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert end.returncode == 75, end
    assert end.stderr == (
        f"distill: stopped by {number.name}; finished work is kept, to go on run it again: "
        "distill precompute\n"
    )


def test_processes_of_a_killed_torchrun_end(train: Command, tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    words = [sys.executable, *command, "--no-python", *train("--epochs", 5000)]
    process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    record = tmp_path / "run" / "run.json"
    until(record.exists)
    process.kill()
    process.wait()
    orphans = f"--out {tmp_path / 'run'}"
    until(lambda: subprocess.run(["pgrep", "-f", "--", orphans], stdout=-3).returncode == 1)
    assert json.loads(record.read_text())["steps"] > 0


@pytest.mark.slow
def test_a_second_run_in_a_folder_says_who_is_there(train: Command, tmp_path: Path) -> None:
    first = started(train("--epochs", 5000))
    until((tmp_path / "run" / "run.json").exists, first)
    second = started(train("--epochs", 5000))
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"{tmp_path / 'run'}: process {first.pid} on {socket.gethostname()} (since 20" in err
    assert "writes here, expected one at a time; wait for it, stop it, or choose" in err
    first.kill()
    first.communicate()
    third = started(train("--epochs", 1))  # the lock died with its process
    _, err = third.communicate(timeout=60)
    assert "another process" not in err
    assert "1 epochs have 6, expected more to come; raise --epochs" in err


@pytest.mark.parametrize(
    ("around", "said"),
    [
        (["sh", "-c", 'ulimit -n 30; exec "$@"', "sh"], "30 files may be open: 0 of 4 processes"),
        (
            [
                *("unshare", "-m", "sh", "-c"),
                'mount -t tmpfs -o size=500k tmpfs /dev/shm && exec "$@"',
                "sh",
            ],
            "/dev/shm has 0 MiB free and a batch takes 0.2 MiB: 0 of 4 processes decode",
        ),
    ],
)
@pytest.mark.slow
def test_small_machines_decode_in_fewer_processes(
    around: list[str], said: str, train: Command
) -> None:
    if around[0] == "unshare" and subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    process = started([*around, *train("--workers", 4, "--epochs", 1, "--image-size", 64)])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert said in err


def test_two_of_the_same_precompute_share_its_blocks(
    precompute_command: Command, tmp_path: Path
) -> None:
    words = precompute_command(tmp_path / "store", "--block-rows", 4, "--views", 4)
    words += ["--batch-size", "4", "--json"]
    both = [started([*DISTILL, *words]) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    images = [json.loads(out)["images"] for out, _ in said]
    assert 96 <= sum(images) < 96 + 48, images
    assert json.loads(said[0][0])["store"]["rows"] == 96


def test_an_incomplete_store_is_no_success_and_says_what_is_missing(
    precompute_command: Command,
    distill: Callable[..., object],
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    assert distill(*precompute_command(store, "--shard-index", 0, "--num-shards", 2)).code == 0  # type: ignore[attr-defined]
    for command in ("info", "verify"):
        ran = distill("store", command, store)
        assert ran.code == 75  # type: ignore[attr-defined]
        assert "3 blocks missing: 1, 3, 5 (shard 1 of 2, none of it written yet)" in ran.out  # type: ignore[attr-defined]
    assert distill(*precompute_command(store, "--shard-index", 1, "--num-shards", 2)).code == 0  # type: ignore[attr-defined]
    assert distill("store", "info", store).code == 0  # type: ignore[attr-defined]
    assert distill("store", "verify", store).code == 0  # type: ignore[attr-defined]


# -- any long command, at any moment ---------------------------------------------------------------

FINISHED = ("student.safetensors", "student.json", "hierarchy.json")


def release(folder: Path) -> Path:
    """A raw release of two classes."""
    for wnid in ("n00000001", "n00000002"):
        (folder / wnid).mkdir(parents=True)
        for i in range(160):
            pixels = np.random.default_rng([i, int(wnid[1:])]).integers(0, 256, (64, 64, 3))
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / wnid / f"{wnid}_{i}.JPEG")
    return folder


def content_of(command: str, out: Path) -> object:
    """What the command made, without times."""
    if command == "precompute":
        return LogitStore.open(out).content_digests()
    if command == "prepare":
        return {p.name: p.read_bytes() for p in sorted(out.glob("*.tar"))}
    return {name: (out / name).read_bytes() for name in FINISHED}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["precompute", "prepare", "pretrain", "finetune"])
def test_stopped_at_random_moments_it_comes_to_the_same_end(
    command: str,
    train: Command,
    precompute_command: Command,
    figures: Path,
    tmp_path: Path,
) -> None:
    def words(out: Path) -> list[str]:
        if command == "precompute":
            return [*DISTILL, *precompute_command(out, "--block-rows", 4, "--batch-size", 4)]
        if command == "prepare":
            raw = tmp_path / "raw" if (tmp_path / "raw").exists() else release(tmp_path / "raw")
            more = ["--min-images", 20, "--val-images", 5, "--size", 32, "--workers", 1]
            more += ["--format", "webdataset", "--shard-images", 10]
            return [*DISTILL, "prepare", *map(str, (raw, "--out", out, *more))]
        if command == "pretrain":
            return [*train("--epochs", 12, "--checkpoint-every", 3), "--out", str(out)]
        more = [*("--student", "test_resnet"), "--init", "random", "--image-size", 32]
        more += ["--data", figures / "train-000000.tar", "--out", out, "--epochs", 12]
        more += ["--batch-size", 16, "--workers", 0, "--device", "cpu", "--checkpoint-every", 3]
        return [*DISTILL, "finetune", *map(str, more)]

    began = time.monotonic()
    undisturbed = started(words(tmp_path / "undisturbed"))
    said = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, said
    seconds = time.monotonic() - began
    expected = content_of(command, tmp_path / "undisturbed")
    random = np.random.default_rng(17)
    out, ends = tmp_path / "out", []
    kinds = (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGINT)
    for i in range(40):
        process = started(words(out))
        try:
            # Early enough to meet the work, whatever time the imports take.
            said = process.communicate(timeout=seconds * random.uniform(0.4, 1.0) if i < 8 else 300)
        except subprocess.TimeoutExpired:
            process.send_signal(kinds[i % 4])
            said = process.communicate(timeout=60)
        ends.append(process.returncode)
        assert "Traceback" not in said[1], said[1]
        assert process.returncode in (0, 75, -signal.SIGKILL), said
        if process.returncode == 75:
            assert said[1].splitlines()[-1].startswith("distill: stopped by SIG"), said[1]
        if process.returncode == 0:
            break
    assert ends[-1] == 0
    assert content_of(command, out) == expected, ends


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_server_that_is_stopped_has_done_its_work(
    number: signal.Signals, precompute_command: Command, figures: Path, tmp_path: Path
) -> None:
    words = precompute_command(tmp_path / "store")
    assert subprocess.run([*DISTILL, *words], capture_output=True, timeout=120).returncode == 0
    teacher = words[words.index("--teacher") : words.index("--data")]
    serve = started([*DISTILL, "serve", *teacher, "--device", "cpu", "--port", "0"])
    inspect = ["inspect", str(tmp_path / "store"), "--data", str(figures), "--serve"]
    pages = started([*DISTILL, *inspect, "--port", "0"])
    for process, sign in ((serve, "listening"), (pages, "pages: ")):
        assert process.stderr
        while sign not in (line := process.stderr.readline()):
            assert line
        process.send_signal(number)
        said = process.communicate(timeout=60)
        assert process.returncode == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "inspect"])
def test_stopped_at_random_moments_the_next_one_answers(
    command: str, precompute_command: Command, figures: Path, tmp_path: Path
) -> None:
    """While they load, warm up and take their first look, too: its file is whole or not there."""
    words = precompute_command(tmp_path / "store", "--views", 4, "--block-rows", 4)
    assert subprocess.run([*DISTILL, *words], capture_output=True, timeout=120).returncode == 0
    teacher = words[words.index("--teacher") : words.index("--data")]
    samples = ["--store", str(tmp_path / "store"), "--data", str(figures)]
    of_command = {
        "serve": [*DISTILL, "serve", *teacher, *samples, "--device", "cpu", "--port", "0"],
        "inspect": [*DISTILL, "inspect", str(tmp_path / "store"), "--data", str(figures)],
    }[command]
    inspect = [*DISTILL, "inspect", str(tmp_path / "store"), "--json"]
    expected = subprocess.run(
        [*inspect, "--cache", str(tmp_path / "other")], capture_output=True, timeout=120
    ).stdout
    random, ends = np.random.default_rng(18), []
    for i in range(12):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        process = started([*of_command, "--cache", str(tmp_path / "cache")])
        number = (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGINT)[i % 4]
        try:
            said = process.communicate(timeout=random.uniform(0.3, 6.0))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            said = process.communicate(timeout=60)
        ends.append(process.returncode)
        assert "Traceback" not in said[1], said[1]
        assert process.returncode in (0, 75, -signal.SIGKILL), said
        after = subprocess.run(
            [*inspect, "--cache", str(tmp_path / "cache")], capture_output=True, timeout=120
        )
        assert after.stdout == expected, (i, number, after.stderr)
    assert {75, -signal.SIGKILL} <= {*ends}, ends


@pytest.mark.parametrize(
    "reader",
    [
        "a terminal that is gone",
        pytest.param("tee that is gone", marks=pytest.mark.slow),
        pytest.param("nothing", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_step_though_nobody_reads_what_is_said(
    reader: str, train: Command, tmp_path: Path
) -> None:
    """Ctrl-C ends tee as well, a closed terminal is gone before its SIGHUP is heard."""
    words = train("--epochs", 5000, "--batch-size", 2)
    ours: int | None = None
    if reader == "nothing":
        words = ["sh", "-c", 'exec "$@" 2>&-', "sh", *words]
        output = theirs = subprocess.DEVNULL
    elif reader.startswith("tee"):
        ours, theirs = os.pipe()
        output = theirs
    else:
        ours, theirs = os.openpty()
        output = theirs
    process = subprocess.Popen(
        words, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if ours is not None:
        os.close(theirs)
        threading.Thread(target=_swallow, args=(ours,), daemon=True).start()
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    until(checkpoint.exists)
    time.sleep(1.0)
    if ours is not None:
        os.close(ours)
    process.send_signal(signal.SIGINT if reader.startswith("tee") else signal.SIGTERM)
    assert process.wait(60) == 75
    steps = torch.load(checkpoint, weights_only=True)["steps"]
    assert steps == json.loads((tmp_path / "run" / "run.json").read_text())["steps"]


def _swallow(number: int) -> None:
    with suppress(OSError):
        while os.read(number, 65536):
            pass


@pytest.mark.slow
def test_a_full_standard_output_is_said(train: Command) -> None:
    process = subprocess.run(
        ["sh", "-c", 'exec "$@" > /dev/full', "sh", *train("--epochs", 1)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == (
        "distill: standard output: No space left on device, expected to be written"
    )


@pytest.mark.slow
def test_a_file_that_cannot_grow_is_one_line(train: Command, tmp_path: Path) -> None:
    process = subprocess.run(
        ["sh", "-c", 'ulimit -f 400; exec "$@"', "sh", *train("--epochs", 1)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    assert f"distill: {tmp_path / 'run'}" in process.stderr.splitlines()[-1]
    assert "File too large; fix this and run the same command again" in process.stderr


def test_a_disk_that_never_answers_ends_the_run(
    precompute_command: Command, tmp_path: Path
) -> None:
    """A block that is being written for ever: said, given up, and the process ends."""
    script = (
        "import sys, threading\n"
        "import distill.cli.main as main\n"
        "from distill.store.logit_store import LogitStore\n"
        "from distill.teacher_server.precompute import block\n"
        "block.SAY_EVERY_S, block.LONGEST_WAIT_S, main.LONGEST_END_S = 1, 3, 1.0\n"
        "LogitStore.write_block = lambda *a: threading.Event().wait()\n"
        "main.run()\n"
    )
    words = precompute_command(tmp_path / "store", "--block-rows", 4)
    process = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 2, process.stderr
    assert f"waiting for {tmp_path / 'store'} for 1 s: a block is being written" in process.stderr
    assert process.stderr.splitlines()[-1] == (
        f"distill: {tmp_path / 'store'}: a block is being written for 3 s, expected a disk or a "
        "network that answers; finished blocks are kept: fix it, then run the same command again"
    )


@pytest.mark.slow
def test_a_server_that_goes_away_costs_no_step(
    train: Command, precompute_command: Command, tmp_path: Path
) -> None:
    words = precompute_command(tmp_path / "store")
    teacher = words[words.index("--teacher") : words.index("--data")]
    serve = started([*DISTILL, "serve", *teacher, "--device", "cpu", "--port", "0"])
    assert serve.stderr
    while "listening" not in (line := serve.stderr.readline()):
        assert line
    port = json.loads(line)["port"] if line.startswith("{") else line.rpartition(":")[2].strip()
    targets = ("--targets", f"http://127.0.0.1:{port}", "--batch-size", 2, "--epochs", 5000)
    student = started(train(*targets))
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    until(checkpoint.exists, student)
    time.sleep(1)
    serve.kill()
    serve.communicate()
    assert student.stderr
    while "waiting for http://" not in (line := student.stderr.readline()):
        assert line
    student.send_signal(signal.SIGTERM)
    _, err = student.communicate(timeout=30)
    assert student.returncode == 75, err
    steps = torch.load(checkpoint, weights_only=True)["steps"]
    assert steps % 48, "saved in the middle of an epoch"
