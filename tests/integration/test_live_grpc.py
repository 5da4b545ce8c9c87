"""gRPC beside HTTP: a stock client, the same answers, the same refusals."""

import asyncio
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from live import NAN, Live, body_of, echo_of, echo_teacher, images, live, wait_until
from PIL import Image
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from distill.hierarchy.semantic import SemanticHierarchy
from distill.teacher_server.front import grpc_server
from distill.teacher_server.front.grpc_server import make_grpc_server
from distill.teacher_server.http.keys import ApiKeys, new_key
from distill.teacher_server.http.listener import Address
from distill.wire import messages

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def spoken(server: Live, keys: ApiKeys | None = None) -> Iterator[str]:
    """The address at which a live service speaks gRPC as well."""
    ports: list[int] = []
    ended = threading.Event()

    async def serve() -> None:
        beside, port = make_grpc_server(server.service, keys, Address(port=0))
        await beside.start()
        ports.append(port)
        while not ended.is_set():
            await asyncio.sleep(0.01)
        await beside.stop(1)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        wait_until(lambda: bool(ports))
        yield f"127.0.0.1:{ports[0]}"
    finally:
        ended.set()
        thread.join(10)


@pytest.fixture
def server(hierarchy: SemanticHierarchy) -> Iterator[Live]:
    with live(echo_teacher(hierarchy)) as server:
        yield server


@pytest.fixture
def client(server: Live) -> Iterator[triton.InferenceServerClient]:
    with spoken(server) as address, triton.InferenceServerClient(address) as client:
        yield client


def given(name: str, array: Any, datatype: str) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def wanted(*names: str) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name) for name in names]


def over_http(server: Live, pixels: Any, *outputs: str) -> dict[str, Any]:
    import tritonclient.http as http

    with http.InferenceServerClient(server.address) as other:
        tensor = http.InferInput("image", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels)
        result = other.infer(
            "teacher", [tensor], outputs=[http.InferRequestedOutput(name) for name in outputs]
        )
        return {name: result.as_numpy(name) for name in outputs}


def test_messages_are_the_stock_clients() -> None:
    """Field by field; and the compiled form is that of inference.proto."""

    def compare(mine: Any, theirs: Any) -> None:
        for field in mine.fields:
            other = theirs.fields_by_name[field.name]
            assert (field.number, field.type) == (other.number, other.type), field.full_name
            if field.message_type:
                compare(field.message_type, other.message_type)

    known = {
        **service_pb2.DESCRIPTOR.message_types_by_name,
        **model_config_pb2.DESCRIPTOR.message_types_by_name,
    }
    names = [each.name for each in messages._compiled.file[0].message_type]
    assert "ModelInferRequest" in names
    for name in names:
        compare(messages.message(name).DESCRIPTOR, known[name])


