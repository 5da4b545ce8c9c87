"""On a real local Ray cluster, with workers that are really killed."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import started
from same_store import assert_same_store

from distill.store.logit_store import LogitStore
from distill.teacher_server.precompute.ray_driver import cpus_a_worker

ray: Any = pytest.importorskip("ray")

Command = Callable[..., list[str]]

pytestmark = pytest.mark.slow


def events(log: Path, name: str) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["event"] == name]


def wait_for(condition: Callable[[], bool], running: "subprocess.Popen[str]") -> None:
    for _ in range(6000):
        if condition():
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    raise AssertionError("it takes too long")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A head node with room for three workers, for all tests here."""
    # "local": a cluster of its own, even while another test's cluster runs on this machine.
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    address = ray.get_runtime_context().gcs_address
    yield address
    ray.shutdown()


@pytest.fixture
def on_ray(precompute_command: Command, cluster: str, tmp_path: Path) -> Callable[..., Any]:
    """Start `distill precompute --engine ray` with three workers."""

    def start(*more: object) -> "subprocess.Popen[str]":
        words = precompute_command(
            tmp_path / "store", "--views", 2, "--engine", "ray", "--ray-workers", 3,
            "--log", tmp_path / "log", "--batch-size", 4, *more,
        )  # fmt: skip
        return started(words, env={**os.environ, "RAY_ADDRESS": cluster})

    return start


@pytest.fixture
def expected(distill: Callable[..., Any], precompute_command: Command, tmp_path: Path) -> Path:
    """The store that one process makes."""
    path = tmp_path / "expected"
    assert distill(*precompute_command(path, "--views", 2, "--batch-size", 4)).code == 0
    return path


def test_killed_worker_costs_its_blocks_and_others_take_them(
    on_ray: Callable[..., Any], expected: Path, tmp_path: Path
) -> None:
    running = on_ray("--json")
    log = tmp_path / "log"
    wait_for(lambda: bool(events(log, "block written")), running)
    victim = events(log, "block written")[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    report = json.loads(out)
    assert report["images"] == 96
    assert report["store"]["complete"]
    lost = events(log, "worker lost")
    assert len(lost) == 1
    assert "a worker was lost" in err
    assert victim not in {event["pid"] for event in events(log, "block written")[-1:]}
    assert len({event["pid"] for event in events(log, "run started")}) >= 2
    assert_same_store(tmp_path / "store", expected)


def test_lost_node_costs_its_blocks_and_the_other_goes_on(
    precompute_command: Command, expected: Path, tmp_path: Path
) -> None:
    """Two nodes of one worker each, of which one is taken away; there is no room for a third."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        lost = [nodes.add_node(num_cpus=1) for _ in range(2)][1]
        nodes.wait_for_nodes()
        log = tmp_path / "log"
        words = precompute_command(
            tmp_path / "store", "--views", 2, "--engine", "ray", "--ray-workers", 2,
            "--log", log, "--batch-size", 4, "--json",
        )  # fmt: skip
        running = started(words, env={**os.environ, "RAY_ADDRESS": nodes.address})
        wait_for(lambda: bool(events(log, "run started")), running)
        nodes.remove_node(lost, allow_graceful=False)
        out, err = running.communicate(timeout=180)
    finally:
        nodes.shutdown()
    assert running.returncode == 0, err
    assert json.loads(out)["images"] == 96
    assert_same_store(tmp_path / "store", expected)


def test_error_of_a_worker_is_one_line(
    on_ray: Callable[..., Any], expected: Path, tmp_path: Path
) -> None:
    running = on_ray("--label-set", "imagenet21k-p-fall11")
    _, err = running.communicate(timeout=120)
    assert running.returncode == 2
    lines = [line for line in err.splitlines() if not line.startswith("data: ")]
    assert len(lines) == 1, err
    line = lines[0]
    assert line.startswith("distill: ")
    assert "pass the --label-set it was trained on" in err
    assert not (tmp_path / "store").exists()


def test_interrupted_it_finishes_blocks_in_hand_and_goes_on_later(
    on_ray: Callable[..., Any], expected: Path, tmp_path: Path
) -> None:
    running = on_ray("--block-rows", 8)
    wait_for(lambda: bool(events(tmp_path / "log", "block written")), running)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 75, err
    assert "finishing the current block" in err
    assert "finished work is kept, to go on run it again" in err
    done = LogitStore.open(tmp_path / "store")
    assert 0 < len(done.pending_blocks()) < 12
    again = on_ray("--block-rows", 8)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert not LogitStore.open(tmp_path / "store").pending_blocks()


def test_workers_fit_on_the_nodes_there_are() -> None:
    assert cpus_a_worker([(8, 0)], 3, on_gpu=False) == 2
    assert cpus_a_worker([(32, 0), (8, 4)], 4, on_gpu=True) == 2
    assert cpus_a_worker([(8, 0), (16, 4), (16, 4)], 8, on_gpu=True) == 4
    assert cpus_a_worker([(4, 0), (60, 0)], 2, on_gpu=False) == 30
    assert cpus_a_worker([(1, 0)], 5, on_gpu=False) == 1


def test_cluster_that_is_not_there_is_one_line(precompute_command: Command, tmp_path: Path) -> None:
    words = precompute_command(tmp_path / "store", "--engine", "ray")
    ran = started(words, env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"})
    _, err = ran.communicate(timeout=120)
    assert ran.returncode == 2
    assert "127.0.0.1:1: does not answer" in err.splitlines()[-1]
