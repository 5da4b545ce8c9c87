"""Hostile requests: no 500, no hang, no permit that leaks, whatever the bytes are.

A few hundred mutated bodies in every run of the tests; `make fuzz` sends 10⁵.
"""

import io
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import schemathesis
import urllib3
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from live import INFER, SIZE, Live, echo_of, echo_teacher, live
from PIL import Image

from distill.hierarchy.semantic import SemanticHierarchy

EXAMPLES = int(os.environ.get("DISTILL_FUZZ", "300"))
STATUSES = {200, 400, 401, 404, 405, 412, 413, 415, 429, 503, 504}

thorough = settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    figures = SemanticHierarchy.bundled("plane-figures")
    teacher = echo_teacher(figures)
    echo_of(teacher).literal = True
    with live(
        teacher,
        max_body_bytes=2**18,
        max_images_per_request=32,
        max_image_pixels=4096,
        deadline_s=5.0,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def pool(server: Live) -> Iterator[urllib3.HTTPConnectionPool]:
    with urllib3.HTTPConnectionPool("127.0.0.1", server.port, retries=False, timeout=10) as line:
        yield line


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)).save(
        file, "JPEG", exif=Image.Exif()
    )
    return file.getvalue()


JPEG = _jpeg()
RAW_JPEGS = (len(JPEG).to_bytes(4, "little") + JPEG) * 2
HEADS: list[dict[str, Any]] = [
    {
        "id": "1",
        "parameters": {"binary_data_output": True, "timeout": 10**6},
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": [2, *SIZE, 3],
                "parameters": {"binary_data_size": 384},
            }
        ],
    },
    {
        "inputs": [
            {
                "name": "jpeg",
                "datatype": "BYTES",
                "shape": [2],
                "parameters": {"binary_data_size": len(RAW_JPEGS)},
            }
        ],
        "outputs": [{"name": "confidence"}, {"name": "status"}],
    },
    {
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": [1, 2, 1, 3],
                "data": [1, 2, 3, 4, 5, 6],
            },
            {"name": "crc32", "datatype": "UINT32", "shape": [1], "data": [7]},
        ],
        "outputs": [{"name": "prob", "parameters": {"binary_data": True}}],
    },
]
TAILS = [bytes(range(192)) * 2, RAW_JPEGS, b""]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["image", "jpeg", "view", "UINT8", "BYTES", "FP16", "status", "probs"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "data", "parameters", "inputs", "binary_data_size", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@st.composite
def heads(draw: st.DrawFn) -> tuple[Any, bytes]:
    """A good head in which some values are others, and its tensors."""
    kind = draw(st.integers(0, len(HEADS) - 1))
    head = json.loads(json.dumps(HEADS[kind]))
    for _ in range(draw(st.integers(0, 3))):
        place: Any = head
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            place[key] = draw(JSON)
            break
    return head, TAILS[kind]


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, dict[str, str]]:
    head, tail = draw(heads())
    text = json.dumps(head).encode()
    body = bytearray(text + tail)
    for _ in range(draw(st.integers(0, 4))):
        if not body:
            break
        at = draw(st.integers(0, len(body) - 1))
        change = draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if change == "flip":
            body[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del body[at : at + draw(st.integers(1, 200))]
        elif change == "insert":
            body[at:at] = draw(st.binary(max_size=20))
        else:
            body[at:at] = body[at : at + 50]
    length = draw(st.sampled_from([str(len(text)), None, "0", "1", str(len(body)), "x", "-1", "²"]))
    headers = {} if length is None else {"inference-header-content-length": length}
    content = bytes(body)
    if draw(st.integers(0, 5)) == 0:
        headers["content-encoding"] = draw(st.sampled_from(["gzip", "deflate", "br", ""]))
        content = zlib.compress(content) if draw(st.booleans()) else content
    return content, {name: value.encode().decode("latin-1") for name, value in headers.items()}


@thorough
@given(requests())
def test_mutated_bodies_are_answered_and_leave_nothing(
    server: Live, pool: urllib3.HTTPConnectionPool, request: tuple[bytes, dict[str, str]]
) -> None:
    content, headers = request
    reply = pool.request("POST", INFER, body=content, headers=headers)
    assert reply.status in STATUSES, (reply.status, reply.data)
    if reply.status != 200:
        assert isinstance(json.loads(reply.data)["error"], str)
        assert reply.headers["content-type"] == "application/json"
        assert "Traceback" not in reply.data.decode()
    assert not server.named("error")


@thorough
@given(st.lists(st.tuples(st.integers(0, len(JPEG) - 1), st.integers(0, 255)), max_size=12))
def test_mutated_jpegs_are_decoded_or_told_bad(
    pool: urllib3.HTTPConnectionPool, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(JPEG)
    for at, value in changes:
        content[at] = value
    raw = len(content).to_bytes(4, "little") + content + len(JPEG).to_bytes(4, "little") + JPEG
    text = json.dumps(HEADS[1]).encode()
    headers = {"inference-header-content-length": str(len(text))}
    reply = pool.request("POST", INFER, body=text + raw, headers=headers)
    assert reply.status == 200, reply.data
    confidence, status = json.loads(reply.data)["outputs"]
    assert status["data"][0] in (0, 1, 2)
    assert status["data"][1] == 0
    assert len(confidence["data"]) == 8


@thorough
@given(
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "PATCH"]),
    st.lists(
        st.sampled_from(
            ["v2", "models", "teacher", "versions", "1", "infer", "ready", "%2e%2e", ""]
        )
        | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=6),
        max_size=7,
    ),
    st.dictionaries(
        st.sampled_from(["if-match", "x-request-id", "authorization", "host", "content-length"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
        max_size=2,
    ),
)
def test_any_path_and_header_is_answered(
    server: Live, method: str, parts: list[str], headers: dict[str, str]
) -> None:
    import socket

    path = "/" + "/".join(parts)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        head = f"{method} {path} HTTP/1.1\r\nconnection: close\r\n{lines}\r\n"
        line.sendall(head.encode())
        line.shutdown(socket.SHUT_WR)
        said = b""
        while part := line.recv(65536):
            said += part
    if said:  # a client that closes first may get nothing
        assert int(said.split(b" ", 2)[1]) in STATUSES, said


def test_nothing_is_left_of_all_that(server: Live, pool: urllib3.HTTPConnectionPool) -> None:
    assert server.service.admission.idle
    assert server.service.queue.images == 0
    assert not server.named("error")
    text = json.dumps(HEADS[0]).encode()
    headers = {"inference-header-content-length": str(len(text))}
    assert pool.request("POST", INFER, body=text + TAILS[0], headers=headers).status == 200


def test_server_does_what_its_openapi_document_says(server: Live) -> None:
    schema = schemathesis.openapi.from_url(f"http://{server.address}/openapi.json")
    found = 0
    for operation in schema.get_all_operations():
        api = operation.ok()

        @settings(
            max_examples=max(20, EXAMPLES // 20),
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=api.as_strategy())
        def conforms(case: Any) -> None:
            case.call_and_validate()

        conforms()
        found += 1
    assert found == 20