def test_compiled_messages_are_those_of_the_text(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    folder, compiled = ROOT / "distill" / "wire", tmp_path / "compiled"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={folder}"]
    command += [f"--descriptor_set_out={compiled}", "inference.proto"]
    subprocess.run(command, check=True)
    assert compiled.read_bytes() == (folder / "inference.binpb").read_bytes()


def test_stock_client_asks_after_server_and_model(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("teacher")
    assert client.is_model_ready("teacher", "1")
    assert client.get_server_metadata().name == "distill"
    about = client.get_model_metadata("teacher", as_json=True)
    assert {each["name"] for each in about["inputs"]} >= {"image", "jpeg", "sample_id"}
    config = client.get_model_config("teacher").config
    assert [each.name for each in config.input if not each.optional] == ["image"]
    with pytest.raises(InferenceServerException, match="no such model"):
        client.get_model_metadata("other")


def test_answers_are_those_of_http(
    server: Live, client: triton.InferenceServerClient, random: np.random.Generator
) -> None:
    pixels, outputs = images(5, random), ("index", "prob", "sq_norm", "confidence", "probs")
    result = client.infer(
        "teacher", [given("image", pixels, "UINT8")], outputs=wanted(*outputs), request_id="seven"
    )
    for name, array in over_http(server, pixels, *outputs).items():
        np.testing.assert_array_equal(result.as_numpy(name), array)
    assert result.get_response().id == "seven"
    by_default = client.infer("teacher", [given("image", pixels, "UINT8")])
    assert by_default.as_numpy("status").tolist() == [0] * 5
    assert by_default.as_numpy("probs") is None


def test_jpegs_and_bad_ones(
    client: triton.InferenceServerClient, random: np.random.Generator
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(images(1, random)[0]).save(buffer, "JPEG")
    files = np.array([buffer.getvalue(), b"no image"], np.object_)
    result = client.infer("teacher", [given("jpeg", files, "BYTES")])
    assert result.as_numpy("status").tolist() == [0, 1]
    bad = json.loads(result.get_response().parameters["bad"].string_param)
    assert list(bad) == ["1"]
    with pytest.raises(InferenceServerException, match=r"jpeg\[1\]"):
        client.infer("teacher", [given("jpeg", files, "BYTES")], outputs=wanted("prob"))


def test_numbers_in_messages(server: Live, random: np.random.Generator) -> None:
    """As other languages' generated clients send them."""
    pixels = images(2, random)
    with spoken(server) as address, grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(
            f"/{messages.SERVICE}/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        request = service_pb2.ModelInferRequest(model_name="teacher")
        tensor = request.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
        tensor.contents.uint_contents.extend(pixels.ravel().tolist())
        request.outputs.add(name="confidence")
        reply = infer(request)
        found = np.frombuffer(reply.raw_output_contents[0], np.float32)
        assert (found == over_http(server, pixels, "confidence")["confidence"].ravel()).all()
        for change, text in (
            (lambda: tensor.contents.uint_contents.__setitem__(0, 256), "beyond UINT8"),
            (lambda: tensor.contents.uint_contents.__delitem__(0), "expected 384"),
            (lambda: setattr(tensor, "datatype", "NONE"), "expected UINT8"),
            (lambda: tensor.shape.__setitem__(0, -1), "shape"),
            (lambda: request.raw_input_contents.extend([b"", b""]), "raw_input_contents"),
        ):
            change()  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.RpcError, match=text) as error:
                infer(request)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_refusals_have_their_codes(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    pixels = images(3, random)
    pixels[1, 0, 0, 0] = NAN
    options: Any = {"max_images_per_request": 4, "max_body_bytes": 2**20}
    with (
        live(echo_teacher(hierarchy), **options) as server,
        spoken(server) as address,
        triton.InferenceServerClient(address) as client,
    ):

        def refused(array: Any, **more: Any) -> str:
            with pytest.raises(InferenceServerException) as error:
                client.infer("teacher", [given("image", array, "UINT8")], **more)
            return str(error.value.status()).removeprefix("StatusCode.")

        assert refused(pixels, outputs=wanted("prob")) == "INTERNAL"
        assert refused(images(5, random)) == "OUT_OF_RANGE"
        assert refused(images(1, random), headers={"if-match": '"x"'}) == "FAILED_PRECONDITION"
        assert refused(images(1, random, (1024, 1024))) == "RESOURCE_EXHAUSTED"
        echo_of(server.service.teacher).delay_s = 0.5
        assert refused(images(1, random), client_timeout=0.1) == "DEADLINE_EXCEEDED"
        assert refused(images(1, random), timeout=1000) == "DEADLINE_EXCEEDED"
        wait_until(lambda: server.service.admission.idle)
        echo_of(server.service.teacher).delay_s = 0.0
        server.service.draining = True
        assert not client.is_server_ready()
        assert refused(images(1, random)) == "UNAVAILABLE"
        server.service.draining = False
        assert client.infer("teacher", [given("image", images(1, random), "UINT8")])


def test_keys(hierarchy: SemanticHierarchy, random: np.random.Generator, tmp_path: Path) -> None:
    """A body without a key is not even read."""
    key = new_key("ann", tmp_path / "keys")
    keys = ApiKeys.read(tmp_path / "keys")
    tensor = given("image", images(1, random), "UINT8")
    with (
        live(echo_teacher(hierarchy), keys=keys) as server,
        spoken(server, keys) as address,
        triton.InferenceServerClient(address) as client,
    ):
        assert client.is_server_live()
        with pytest.raises(InferenceServerException, match="no valid API key"):
            client.get_server_metadata()
        with pytest.raises(InferenceServerException, match="no valid API key"):
            client.infer("teacher", [tensor], headers={"authorization": "Bearer no"})
        asked = {"authorization": f"Bearer {key}"}
        assert client.infer("teacher", [tensor], headers=asked).as_numpy("status")[0] == 0
        (tmp_path / "keys").write_text(f"bob sha256:{'0' * 64}\n")
        keys.digests = ApiKeys.read(tmp_path / "keys").digests
        with pytest.raises(InferenceServerException, match="no valid API key"):
            client.infer("teacher", [tensor], headers=asked)
    requests = [event for event in server.named("request") if event["method"] == "gRPC"]
    assert {event["client"] for event in requests} == {"", "ann"}
    assert all(event["address"].startswith("ipv4:127.0.0.1") for event in requests)


def test_one_queue_with_http(
    server: Live, client: triton.InferenceServerClient, random: np.random.Generator
) -> None:
    """Statistics and metrics count both, and many at once get their own answers."""
    import urllib3

    def both(seed: int) -> None:
        pixels = images(3, np.random.default_rng(seed))
        spoken = client.infer("teacher", [given("image", pixels, "UINT8")], outputs=wanted("prob"))
        body, headers = body_of(pixels, ("prob",))
        url = f"http://{server.address}/v2/models/teacher/infer"
        reply = urllib3.request("POST", url, body=body, headers=headers)
        raw = reply.data[int(reply.headers["inference-header-content-length"]) :]
        assert spoken.as_numpy("prob").tobytes() == raw

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(both, range(40)))
    (statistics,) = client.get_inference_statistics("teacher").model_stats
    assert statistics.inference_count == 240
    assert statistics.inference_stats.success.count == 80
    assert statistics.inference_stats.compute_infer.ns > 0
    assert abs(statistics.last_inference / 1000 - time.time()) < 60
    text = server.service.metrics.text().decode()
    assert 'teacher_requests_total{code="200",route="grpc ModelInfer"} 40.0' in text


def test_stock_aio_client(server: Live, random: np.random.Generator) -> None:
    import tritonclient.grpc.aio as aio

    async def ask(address: str) -> Any:
        async with aio.InferenceServerClient(address) as client:
            tensor = aio.InferInput("image", [2, 8, 8, 3], "UINT8")
            tensor.set_data_from_numpy(images(2, random))
            results = await asyncio.gather(*[client.infer("teacher", [tensor]) for _ in range(20)])
            return [result.as_numpy("status").tolist() for result in results]

    with spoken(server) as address:
        assert asyncio.run(ask(address)) == [[0, 0]] * 20


@contextmanager
def unended(channel: grpc.Channel, method: str, count: int, **more: Any) -> Iterator[list[Any]]:
    """Calls that never send their message."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    ask = channel.stream_unary(f"/{messages.SERVICE}/{method}")
    calls = [ask.future(nothing(), **more) for _ in range(count)]
    try:
        yield calls
    finally:
        over.set()
        for call in calls:
            call.cancel()


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        call.result(10)
    return error.value.code()


def test_who_sends_no_message_holds_up_nobody(
    hierarchy: SemanticHierarchy,
    random: np.random.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither without a key nor, where others wait, with one."""
    monkeypatch.setattr(grpc_server, "HURRIED_S", 0.5)
    held = {"authorization": f"Bearer {new_key('held', tmp_path / 'keys')}"}
    asked = {"authorization": f"Bearer {new_key('ann', tmp_path / 'keys')}"}
    keys = ApiKeys.read(tmp_path / "keys")
    tensor = given("image", images(1, random), "UINT8")
    with (
        live(echo_teacher(hierarchy), keys=keys, max_body_bytes=2**25) as server,
        spoken(server, keys) as address,
        triton.InferenceServerClient(address) as client,
        grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as silent,
        grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as owned,
    ):
        with (
            unended(silent, "ServerLive", 20) as lives,
            unended(silent, "ServerReady", 20),
            unended(silent, "ModelInfer", 20) as keyless,
        ):
            assert lives[-1].result(10) == message_of("ServerLiveResponse", live=True)
            assert code_of(keyless[-1]) == grpc.StatusCode.UNAUTHENTICATED
            assert client.is_server_live()
            assert client.infer("teacher", [tensor], headers=asked)
        with unended(owned, "ModelInfer", 60, metadata=tuple(held.items())) as calls:
            wait_until(lambda: client.is_server_live())
            began = time.monotonic()
            for _ in range(5):
                assert client.infer("teacher", [tensor], headers=asked)
            assert time.monotonic() - began < 5
            more = tuple({**asked, "if-match": "*"}.items())
            with unended(silent, "ModelConfig", 2, metadata=more) as slow:
                assert client.get_model_config("teacher", headers=asked)
                assert code_of(slow[0]) == grpc.StatusCode.ABORTED
            assert not calls[-1].done()
    assert any(event["status"] == 408 for event in server.named("request"))


def message_of(name: str, **fields: Any) -> bytes:
    made: bytes = messages.message(name)(**fields).SerializeToString()
    return made


def test_what_is_no_message(server: Live) -> None:
    """Is told as such, and costs neither memory nor an error in the log."""
    about: Any = {"model_name": "teacher"}
    numbers = {"bool_contents": [False] * (5 * 2**20)}
    many = [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "contents": numbers}]
    outputs = [{"name": "prob"}] * 1001
    whole = message_of("ModelInferRequest", **about, outputs=outputs[:3])
    with spoken(server) as address, grpc.insecure_channel(address) as channel:
        infer = channel.stream_unary(f"/{messages.SERVICE}/ModelInfer")
        for sent, code, text in (
            (b"\xff\xff", "INVALID_ARGUMENT", "no ModelInferRequest found"),
            (b"\x0b", "INVALID_ARGUMENT", "no ModelInferRequest found"),
            (whole[:-1], "INVALID_ARGUMENT", "no ModelInferRequest found"),
            (b"\x0a\x02\xff\xff", "INVALID_ARGUMENT", "no ModelInferRequest found"),
            (message_of("ModelInferRequest", **about, inputs=many), "OUT_OF_RANGE", "send tensors"),
            (message_of("ModelInferRequest", **about, outputs=outputs), "OUT_OF_RANGE", "fields"),
            (
                message_of("ModelInferRequest", **about, outputs=outputs[:17]),
                "INVALID_ARGUMENT",
                "17 outputs found, expected at most 16",
            ),
            (
                message_of("ModelInferRequest", **about, inputs=[{"shape": [1] * 2_000_000}]),
                "INVALID_ARGUMENT",
                "a shape of 2000000 dimensions",
            ),
            (
                message_of("ModelInferRequest", **about, id="x" * 1025),
                "INVALID_ARGUMENT",
                "id of 1025 characters",
            ),
        ):
            with pytest.raises(grpc.RpcError, match=text) as error:
                infer(iter([sent]), timeout=10)
            assert error.value.code().name == code
        with pytest.raises(grpc.RpcError, match="no message found") as error:
            infer(iter([]), timeout=10)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not server.named("error")
