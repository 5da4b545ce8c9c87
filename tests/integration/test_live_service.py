"""What happens to requests when teachers, clients and budgets fail them."""

import base64
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import urllib3
from live import (
    HANG,
    INFER,
    NAN,
    POISON,
    SIZE,
    Live,
    body_of,
    echo_of,
    echo_teacher,
    images,
    live,
    wait_until,
)
from made_teachers import real_teacher

from distill.errors import TeacherError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.encoding import EncodingSpec
from distill.targets.tensors import dense_targets
from distill.teacher_server.http.keys import ApiKeys, new_key
from distill.teacher_server.serve.admission import Budgets
from distill.teacher_server.serve.service import ServeOptions, Service


def ask(
    server: Live,
    pixels: np.ndarray,
    outputs: tuple[str, ...] = ("probs",),
    more: dict[str, str] | None = None,
    **parameters: Any,
) -> urllib3.BaseHTTPResponse:
    body, headers = body_of(pixels, outputs, **parameters)
    url = f"http://{server.address}{INFER}"
    headers |= more or {}
    return urllib3.request("POST", url, body=body, headers=headers, retries=False, timeout=30)


def probs_of(reply: urllib3.BaseHTTPResponse, count: int) -> np.ndarray:
    assert reply.status == 200, reply.data
    start = int(reply.headers["inference-header-content-length"])
    return np.frombuffer(reply.data[start:], "<f2").reshape(count, -1)


def exact(pixels: np.ndarray, hierarchy: SemanticHierarchy) -> np.ndarray:
    seen = torch.from_numpy(pixels).flatten(1)[:, : hierarchy.num_classes] / 255
    return dense_targets(seen * 6, hierarchy).probs.numpy()


def get(server: Live, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
    return urllib3.request("GET", f"http://{server.address}{path}", retries=False, **more)


def metric(server: Live, name: str) -> float:
    lines = server.service.metrics.text().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


# -- batching -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hundred_thousand_images_from_many_clients_are_never_mixed_up(
    hierarchy: SemanticHierarchy,
) -> None:
    budgets = Budgets(images=4096, bytes=2**28, requests=64)
    teacher = echo_teacher(hierarchy)
    with live(teacher, lanes=3, max_batch_size=64, budgets=budgets) as server:

        def client(seed: int) -> int:
            random, seen = np.random.default_rng(seed), 0
            while seen < 12_500:
                pixels = images(int(random.integers(1, 250)), random)
                got = probs_of(ask(server, pixels), len(pixels))
                np.testing.assert_allclose(got, exact(pixels, hierarchy), atol=1e-3)
                seen += len(pixels)
            return seen

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(client, range(8))) >= 100_000
        assert metric(server, "teacher_batch_size_count") < metric(server, "teacher_batch_size_sum")


