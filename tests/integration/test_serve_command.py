"""`distill serve` as a process: signals, kills, keys, and a student that trains against it."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import urllib3
from live import HANG, INFER, body_of, images, wait_until
from processes import Process, started

from distill.data.source import open_source
from distill.trainers.sources.server import ServerTargets
from distill.wire.client import TeacherClient
from distill.wire.messages import message

Ran = Callable[..., Any]
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
NOT_YET = (urllib3.exceptions.HTTPError, ValueError)  # of a Prometheus that starts


@pytest.fixture
def serve(teacher_weights: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a server that is ready."""
    running: list[Process] = []

    def start(*more: object, ready: bool = True) -> Process:
        words = ["serve", "--teacher", "test_vit", "--weights", teacher_weights, "--device", "cpu"]
        words += ["--label-set", "plane-figures", "--port", 0, "--cache", tmp_path / "cache", *more]
        running.append(Process(started([str(word) for word in words])))
        running[-1].wait_for("ready" if ready else "listening")
        return running[-1]

    yield start
    for process in running:
        if process.running.poll() is None:
            process.end(signal.SIGKILL)


def ask(port: int, pixels: np.ndarray) -> int:
    body, headers = body_of(pixels, ("confidence",))
    url = f"http://127.0.0.1:{port}{INFER}"
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request("POST", url, body=body, headers=headers, timeout=40).status


@pytest.mark.parametrize("lanes", ["threads", "processes"])
def test_sigterm_with_requests_in_flight_loses_none(
    serve: Callable[..., Process], random: np.random.Generator, lanes: str
) -> None:
    server = serve("--lanes", lanes)
    port, pixels = server.port, images(64, random, (32, 32))
    results: list[int | str] = []

    def client() -> None:
        while True:
            try:
                results.append(ask(port, pixels))
            except urllib3.exceptions.NewConnectionError:
                return
            except urllib3.exceptions.HTTPError as error:
                results.append(type(error).__name__)
                return
            if results[-1] == 503:
                return

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(client) for _ in range(6)]
        time.sleep(1.0)
        code = server.end()
        for each in asking:
            each.result()
    assert code == 0
    assert not server.plain
    ended = next(event for event in server.events if event["event"] == "ended")
    assert not any(ended["in_flight"].values())
    assert any(server_event["event"] == "draining" for server_event in server.events)
    answered = [event["status"] for event in server.events if event["event"] == "request"]
    # Whatever the server took in, its client heard of.
    assert answered.count(200) == results.count(200) > 10
    assert set(results) <= {200, 503, "ProtocolError"}
    assert results.count("ProtocolError") <= 6
    assert set(answered) <= {200, 503}


def test_lanes_of_a_killed_server_end(
    serve: Callable[..., Process], random: np.random.Generator
) -> None:
    server = serve("--lanes", "processes")
    assert ask(server.port, images(3, random, (32, 32))) == 200
    lanes = [pid for pid in offspring(server.running.pid) if "multiprocessing" in command(pid)]
    assert len(lanes) >= 2  # the forkserver, and a lane at least
    server.end(signal.SIGKILL)
    wait_until(lambda: not any(command(pid) for pid in lanes))


def test_an_idle_lane_that_is_killed_is_noticed(serve: Callable[..., Process]) -> None:
    server = serve("--lanes", "processes")
    (lane, *_) = [lane for child in children(server.running.pid) for lane in children(child)]
    os.kill(lane, signal.SIGKILL)
    url = f"http://127.0.0.1:{server.port}/v2/health/ready"
    with urllib3.PoolManager(retries=False) as pool:
        wait_until(lambda: pool.request("GET", url).status == 503)
    server.wait_for("device failed")
    server.end(signal.SIGTERM)


def test_stopped_lanes_end_with_their_server(
    serve: Callable[..., Process], random: np.random.Generator
) -> None:
    server = serve("--lanes", "processes")
    assert ask(server.port, images(3, random, (32, 32))) == 200
    lanes = [lane for child in children(server.running.pid) for lane in children(child)]
    assert lanes
    for pid in lanes:
        os.kill(pid, signal.SIGSTOP)
    assert server.end(signal.SIGTERM) == 0
    wait_until(lambda: not any(command(pid) for pid in lanes))


