"""Operating a precompute: shares, interruptions, bad input, full disks, what it says and logs."""

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import started
from same_store import arrays, assert_same_arrays, assert_same_store

from distill.data.source import open_source
from distill.events import journal_file, without_secrets
from distill.store.logit_store import LogitStore

Command = Callable[..., list[str]]


def committed(store: Path) -> int:
    return len(list((store / "commits").glob("0*/zarr.json")))


# -- several processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_write_disjoint_blocks_of_one_store(
    store: Path, precompute_command: Command, tmp_path: Path
) -> None:
    """Three at once, told who they are in three ways; whoever is last finishes the store."""
    path = tmp_path / "shared"
    words = precompute_command(path, "--views", 2)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RANK", "WORLD"))}
    running = [
        started([*words, "--shard-index", "0", "--num-shards", "3"], env=plain),
        started(words, env={**plain, "RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}),
        started(words, env={**plain, "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"}),
    ]
    ends = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ends
    assert "shard 0 of 3, by options" in ends[0][1]
    assert "shard 1 of 3, by torchrun" in ends[1][1]
    assert "shard 2 of 3, by Slurm" in ends[2][1]
    assert any("next: distill pretrain" in out for out, _ in ends)
    assert_same_store(path, store)


def test_worker_leaves_the_blocks_of_others(
    distill: Callable[..., Any], precompute_command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    ran = distill(*precompute_command(path, "--shard-index", 1, "--num-shards", 4))
    assert ran.code == 0
    assert LogitStore.open(path).pending_blocks() == [0, 2, 3, 4]
    assert "4 blocks are left, for other workers" in ran.out
    assert "INCOMPLETE" in ran.out


# -- interruptions --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "number"), [(0, signal.SIGTERM), (2, signal.SIGINT)])
def test_interrupted_it_finishes_the_block_in_hand(
    number: signal.Signals, workers: int, precompute_command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    words = precompute_command(path, "--batch-size", 2, "--workers", workers, "--views", 2)
    words += ["--block-rows", "8"]
    running = started(words, start_new_session=True)
    while running.poll() is None and committed(path) < 1:
        time.sleep(0.002)
    os.killpg(running.pid, number)  # as a terminal and Slurm do: to all processes
    _, err = running.communicate(timeout=60)
    assert running.returncode == 75, err
    assert f"{number.name}: finishing the current block" in err
    assert err.splitlines()[-1].startswith(
        f"distill: stopped by {number.name}; finished work is kept"
    )
    before = LogitStore.open(path).records()
    assert 1 <= len(before) < 12
    again = started(words)
    assert again.communicate(timeout=60)
    assert again.returncode == 0
    after = LogitStore.open(path).records()
    assert len(after) == 12
    assert all(after[block] == record for block, record in before.items())


def test_interrupted_twice_it_stops_at_once(precompute_command: Command, tmp_path: Path) -> None:
    path = tmp_path / "store"
    running = started(precompute_command(path, "--batch-size", 1, "--block-rows", 96))
    while running.poll() is None and not (path / "zarr.json").exists():
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 75, err
    assert "Traceback" not in err
    assert LogitStore.open(path).pending_blocks() == [0]


@pytest.mark.slow
def test_killed_decoding_process_is_one_line_and_the_run_goes_on_later(
    precompute_command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "again"
    words = precompute_command(path, "--batch-size", 2, "--views", 2, "--workers", 1)
    running = started(words)
    while running.poll() is None and committed(path) < 1:
        time.sleep(0.002)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    _, err = running.communicate(timeout=60)
    assert children
    assert running.returncode == 2, err
    # torch says so from a signal handler, and may once more while the process ends.
    ours = [line for line in err.splitlines() if line.startswith("distill: ")]
    assert len(ours) == 1
    assert "a process that decodes images died" in ours[0]
    whole = precompute_command(tmp_path / "whole", "--batch-size", 2, "--views", 2)
    for again in (started(words), started(whole)):
        assert again.communicate(timeout=60)
    assert_same_arrays(path, tmp_path / "whole")


# -- looking before leaping -----------------------------------------------------------------------


def test_dry_run_says_what_would_be_done_and_writes_nothing(
    distill: Callable[..., Any],
    precompute_command: Command,
    store: Path,
    tmp_path: Path,
    tree_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    new = distill(*precompute_command(tmp_path / "new", "--views", 3, "--dry-run"))
    assert new.code == 0
    assert f"store: {tmp_path / 'new'} (new)" in new.out
    assert "teacher: test_vit, 32×32 pixels, semantic head" in new.out
    assert "data: 96 images, 96 with a label" in new.out
    assert "to compute: 6 of 6 blocks, 96 images in 3 views; nothing was written" in new.out
    assert not (tmp_path / "new").exists()
    LogitStore.open(store).revoke([1, 4])
    before = tree_bytes(store)
    more = ("--views", 2, "--shard-index", 1, "--num-shards", 3, "--dry-run", "--json")
    would = json.loads(distill(*precompute_command(store, *more)).out)
    assert (would["new"], would["blocks_done"], would["blocks"]) == (False, 4, 2)
    assert would["images"] == 32
    assert tree_bytes(store) == before


def test_dry_run_finds_another_teachers_store(
    fails: Callable[..., str], precompute_command: Command, store: Path
) -> None:
    assert ": teacher " in fails(
        *precompute_command(store, "--views", 2, "--dry-run", "--input-size", 48)
    )


# -- what it says ---------------------------------------------------------------------------------


def test_summary_tells_the_time_by_stage_and_the_next_command(
    distill: Callable[..., Any], precompute_command: Command, figures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    words = precompute_command(path, "--views", 8, "--workers", 1)  # enough to take a while
    ran = distill(*words)
    assert "computed now: 96 images in " in ran.out
    assert "images/s, batches of 16" in ran.out
    assert "of which the device took: forward " in ran.out
    assert "bottleneck: " in ran.out
    assert ran.out.splitlines()[-1] == (
        f"next: distill pretrain --student resnet18 --data {figures} --targets {path} --out RUN"
    )
    report = json.loads(distill(*precompute_command(tmp_path / "b", "--json")).out)
    stages = report["stages"]
    assert stages["forward"] + stages["encode"] <= stages["wall"]
    assert min(stages["read"], stages["render"], stages["write"]) > 0
    assert report["seconds"] == pytest.approx(96 / report["images_per_s"])


def test_log_is_json_lines_of_what_happened(
    distill: Callable[..., Any], precompute_command: Command, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "run.jsonl"
    words = precompute_command(tmp_path / "store", "--log", log)
    assert distill(*words).code == 0
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "run started"
    assert names.count("block written") == 6
    assert names[-2:] == ["store finished", "summary"]
    assert events[0]["teacher"]["name"] == "test_vit"
    assert all(event["time"].endswith("Z") for event in events)
    assert distill(*words).code == 0  # appended to
    assert len(log.read_text(encoding="utf-8").splitlines()) > len(events)


def test_log_ends_with_the_error(
    fails: Callable[..., str], precompute_command: Command, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    fails(*precompute_command(tmp_path / "s", "--log", log, "--label-set", "imagenet21k-p-fall11"))
    last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    assert last["event"] == "stopped"
    assert last["error"] == "TeacherError"


def test_log_is_free_of_secrets(tmp_path: Path) -> None:
    urls = {
        "s3://AKIAKEY:hunter2@bucket/store": "s3://***@bucket/store",
        "https://host/x?X-Amz-Signature=abc123&b=c": "https://host/x?***&***",
        "s3://bucket/store": "s3://bucket/store",
        "5 images/s at 10:30": "5 images/s at 10:30",
    }
    assert {url: without_secrets(url) for url in urls} == urls
    said: list[str] = []
    with journal_file(tmp_path / "log", said.append) as journal:
        for url in urls:
            journal.note(f"opening {url}", "opening", store=url)
    text = (tmp_path / "log").read_text(encoding="utf-8") + "".join(said)
    for secret in ("hunter2", "AKIAKEY", "abc123"):
        assert secret not in text


# -- bad input ------------------------------------------------------------------------------------


def picture(form: str, image: Image.Image, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **more)
    return buffer.getvalue()


def zoo(figures: Path, folder: Path) -> dict[str, str]:
    """The figures and some animals of every kind; the reason's beginning of each bad one."""
    colour = Image.new("RGB", (40, 30), (200, 30, 30))
    turned = Image.Exif()
    turned[0x0112] = 6
    sixteen = Image.fromarray(np.full((30, 40), 0x7F00, np.uint16))
    whole = picture("JPEG", colour.resize((400, 300)))
    bomb = picture("PNG", Image.new("1", (20_000, 20_000)))
    frames = [colour, colour.rotate(90)]
    animals = {
        "truncated.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "text.jpg": b"see the other folder",
        "bomb.png": bomb,
        "cmyk.jpg": picture("JPEG", colour.convert("CMYK")),
        "sixteen.png": picture("PNG", sixteen),
        "palette.png": picture("PNG", colour.convert("P")),
        "grey.jpg": picture("JPEG", colour.convert("L")),
        "alpha.png": picture("PNG", colour.convert("RGBA")),
        "turned.jpg": picture("JPEG", colour, exif=turned),
        "animated.webp": picture("WEBP", frames[0], save_all=True, append_images=frames[1:]),
    }
    folder.mkdir()
    (folder / "train-000000.tar").write_bytes((figures / "train-000000.tar").read_bytes())
    with tarfile.open(folder / "train-zoo.tar", "w") as tar:
        for name, content in animals.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return {
        "truncated": "undecodable image",
        "empty": "not an image",
        "text": "not an image",
        "bomb": "too many pixels",
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_told_by_kind_and_odd_ones_are_used(
    workers: int,
    distill: Callable[..., Any],
    precompute_command: Command,
    figures: Path,
    tmp_path: Path,
) -> None:
    bad = zoo(figures, tmp_path / "data")
    words = precompute_command(
        tmp_path / "store", "--max-bad-fraction", 0.1, "--workers", workers, data=tmp_path / "data"
    )
    ran = distill(*words, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["bad"] == {"undecodable image": 1, "not an image": 2, "too many pixels": 1}
    records = LogitStore.open(tmp_path / "store").records().values()
    reasons = {each["key"]: each["reason"] for record in records for each in record["bad"]}
    assert {key: reason.partition(":")[0] for key, reason in reasons.items()} == bad
    keys = [sample.key for sample in open_source(tmp_path / "data").samples]
    valid = arrays(tmp_path / "store")["confidence"][:, 0, 0] > 0
    assert {keys[row] for row in np.flatnonzero(~valid)} == set(bad)
    assert "4 bad" in ran.err
    assert "bad images: 2: not an image" in distill(*words).out


def test_full_disk_is_one_line_and_the_run_goes_on_later(
    fails: Callable[..., str],
    distill: Callable[..., Any],
    precompute_command: Command,
    tmp_path: Path,
    store: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=640k", "tmpfs", str(disk)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        words = precompute_command(disk / "store", "--views", 2)
        (disk / "filler").write_bytes(bytes(520 * 1024))
        message = fails(*words)
        assert "space" in message
        (disk / "filler").unlink()
        assert distill(*words).code == 0
        assert_same_arrays(disk / "store", store)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_bad_image_whose_name_is_no_utf8_is_recorded(
    distill: Callable[..., Any], precompute_command: Command, figures: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train-000000.tar").write_bytes((figures / "train-000000.tar").read_bytes())
    with tarfile.open(data / "train-odd.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("caf\udce9.jpg"), io.BytesIO())
    words = precompute_command(tmp_path / "store", "--max-bad-fraction", 0.1, data=data)
    words += ["--log", str(tmp_path / "log")]
    assert distill(*words).code == 0
    records = LogitStore.open(tmp_path / "store").records().values()
    assert [bad["key"] for record in records for bad in record["bad"]] == ["caf\\udce9"]
    assert distill("store", "verify", tmp_path / "store").code == 0


def test_verify_asks_a_bfloat16_teacher_again_in_other_batches(
    distill: Callable[..., Any], precompute_command: Command, tmp_path: Path
) -> None:
    words = precompute_command(tmp_path / "store", "--precision", "bfloat16", "--batch-size", 16)
    assert distill(*words).code == 0
    at, dropped = words.index("--store"), words.index("--block-rows")
    options = [*words[1:at], *words[at + 2 : dropped], "--precision", "bfloat16"]
    ran = distill("store", "verify", tmp_path / "store", *options)
    assert ran.code == 0, (ran.out, ran.err)
    assert "0 differ by more than rounding" in ran.out