def test_small_requests_share_a_batch_while_the_device_is_busy(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    teacher = echo_teacher(hierarchy, delay_s=0.2)
    with live(teacher, max_batch_size=16) as server, ThreadPoolExecutor(9) as pool:
        echo_of(teacher).batches.clear()
        first = pool.submit(ask, server, images(1, random))
        wait_until(lambda: bool(echo_of(teacher).batches))
        others = [pool.submit(ask, server, images(1, random)) for _ in range(8)]
        assert {each.result().status for each in (first, *others)} == {200}
        assert echo_of(teacher).batches == [1, 8]
        assert {each.result().headers["x-batch-size"] for each in others} == {"8"}


def test_large_request_is_cut(hierarchy: SemanticHierarchy, random: np.random.Generator) -> None:
    teacher = echo_teacher(hierarchy)
    with live(teacher, max_batch_size=8) as server:
        echo_of(teacher).batches.clear()
        pixels = images(20, random)
        got = probs_of(ask(server, pixels), 20)
        np.testing.assert_allclose(got, exact(pixels, hierarchy), atol=1e-3)
        assert echo_of(teacher).batches == [8, 8, 4]


def test_only_warmed_shapes_are_run(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    teacher = echo_teacher(hierarchy)
    with live(teacher, max_batch_size=12) as server:
        warmed = set(echo_of(teacher).batches)
        assert warmed == {1, 2, 4, 8, 12}
        for count in range(1, 13):
            ask(server, images(count, random))
        assert set(echo_of(teacher).batches) == warmed


def test_answers_equal_a_direct_forward_at_the_same_shape(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    """A real network, whose answers depend on the shape of the batch in their last bits."""
    teacher = real_teacher(hierarchy)
    with live(teacher) as server:
        for count, shape in ((1, 1), (3, 4), (8, 8)):
            pixels = images(count, random, (32, 32))
            padded = np.concatenate([pixels, np.zeros((shape - count, 32, 32, 3), np.uint8)])
            direct = teacher.targets([torch.from_numpy(padded).permute(0, 3, 1, 2)])
            got = probs_of(ask(server, pixels), count)
            np.testing.assert_array_equal(got, direct.probs[:count].half().numpy())


def test_answers_do_not_depend_on_neighbours(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    """Not at all in a batch of the same shape; in those of other shapes by their last bit."""
    teacher = real_teacher(hierarchy)
    one = images(1, random, (32, 32))
    with live(teacher, max_batch_size=16) as server:
        by_shape = []
        for shape in server.service.lanes[0].shapes:
            answers = []
            for _ in range(3):
                others = images(shape - 1, random, (32, 32)) if shape > 1 else one[:0]
                place = int(random.integers(shape))
                batch = np.concatenate([others[:place], one, others[place:]])
                answers.append(probs_of(ask(server, batch), shape)[place])
            assert (answers[0] == answers[1]).all()
            assert (answers[0] == answers[2]).all()
            by_shape.append(answers[0].astype(np.float64))
        # Two steps of FP16 at most.
        np.testing.assert_allclose(by_shape, [by_shape[0]] * len(by_shape), rtol=2**-9, atol=1e-6)


# -- teachers that fail ---------------------------------------------------------------------------


def test_poisonous_image_fails_its_own_request_only(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    teacher = echo_teacher(hierarchy, delay_s=0.1)
    with live(teacher, max_batch_size=16) as server, ThreadPoolExecutor(8) as pool:
        pool.submit(ask, server, images(1, random)).result()
        before = len(echo_of(teacher).batches)
        busy = pool.submit(ask, server, images(1, random))
        wait_until(lambda: len(echo_of(teacher).batches) > before)
        poison = images(2, random)
        poison[1, 0, 0, 0] = POISON
        bad = pool.submit(ask, server, poison)
        good = [images(2, random) for _ in range(4)]
        asked = [pool.submit(ask, server, each) for each in good]
        for own, each in zip(good, asked, strict=True):
            got = probs_of(each.result(), 2)
            np.testing.assert_allclose(got, exact(own, hierarchy), atol=1e-3)
        assert bad.result().status == 500
        assert "the teacher fails on these images" in json.loads(bad.result().data)["error"]
        assert busy.result().status == 200
        assert get(server, "/v2/health/ready").status == 200


def test_answer_that_is_not_finite_is_that_images_own(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    pixels = images(3, random)
    pixels[1, 0, 0, 0] = NAN
    with live(echo_teacher(hierarchy)) as server:
        reply = ask(server, pixels)
        assert reply.status == 500
        assert (
            "image[1]: the teacher's output contains NaN or Inf" in json.loads(reply.data)["error"]
        )
        told = ask(server, pixels, ("status",))
        assert np.frombuffer(told.data[-12:], "<i4").tolist() == [0, 5, 0]


def test_memory_that_runs_out_halves_the_batch(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    teacher = echo_teacher(hierarchy)
    with live(teacher, max_batch_size=16) as server:
        echo_of(teacher).most = 4
        pixels = images(16, random)
        got = probs_of(ask(server, pixels), 16)
        np.testing.assert_allclose(got, exact(pixels, hierarchy), atol=1e-3)


def test_batches_grow_again(
    hierarchy: SemanticHierarchy, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.teacher_server.serve.lane.GROW_AFTER_S", 0.2)
    teacher = echo_teacher(hierarchy)
    echo = echo_of(teacher)
    with live(teacher, max_batch_size=16) as server:
        (lane,) = server.service.lanes
        echo.most = 4
        assert ask(server, images(16, random)).status == 200
        wait_until(lambda: lane.max_batch_size == 4)
        time.sleep(0.3)
        assert ask(server, images(16, random)).status == 200  # once more it does not fit
        assert lane.max_batch_size == 4
        echo.most = 1 << 30
        ends = time.monotonic() + 20
        while lane.max_batch_size < 16:
            assert time.monotonic() < ends
            time.sleep(0.1)
            assert ask(server, images(16, random)).status == 200
        assert server.named("larger batches again")[-1]["batch_size"] == 16


def test_traces_are_sent(
    hierarchy: SemanticHierarchy, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a collector, by the parent that the client names."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers["content-encoding"] == "gzip":
                body = gzip.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
            got.extend(s for r in request.resource_spans for p in r.scope_spans for s in p.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *given: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{collector.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        with live(echo_teacher(hierarchy)) as server:
            parent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
            body, headers = body_of(images(3, random), ("prob",))
            url = f"http://{server.address}{INFER}"
            assert urllib3.request("POST", url, body=body, headers=headers | parent).status == 200
            get(server, "/v2/health/live")
        collector.shutdown()
    spans = {span.name: span for span in got}
    assert set(spans) == {"POST", "decode", "teacher"}
    assert spans["POST"].trace_id.hex() == "a" * 32
    assert spans["POST"].parent_span_id.hex() == "b" * 16
    assert spans["teacher"].parent_span_id == spans["POST"].span_id
    said = {each.key: each.value for each in spans["POST"].attributes}
    assert said["http.response.status_code"].int_value == 200
    assert said["distill.images"].int_value == 3


def test_memory_that_is_short_from_the_start_gives_smaller_batches(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    teacher = echo_teacher(hierarchy)
    echo_of(teacher).most = 4
    with live(teacher, max_batch_size=16) as server:
        assert server.service.lanes[0].max_batch_size == 4
        assert probs_of(ask(server, images(9, random)), 9).shape == (9, 28)


def test_lost_device_turns_ready_off_and_answers_503(
    hierarchy: SemanticHierarchy, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.teacher_server.serve.service.SICK_UNTIL_DEAD_S", 0.3)
    teacher = echo_teacher(hierarchy)
    with live(teacher) as server:
        echo_of(teacher).lost = True
        reply = ask(server, images(1, random))
        assert reply.status == 503
        assert "illegal memory access" in json.loads(reply.data)["error"]
        assert get(server, "/v2/health/ready").status == 503
        assert get(server, "/v2/health/live").status == 200
        time.sleep(0.4)
        assert get(server, "/v2/health/live").status == 503
        assert metric(server, "teacher_ready") == 0


def test_lost_device_tells_those_that_wait(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    teacher = echo_teacher(hierarchy, delay_s=0.3)
    with live(teacher) as server, ThreadPoolExecutor(5) as pool:
        busy = pool.submit(ask, server, images(1, random))
        wait_until(lambda: server.service.lanes[0].busy_since is not None)
        waiting = [pool.submit(ask, server, images(8, random)) for _ in range(4)]
        wait_until(lambda: server.service.queue.images == 32)
        echo_of(teacher).lost = True
        started = time.monotonic()
        assert [each.result().status for each in waiting] == [503] * 4
        assert time.monotonic() - started < 5
        assert busy.result().status in (200, 503)


def test_silent_device_turns_ready_off(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    teacher = echo_teacher(hierarchy)
    with live(teacher, hang_after_s=0.3) as server, ThreadPoolExecutor(1) as pool:
        pixels = images(1, random)
        pixels[0, 0, 0, 0] = HANG
        asked = pool.submit(ask, server, pixels)
        wait_until(lambda: get(server, "/v2/health/ready").status == 503, 5)
        assert "silent" in json.loads(get(server, "/v2/health/ready").data)["error"]
        echo_of(teacher).go_on.set()
        assert asked.result().status == 200
        wait_until(lambda: get(server, "/v2/health/ready").status == 200)


# -- clients that fail ----------------------------------------------------------------------------


def test_deadline_is_504_and_its_work_is_dropped(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    teacher = echo_teacher(hierarchy, delay_s=0.3)
    with live(teacher) as server, ThreadPoolExecutor(2) as pool:
        echo_of(teacher).batches.clear()
        busy = pool.submit(ask, server, images(1, random))
        wait_until(lambda: bool(echo_of(teacher).batches))
        reply = ask(server, images(1, random), timeout=50_000)
        assert reply.status == 504
        assert "no answer within" in json.loads(reply.data)["error"]
        assert busy.result().status == 200
        assert server.service.queue.images == 0
        assert echo_of(teacher).batches == [1]


def test_client_that_leaves_is_not_computed_for(
    hierarchy: SemanticHierarchy, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.teacher_server.http.connection.HALF_CLOSED_S", 0.05)
    teacher = echo_teacher(hierarchy, delay_s=0.3)
    with live(teacher) as server, ThreadPoolExecutor(2) as pool:
        busy = pool.submit(ask, server, images(1, random))
        wait_until(lambda: server.service.lanes[0].busy_since is not None)
        body, headers = body_of(images(5, random), ("probs",))
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            fields = {"host": "localhost", "content-length": str(len(body)), **headers}
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            line.sendall(f"POST {INFER} HTTP/1.1\r\n{lines}\r\n".encode() + body)
            wait_until(lambda: server.service.queue.images == 5)
        wait_until(lambda: server.service.queue.images == 0)
        assert busy.result().status == 200
        assert metric(server, "teacher_cancelled_total") == 1
        assert len([e for e in server.named("request") if e["status"] == 499]) == 1


def test_client_that_stops_in_its_body_holds_nothing(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    begun = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999\r\n\r\n{{".encode()
    with live(echo_teacher(hierarchy), deadline_s=0.5) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            line.sendall(begun)
            wait_until(lambda: not server.service.admission.idle)
            said = line.recv(4096)
            assert said.startswith(b"HTTP/1.1 504")
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            line.sendall(begun)
            wait_until(lambda: not server.service.admission.idle)
        wait_until(lambda: server.service.admission.idle)
        assert ask(server, images(1, random)).status == 200


def test_client_that_does_not_read_its_replies_is_hung_up_on(
    hierarchy: SemanticHierarchy, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.teacher_server.http.connection.STALLED_S", 0.5)
    with live(echo_teacher(hierarchy)) as server:
        body, headers = body_of(images(250, random), ("probs", "prob", "index", "confidence"))
        fields = {"host": "localhost", "content-length": str(len(body)), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", server.port))
            asked = f"POST {INFER} HTTP/1.1\r\n{lines}\r\n".encode() + body
            with pytest.raises(ConnectionError):
                line.sendall(asked * 3000)
        wait_until(lambda: server.service.admission.idle)
        assert ask(server, images(1, random)).status == 200


def test_client_that_sends_no_head_is_hung_up_on(
    hierarchy: SemanticHierarchy, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.teacher_server.http.connection.HEAD_S", 0.3)
    with live(echo_teacher(hierarchy)) as server:
        for sent in (b"", b"GET /v2 HT", b"GET /v2 HTTP/1.1\r\nhost: localhost\r\nx-"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
                line.sendall(sent)
                with suppress(ConnectionResetError):
                    assert line.recv(100) == b""
        with urllib3.PoolManager() as pool:  # one that is done with its head is left alone
            for _ in range(3):
                url = f"http://{server.address}/v2"
                assert pool.request("GET", url, retries=False).status == 200
                time.sleep(0.5)


def test_head_of_a_request_is_bounded(hierarchy: SemanticHierarchy) -> None:
    with live(echo_teacher(hierarchy)) as server:
        for sent in (b"GET /" + b"x" * 2**18, b"GET / HTTP/1.1\r\nx: " + b"y" * 2**18):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
                line.sendall(sent)
                with suppress(ConnectionResetError):
                    assert line.recv(4096).startswith(b"HTTP/1.1 400")


# -- overload -------------------------------------------------------------------------------------


def test_overload_is_429_and_what_was_admitted_is_answered(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    teacher = echo_teacher(hierarchy, delay_s=0.05)
    budgets = Budgets(images=32, bytes=2**20, requests=16)
    with live(teacher, budgets=budgets, max_batch_size=8) as server, ThreadPoolExecutor(40) as pool:
        replies = list(
            pool.map(lambda _: ask(server, images(4, np.random.default_rng(0))), range(120))
        )
        statuses = [reply.status for reply in replies]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 8
        refused = next(reply for reply in replies if reply.status == 429)
        assert int(refused.headers["retry-after"]) >= 1
        wait_until(lambda: server.service.admission.idle)
        assert ask(server, images(1, random)).status == 200
        assert metric(server, "teacher_rejected_total") == statuses.count(429)


def test_request_larger_than_the_budget_is_refused_at_once(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    with live(echo_teacher(hierarchy), budgets=Budgets(images=4, bytes=2**20, requests=4)) as s:
        assert ask(s, images(5, random)).status == 429


# -- keys -----------------------------------------------------------------------------------------


@pytest.fixture
def keyed(hierarchy: SemanticHierarchy, tmp_path: Path) -> Callable[..., Any]:
    names = {name: new_key(name, tmp_path / "keys") for name in ("ann", "bob")}

    def start(**more: Any) -> Any:
        return live(echo_teacher(hierarchy), keys=ApiKeys.read(tmp_path / "keys"), **more), names

    return start


def test_only_live_and_ready_are_open(keyed: Callable[..., Any]) -> None:
    starting, names = keyed()
    with starting as server:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert get(server, path).status == 200
        bearer = {"authorization": f"Bearer {names['ann']}"}
        programs = ("/v2", "/metrics", "/openapi.json", "/v2/models/teacher")
        for path in (*programs, "/", "/gallery", "/static/style.css", "/nothing"):
            refused = get(server, path)
            assert refused.status == 401, path
            kind = refused.headers["www-authenticate"].split()[0]
            assert kind == ("Bearer" if path in programs else "Basic")
            assert "no valid API key" in json.loads(refused.data)["error"]
            assert get(server, path, headers=bearer).status in (200, 404)
        wrong_password = base64.b64encode(f"ann:{names['ann']}x".encode()).decode()
        for wrong in (
            *("", "Bearer", "Bearer x", f"Basic {names['ann']}", f"Bearer {names['ann']}x"),
            *("Basic", "Basic ä", "Basic Og==", f"Basic {wrong_password}"),
        ):
            assert get(server, "/", headers={"authorization": wrong}).status == 401
            assert get(server, "/v2", headers={"authorization": wrong}).status == 401
        password = base64.b64encode(f"whoever:{names['ann']}".encode()).decode()
        assert get(server, "/", headers={"authorization": f"Basic {password}"}).status == 200
        assert {e["client"] for e in server.named("request") if e["status"] == 200} == {"ann"}
        assert not [e for e in server.events if names["ann"] in json.dumps(e)]
        assert not [e for e in server.named("request") if "health" in e["path"]]


def test_without_keys_only_loopback_names_are_served(hierarchy: SemanticHierarchy) -> None:
    with live(echo_teacher(hierarchy)) as server:
        assert get(server, "/v2").status == 200
        assert get(server, "/v2", headers={"host": "localhost:8000"}).status == 200
        assert get(server, "/v2", headers={"host": "evil.example"}).status == 401


def test_greedy_key_does_not_starve_another(
    keyed: Callable[..., Any], random: np.random.Generator
) -> None:
    starting, names = keyed(budgets=Budgets(images=64, bytes=2**22, requests=64), lanes=1)
    with starting as server:
        echo_of(server.service.teacher).delay_s = 0.03
        stop = threading.Event()

        def greedy() -> None:
            bearer = {"authorization": f"Bearer {names['ann']}"}
            while not stop.is_set():
                ask(server, images(8, np.random.default_rng(1)), more=bearer)

        threads = [threading.Thread(target=greedy) for _ in range(16)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.service.admission.in_flight["images"] >= 40)
        bearer = {"authorization": f"Bearer {names['bob']}"}
        answered = [ask(server, images(4, random), more=bearer).status for _ in range(10)]
        stop.set()
        for thread in threads:
            thread.join()
        assert answered == [200] * 10
        refused = [event for event in server.named("request") if event["status"] == 429]
        assert {event["client"] for event in refused} == {"ann"}


def test_teacher_that_answers_nan_is_never_ready(hierarchy: SemanticHierarchy) -> None:
    teacher = echo_teacher(hierarchy)
    echo_of(teacher).forward = lambda images: torch.full((len(images), 29), float("nan"))
    spec = EncodingSpec.named("standard", hierarchy.classes_per_hierarchy)
    budgets = Budgets(images=8, bytes=2**20, requests=8)
    service = Service([teacher], ServeOptions(encoding=spec, max_batch_size=4, budgets=budgets))
    with pytest.raises(TeacherError, match="NaN or Inf found"):
        service.start()
    assert service.why_not_ready()
    service.close()


def test_metrics_are_there_by_name(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    with live(echo_teacher(hierarchy)) as server:
        ask(server, images(3, random))
        ask(server, images(3, random)[..., :2])
        text = get(server, "/metrics").data.decode()
    for line in (
        'teacher_requests_total{code="200",route="/v2/models/{model}/infer"} 1.0',
        'teacher_images_total{source="teacher"} 3.0',
        'teacher_rejected_total{reason="malformed"} 1.0',
        "teacher_queue_images 0.0",
        "teacher_inflight_bytes 0.0",
        "teacher_ready 1.0",
        "teacher_cancelled_total 0.0",
        "teacher_batch_size_count 1.0",
        "teacher_queue_seconds_count 1.0",
        "teacher_decode_seconds_count 1.0",
        "teacher_forward_seconds_count 1.0",
        "teacher_request_seconds_count 1.0",
    ):
        assert line in text, line


def test_size_of_the_images_may_be_any(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    with live(echo_teacher(hierarchy)) as server:
        assert ask(server, images(2, random, (1, 1))).status == 200
        assert ask(server, images(2, random, (3, 500))).status == 200
        assert SIZE == (8, 8)