def offspring(pid: int) -> list[int]:
    """Children and theirs."""
    return [each for child in children(pid) for each in (child, *offspring(child))]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> str:
    """Empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_killed_server_has_kept_what_it_answered(
    serve: Callable[..., Process], figures: Path, tmp_path: Path
) -> None:
    ids, store = open_source(figures).ids, tmp_path / "store"
    more = ("--store", store, "--data", figures, "--views", 2, "--block-rows", 16)
    answers = []
    for part in range(3):
        server = serve(*more)
        url = f"http://127.0.0.1:{server.port}"
        with closing(ServerTargets(TeacherClient(url, deadline_s=20))) as client:
            answers.append(client.fetch(ids[:80], 0).prob)
            time.sleep(0.2)
            metrics = urllib3.request("GET", f"{client.location}/metrics").data.decode()
            assert ('teacher_images_total{source="store"} 80.0' in metrics) == (part > 0)
            client.announce(ids, 1)
            time.sleep(0.02 * part)
            server.end(signal.SIGKILL)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[1], answers[2])


def test_sigterm_during_warm_up_ends_it(serve: Callable[..., Process]) -> None:
    server = serve("--max-batch-size", 256, ready=False)
    assert server.end() == 0
    assert not server.plain


@pytest.mark.parametrize("signals", [1, 2])
def test_batch_that_hangs_does_not_hold_up_the_end(
    signals: int, random: np.random.Generator
) -> None:
    """At the drain's deadline, or at a second signal, who waits is told so."""
    script = Path(__file__).parents[1] / "hanging_server.py"
    words = [sys.executable, str(script), "5" if signals == 1 else "60"]
    server = Process(
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    )
    server.wait_for("ready")
    pixels = images(1, random)
    pixels[0, 0, 0, 0] = HANG
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, server.port, pixels)
        time.sleep(0.5)
        began = time.monotonic()
        if signals == 2:
            server.running.send_signal(signal.SIGTERM)
            server.wait_for("draining")
        assert server.end() == 0
        assert time.monotonic() - began < 10
        assert asking.result() == 503
    assert not server.plain


@pytest.mark.slow
def test_student_of_a_server_is_the_student_of_the_store(
    serve: Callable[..., Process], distill: Ran, figures: Path, store: Path, tmp_path: Path
) -> None:
    """Bit for bit; although the server is killed half-way, and another one takes its place."""
    train = [
        "pretrain",
        "--student",
        "test_resnet",
        "--init",
        "random",
        "--data",
        figures,
        "--epochs",
        4,
    ]
    train += ["--batch-size", 16, "--lr", 0.01, "--device", "cpu", "--workers", 0]
    cache = ("--cache", tmp_path / "own")
    ran = distill(*train, "--targets", store, "--out", tmp_path / "of-store", *cache)
    assert ran.code == 0, ran.err
    server = serve("--store", store)
    url = f"http://127.0.0.1:{server.port}"
    words = [*train, "--targets", url, "--out", tmp_path / "of-server"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the tests themselves: the same bits
    student = started([str(word) for word in words], env=alone)
    server.wait_for("request")
    while sum(INFER in event.get("path", "") for event in server.events) < 8:
        time.sleep(0.01)
    port = server.port
    server.end(signal.SIGKILL)
    serve("--store", store, "--port", port)
    out, err = student.communicate(timeout=90)
    assert student.returncode == 0, err
    assert "views drawn again, pixel for pixel what the teacher saw" in out
    one, other = (tmp_path / run / "student.safetensors" for run in ("of-store", "of-server"))
    assert one.read_bytes() == other.read_bytes()


def test_keys_are_made_and_asked_for(
    serve: Callable[..., Process], distill: Ran, fails: Ran, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    made = distill("api-key", "ann", "--file", keys)
    assert made.code == 0
    key = made.out.strip()
    assert key not in keys.read_text()
    assert re.fullmatch(r"ann sha256:[0-9a-f]{64}\n", keys.read_text())
    assert oct(keys.stat().st_mode & 0o777) == "0o600"
    assert "expected a new name" in fails("api-key", "ann", "--file", keys)
    keys.write_text(keys.read_text().rstrip())  # an editor that ends no line
    assert distill("api-key", "bob", "--file", keys).code == 0
    assert len(keys.read_text().splitlines()) == 2
    assert "expected 1 to 64 letters" in fails("api-key", "a b", "--file", keys)
    server = serve("--host", "0.0.0.0", "--api-key-file", keys)
    warned = [event for event in server.events if event["event"] == "unencrypted"]
    assert [event["level"] for event in warned] == ["warning"]
    url = f"http://127.0.0.1:{server.port}"
    with closing(TeacherClient(url, api_key=key, deadline_s=10)) as client:
        assert client.hierarchy.num_classes == 29
    pixels = images(1, np.random.default_rng(0), (32, 32))
    assert ask(server.port, pixels) == 401
    assert server.end(signal.SIGINT) == 0
    assert not any(key in json.dumps(event) for event in server.events)


def test_revoked_keys_and_new_ones_count_at_once(
    serve: Callable[..., Process], distill: Ran, tmp_path: Path
) -> None:
    """SIGHUP; and a file that is wrong changes nothing."""
    keys = tmp_path / "keys"
    old = distill("api-key", "ann", "--file", keys).out.strip()
    server = serve("--api-key-file", keys)
    with urllib3.PoolManager(retries=False) as pool:

        def status(key: str) -> int:
            url, headers = f"http://127.0.0.1:{server.port}/v2", {"authorization": f"Bearer {key}"}
            return pool.request("GET", url, headers=headers).status

        assert status(old) == 200
        before = keys.read_text()
        keys.write_text("no keys\n")
        server.running.send_signal(signal.SIGHUP)
        server.wait_for("not reloaded")
        assert status(old) == 200
        keys.write_text("")
        new = distill("api-key", "bob", "--file", keys).out.strip()
        assert before not in keys.read_text()
        server.running.send_signal(signal.SIGHUP)
        server.wait_for("reloaded")
        assert (status(old), status(new)) == (401, 200)
    levels = {event["event"]: event["level"] for event in server.events}
    assert (levels["not reloaded"], levels["reloaded"]) == ("error", "info")
    assert server.end(signal.SIGTERM) == 0


def certified(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of this machine and its key, both new."""
    certificate, key = folder / "tls.pem", folder / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_new_certificate_counts_at_once(
    serve: Callable[..., Process], tmp_path: Path, distill: Ran, fails: Callable[..., str]
) -> None:
    certificate, key = certified(tmp_path, "first")
    made = distill("api-key", "ann", "--file", tmp_path / "keys").out.strip()
    server = serve(
        *("--tls-certificate", certificate, "--tls-key", key, "--grpc-port", 0),
        *("--api-key-file", tmp_path / "keys"),
    )
    grpc_port = next(event["port"] for event in server.events if event.get("protocol") == "gRPC")

    def shown(port: int) -> str:
        found = ssl.get_server_certificate(("127.0.0.1", port))
        command = ["openssl", "x509", "-noout", "-subject"]
        return subprocess.run(command, input=found, capture_output=True, text=True).stdout

    (tmp_path / "first.pem").write_bytes(certificate.read_bytes())

    def about(with_key: str) -> int:
        headers = {"authorization": f"Bearer {with_key}"}
        with urllib3.PoolManager(ca_certs=str(tmp_path / "first.pem")) as pool:
            url = f"https://127.0.0.1:{server.port}/v2"
            return pool.request("GET", url, headers=headers).status

    def spoken() -> Any:
        options = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"localhost:{grpc_port}", options) as channel:
            ask = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerMetadata",
                request_serializer=message("ServerMetadataRequest").SerializeToString,
                response_deserializer=message("ServerMetadataResponse").FromString,
            )
            metadata = (("authorization", f"Bearer {made}"),)
            return ask(message("ServerMetadataRequest")(), metadata=metadata, timeout=10).name

    assert "first" in shown(server.port)
    assert spoken() == "distill"
    (tmp_path / "other").mkdir()
    waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    assert "first" in shown(server.port)  # while others never begin their handshake
    for line in waiting:
        line.close()
    certified(tmp_path, "second")
    _, own = certified(tmp_path / "other", "other")
    right, keys = key.read_bytes(), tmp_path / "keys"
    encrypt = ["openssl", "rsa", "-aes256", "-passout", "pass:word", "-in", str(key)]
    subprocess.run(
        [*encrypt, "-out", str(tmp_path / "locked.key")], check=True, capture_output=True
    )
    locked = ("--tls-certificate", certificate, "--tls-key", tmp_path / "locked.key")
    assert "expected PEM files, without a password" in fails(
        "serve", *locked, "--teacher", "test_vit"
    )
    key.write_bytes(own.read_bytes())
    only, changed = keys.read_bytes(), distill("api-key", "bob", "--file", keys).out.strip()
    server.running.send_signal(signal.SIGHUP)
    server.wait_for("not reloaded")
    assert "first" in shown(server.port)
    assert "first" in shown(grpc_port)
    assert about(changed) == 401
    assert about(made) == 200
    key.write_bytes(right)
    keys.write_bytes(only)
    server.running.send_signal(signal.SIGHUP)
    server.wait_for("reloaded")
    assert "second" in shown(server.port)
    assert spoken() == "distill"
    assert "second" in shown(grpc_port)
    assert server.end(signal.SIGTERM) == 0


def test_behind_a_path_of_a_proxy(serve: Callable[..., Process]) -> None:
    """Whether the proxy takes it away or not."""
    server = serve("--root-path", "/teacher/")
    with urllib3.PoolManager(retries=False) as pool:
        for root in ("", "/teacher"):
            base = f"http://127.0.0.1:{server.port}{root}"
            assert pool.request("GET", f"{base}/v2/health/ready").status == 200
            page = pool.request("GET", f"{base}/", headers={"accept": "text/html"})
            links = re.findall(r'(?:href|src|action)="(/[^"]*)"', page.data.decode())
            assert links
            assert all(link.startswith("/teacher/") for link in links)
            styles = next(link for link in links if "style.css" in link)
            url = f"http://127.0.0.1:{server.port}{styles}"
            assert pool.request("GET", url).status == 200
            unknown = pool.request("GET", f"{base}/v2/no", headers={"accept": "text/html"})
            assert (unknown.status, unknown.headers["content-type"]) == (404, "application/json")
        bare = pool.request("GET", f"http://127.0.0.1:{server.port}/teacher")
        assert bare.status == 200
        twice = f"http://127.0.0.1:{server.port}/teacher/teacher/v2"
        assert pool.request("GET", twice).status == 404
        with closing(TeacherClient(f"http://127.0.0.1:{server.port}/teacher")) as client:
            pixels = images(1, np.random.default_rng(0), (32, 32))
            assert client.infer_images(pixels).valid.all()
    assert server.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--root-path", "teacher"), "--root-path 'teacher' found, expected a path such as"),
        (("--host", "0.0.0.0"), "--host 0.0.0.0 found without keys, expected 127.0.0.1"),
        (("--api-key-file", "none"), "--api-key-file: Path 'none' does not exist"),
        (("--store", "none"), "none: no store found; expected one, or --data"),
        (("--data", "none"), "none: no such file or folder"),
        (("--device", "cuda:7"), "device 'cuda:7' found, but this machine has"),
        (("--encoding", "huge"), "encoding 'huge' found, expected"),
        (("--host", "192.0.2.1", "--api-key-file", "KEYS"), "192.0.2.1:0: cannot listen there"),
        (
            ("--tls-certificate", "none.pem", "--tls-key", "none.pem"),
            "--tls-certificate: Path 'none.pem' does not exist",
        ),
        (("--tls-key", "KEYS"), "one of --tls-certificate and --tls-key found"),
    ],
)
def test_wrong_options_are_one_line(
    fails: Ran, distill: Ran, teacher_weights: Path, tmp_path: Path, more: Any, message: str
) -> None:
    distill("api-key", "ann", "--file", tmp_path / "KEYS")
    words = [str(tmp_path / "KEYS") if word == "KEYS" else word for word in more]
    common = ("--label-set", "plane-figures", "--port", 0, "--cache", tmp_path)
    teacher = ("serve", "--teacher", "test_vit", "--weights", teacher_weights)
    device = () if "--device" in words else ("--device", "cpu")
    assert message in fails(*teacher, *common, *device, *words)


def test_port_that_is_taken_is_one_line(fails: Callable[..., str], teacher_weights: Path) -> None:
    words = ["serve", "--teacher", "test_vit", "--weights", teacher_weights, "--device", "cpu"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = fails(*words, "--label-set", "plane-figures", "--port", port)
    assert "cannot listen there" in message


@pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus here")
def test_prometheus_scrapes_a_server_and_says_when_it_is_gone(
    serve: Callable[..., Process], distill: Ran, random: np.random.Generator, tmp_path: Path
) -> None:
    """With the configuration of deploy/compose, whose paths and host alone are others."""
    keys, key = tmp_path / "keys", tmp_path / "key"
    key.write_text(distill("api-key", "prometheus", "--file", keys).out)
    server = serve("--api-key-file", keys)
    compose = DEPLOY / "compose/prometheus.yml"
    text = compose.read_text()
    for old, new in (
        ("/etc/prometheus/alerts.yml", str(DEPLOY / "monitoring/alerts.yml")),
        ("/keys/metrics-key", str(key)),
        ("teacher:8000", f"127.0.0.1:{server.port}"),
        ("15s", "1s"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "prometheus.yml").write_text(text)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    watching = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'series'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
    )

    def told(path: str) -> Any:
        with urllib3.PoolManager(retries=False) as pool, suppress(*NOT_YET):
            return pool.request("GET", f"http://127.0.0.1:{port}/api/v1/{path}").json()["data"]
        return None

    try:
        wait_until(lambda: bool((told("query?query=teacher_ready==1") or {}).get("result")), 30)
        wait_until(lambda: bool(told("query?query=teacher_request_seconds_count")["result"]), 10)
        server.end(signal.SIGKILL)
        wait_until(lambda: "TeacherDown" in json.dumps(told("alerts")), 30)
    finally:
        watching.kill()
        watching.wait()
