"""The protocol as stock clients speak it, and every way to speak it wrongly."""

import asyncio
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.http
import tritonclient.http.aio
import urllib3
from live import INFER, SIZE, Live, echo_teacher, images, live
from PIL import Image
from tritonclient.utils import InferenceServerException

from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.tensors import dense_targets
from distill.teacher_server.serve.admission import Budgets

Asked = Callable[..., urllib3.BaseHTTPResponse]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    hierarchy = SemanticHierarchy.bundled("plane-figures")
    with live(
        echo_teacher(hierarchy),
        lanes=2,
        max_images_per_request=64,
        max_body_bytes=2**20,
        max_image_pixels=10_000,
    ) as running:
        yield running


@pytest.fixture
def ask(server: Live) -> Asked:
    """One request as it stands, without a client's help."""

    def request(method: str, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
        url = f"http://{server.address}{path}"
        return urllib3.request(method, url, retries=False, timeout=20, **more)

    return request


def binary(
    inputs: list[tuple[str, str, list[int], bytes]], outputs: tuple[str, ...] = ("status",)
) -> tuple[bytes, dict[str, str]]:
    """A body of raw tensors, and its headers."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "datatype": datatype,
                    "shape": shape,
                    "parameters": {"binary_data_size": len(raw)},
                }
                for name, datatype, shape, raw in inputs
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
        }
    ).encode()
    body = head + b"".join(raw for *_, raw in inputs)
    return body, {"inference-header-content-length": str(len(head))}


def jpeg(pixels: np.ndarray, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **more)
    return file.getvalue()


def elements(*contents: bytes) -> bytes:
    return b"".join(len(each).to_bytes(4, "little") + each for each in contents)


def image_input(client: Any, pixels: np.ndarray, as_binary: bool = True) -> Any:
    given = client.InferInput("image", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels, binary_data=as_binary)
    return given


def exact(pixels: np.ndarray, hierarchy: SemanticHierarchy) -> np.ndarray:
    """What the echo of those images means, computed here."""
    seen = torch.from_numpy(pixels).flatten(1)[:, : hierarchy.num_classes] / 255
    return dense_targets(seen * 6, hierarchy).probs.numpy()


# -- stock clients --------------------------------------------------------------------------------


def test_stock_client_asks_after_server_and_model(server: Live) -> None:
    with tritonclient.http.InferenceServerClient(server.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("teacher")
        assert client.is_model_ready("teacher", "1")
        assert not client.is_model_ready("another")
        extensions = ["binary_tensor_data", "model_configuration", "statistics"]
        assert client.get_server_metadata()["extensions"] == extensions
        about = client.get_model_metadata("teacher")
        assert about["versions"] == ["1"]
        assert {each["name"] for each in about["inputs"]} >= {"image", "jpeg", "sample_id"}
        assert about["parameters"]["hierarchy"]["classes_per_hierarchy"] == [8, 9, 8, 3]
        assert about["parameters"]["teacher"]["fingerprint"] == "e" * 64


def test_tools_of_triton_and_kserve_ask_for_more(server: Live, random: np.random.Generator) -> None:
    with tritonclient.http.InferenceServerClient(server.address) as client:
        config = client.get_model_config("teacher")
        assert [each["name"] for each in config["input"] if not each["optional"]] == ["image"]
        assert config["input"][0]["data_type"] == "TYPE_UINT8"
        before = client.get_inference_statistics("teacher", "1")["model_stats"][0]
        tensor = tritonclient.http.InferInput("image", [3, 8, 8, 3], "UINT8")
        tensor.set_data_from_numpy(images(3, random))
        client.infer("teacher", [tensor])
        after = client.get_inference_statistics()["model_stats"][0]
        assert after["inference_count"] - before["inference_count"] == 3
        for name in ("success", "queue", "compute_input", "compute_infer"):
            counts = (after["inference_stats"][name], before["inference_stats"][name])
            assert counts[0]["count"] > counts[1]["count"], name
            assert counts[0]["ns"] > counts[1]["ns"], name
    for path, said in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/teacher/ready", {"name": "teacher", "ready": True}),
    ):
        url = f"http://{server.address}{path}"
        assert urllib3.request("GET", url).json() == said
        head = urllib3.request("HEAD", url)
        assert (head.status, head.data) == (200, b"")


def test_jpeg_is_classified_by_name(
    server: Live, ask: Asked, random: np.random.Generator, hierarchy: SemanticHierarchy
) -> None:
    """`curl --data-binary @cat.jpg …/classify`."""
    buffer = io.BytesIO()
    Image.fromarray(images(1, random)[0]).save(buffer, "JPEG")
    url = f"http://{server.address}/classify"
    answers = urllib3.request("POST", url, body=buffer.getvalue()).json()
    assert len(answers) == hierarchy.num_hierarchies
    assert [len(answer["classes"]) for answer in answers] == [3] * len(answers)
    sure = [answer["confidence"] for answer in answers]
    assert sure == sorted(sure, reverse=True)
    best = answers[0]["classes"][0]
    assert hierarchy.names[hierarchy.synsets.index(best["synset"])] == best["name"]
    for query, body, status in (
        ("?top=1", buffer.getvalue(), 200),
        ("?top=0", buffer.getvalue(), 400),
        ("?top=x", buffer.getvalue(), 400),
        ("", b"no image", 400),
        ("", b"", 400),
    ):
        reply = urllib3.request("POST", url + query, body=body)
        assert reply.status == status, reply.data
        if status == 400:
            assert set(reply.json()) == {"error"}


def test_stock_client_gets_dense_answers(
    server: Live, hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    pixels = images(5, random)
    with tritonclient.http.InferenceServerClient(server.address) as client:
        wanted = [tritonclient.http.InferRequestedOutput("probs")]
        result = client.infer(
            "teacher", [image_input(tritonclient.http, pixels)], outputs=wanted, request_id="seven"
        )
    probs = result.as_numpy("probs")
    assert probs.dtype == np.float16
    np.testing.assert_allclose(probs, exact(pixels, hierarchy), atol=1e-3)
    assert result.get_response()["id"] == "seven"
    assert result.get_response()["model_name"] == "teacher"


@pytest.mark.parametrize("as_binary", [True, False])
def test_stock_client_gets_sparse_answers_by_default(
    server: Live, hierarchy: SemanticHierarchy, random: np.random.Generator, as_binary: bool
) -> None:
    pixels = images(3, random)
    with tritonclient.http.InferenceServerClient(server.address) as client:
        result = client.infer("teacher", [image_input(tritonclient.http, pixels, as_binary)])
    assert result.as_numpy("status").tolist() == [0, 0, 0]
    index, prob = result.as_numpy("index"), result.as_numpy("prob")
    probs = exact(pixels, hierarchy)
    slots = server.service.options.encoding.entries
    assert index[:, 0].tolist() == probs[:, :8].argmax(1).tolist()
    np.testing.assert_allclose(prob[:, 0], probs[:, :8].max(1), atol=1 / 191)
    squares = np.stack([p.sum(1) for p in np.split(probs**2, [8, 17, 25], 1)], 1)
    np.testing.assert_allclose(result.as_numpy("sq_norm"), squares, atol=1e-3)
    assert prob.shape == (3, sum(slots))


def test_stock_client_gets_numbers_as_json(server: Live, random: np.random.Generator) -> None:
    pixels = images(2, random)
    names = ("confidence", "index", "status")
    with tritonclient.http.InferenceServerClient(server.address) as client:
        given = [image_input(tritonclient.http, pixels)]
        make = tritonclient.http.InferRequestedOutput
        raw = client.infer("teacher", given, outputs=[make(n) for n in names])
        text = client.infer("teacher", given, outputs=[make(n, binary_data=False) for n in names])
    for name in names:
        np.testing.assert_allclose(text.as_numpy(name), raw.as_numpy(name), rtol=1e-6)


def test_stock_client_sends_jpegs(server: Live, random: np.random.Generator) -> None:
    files = [jpeg(each) for each in images(4, random, (20, 30))]
    given = tritonclient.http.InferInput("jpeg", [4], "BYTES")
    given.set_data_from_numpy(np.array(files, np.object_))
    with tritonclient.http.InferenceServerClient(server.address) as client:
        result = client.infer("teacher", [given])
    assert result.as_numpy("status").tolist() == [0] * 4


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_stock_client_compresses_its_request(
    server: Live, random: np.random.Generator, algorithm: str
) -> None:
    pixels = images(4, random)
    with tritonclient.http.InferenceServerClient(server.address) as client:
        plain = client.infer("teacher", [image_input(tritonclient.http, pixels)])
        small = client.infer(
            "teacher",
            [image_input(tritonclient.http, pixels)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm="gzip",
        )
    np.testing.assert_array_equal(plain.as_numpy("prob"), small.as_numpy("prob"))


def test_stock_client_is_told_what_is_wrong_and_goes_on(
    server: Live, random: np.random.Generator
) -> None:
    with tritonclient.http.InferenceServerClient(server.address) as client:
        good = image_input(tritonclient.http, images(1, random))
        bad = tritonclient.http.InferInput("picture", [1], "UINT8")
        bad.set_data_from_numpy(np.zeros(1, np.uint8))
        with pytest.raises(InferenceServerException, match=r"inputs\[0\] \('picture'\): no such"):
            client.infer("teacher", [bad])
        wanted = [tritonclient.http.InferRequestedOutput("prob", class_count=3)]
        with pytest.raises(InferenceServerException, match="classification is not supported"):
            client.infer("teacher", [good], outputs=wanted)
        with pytest.raises(InferenceServerException, match="no such model"):
            client.infer("another", [good])
        wanted = [tritonclient.http.InferRequestedOutput("probs", binary_data=False)]
        with pytest.raises(InferenceServerException, match="FP16 comes raw only"):
            client.infer("teacher", [good], outputs=wanted)
        assert client.infer("teacher", [good]).as_numpy("status").tolist() == [0]


def test_stock_client_in_threads_gets_its_own_answers(
    server: Live, hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    pixels = [images(1 + i % 5, random) for i in range(40)]
    wanted = [tritonclient.http.InferRequestedOutput("probs")]
    with tritonclient.http.InferenceServerClient(server.address, concurrency=8) as client:
        asked = [
            client.async_infer("teacher", [image_input(tritonclient.http, p)], outputs=wanted)
            for p in pixels
        ]
        for own, waiting in zip(pixels, asked, strict=True):
            probs = waiting.get_result().as_numpy("probs")
            np.testing.assert_allclose(probs, exact(own, hierarchy), atol=1e-3)


def test_stock_aio_client(
    server: Live, hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    pixels = [images(1 + i % 3, random) for i in range(20)]
    aio = tritonclient.http.aio

    async def talk() -> None:
        async with aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("teacher")
            assert (await client.get_model_metadata("teacher"))["name"] == "teacher"
            wanted = [aio.InferRequestedOutput("probs")]
            results = await asyncio.gather(
                *(client.infer("teacher", [image_input(aio, p)], outputs=wanted) for p in pixels)
            )
            for own, result in zip(pixels, results, strict=True):
                probs = result.as_numpy("probs")
                np.testing.assert_allclose(probs, exact(own, hierarchy), atol=1e-3)
            with pytest.raises(InferenceServerException, match="no such model"):
                await client.infer("another", [image_input(aio, pixels[0])])
            compressed = await client.infer(
                "teacher",
                [image_input(aio, pixels[0])],
                request_compression_algorithm="gzip",
                response_compression_algorithm="gzip",
            )
            assert compressed.as_numpy("status").tolist() == [0] * len(pixels[0])

    asyncio.run(talk())


# -- inputs ---------------------------------------------------------------------------------------


def test_one_jpeg_without_a_head(ask: Asked, random: np.random.Generator) -> None:
    (pixels,) = images(1, random, (12, 12))
    reply = ask("POST", INFER, body=jpeg(pixels), headers={"inference-header-content-length": "0"})
    assert reply.status == 200, reply.data
    names = [output["name"] for output in json.loads(reply.data)["outputs"]]
    assert names == ["index", "prob", "sq_norm", "confidence", "status"]


def test_jpeg_in_json_is_base64(ask: Asked, random: np.random.Generator) -> None:
    import base64

    text = base64.b64encode(jpeg(images(1, random)[0])).decode()
    head = {"inputs": [{"name": "jpeg", "datatype": "BYTES", "shape": [1], "data": [text]}]}
    reply = ask("POST", INFER, json=head)
    assert reply.status == 200, reply.data


def test_images_of_another_size_are_squished(ask: Asked, random: np.random.Generator) -> None:
    large = images(2, random, (20, 24))
    small = np.stack([np.asarray(Image.fromarray(i).resize(SIZE, 2)) for i in large])
    answers = []
    for pixels in (large, small):
        body, headers = binary(
            [("image", "UINT8", list(pixels.shape), pixels.tobytes())], ("confidence",)
        )
        answers.append(ask("POST", INFER, body=body, headers=headers).data)
    assert answers[0] == answers[1]


def test_one_bad_jpeg_does_not_lose_the_others(ask: Asked, random: np.random.Generator) -> None:
    good = jpeg(images(1, random)[0])
    large = jpeg(np.zeros((200, 200, 3), np.uint8))
    png = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(png, "PNG")
    cut = jpeg(images(1, random, (64, 64))[0])[:600]
    raw = elements(good, b"nonsense", large, png.getvalue(), cut, b"", good)
    body, headers = binary([("jpeg", "BYTES", [7], raw)], ("status", "confidence"))
    reply = ask("POST", INFER, body=body, headers=headers)
    assert reply.status == 200, reply.data
    head = json.loads(reply.data[: int(reply.headers["inference-header-content-length"])])
    assert set(head["parameters"]["bad"]) == {"1", "2", "3", "4", "5"}
    assert "too many pixels: 200×200" in head["parameters"]["bad"]["2"]
    status = np.frombuffer(
        reply.data, "<i4", 7, int(reply.headers["inference-header-content-length"])
    )
    assert status.tolist() == [0, 1, 2, 1, 1, 1, 0]


def test_bad_jpeg_is_400_without_status(ask: Asked, random: np.random.Generator) -> None:
    raw = elements(jpeg(images(1, random)[0]), b"nonsense")
    body, headers = binary([("jpeg", "BYTES", [2], raw)], ("confidence",))
    reply = ask("POST", INFER, body=body, headers=headers)
    assert reply.status == 400
    assert json.loads(reply.data)["error"].startswith("jpeg[1]: not an image")


def test_cmyk_and_grey_jpegs_are_converted(ask: Asked) -> None:
    files = []
    for mode in ("CMYK", "L"):
        file = io.BytesIO()
        Image.new(mode, (9, 9)).save(file, "JPEG")
        files.append(file.getvalue())
    body, headers = binary([("jpeg", "BYTES", [2], elements(*files))])
    reply = ask("POST", INFER, body=body, headers=headers)
    assert np.frombuffer(reply.data[-8:], "<i4").tolist() == [0, 0]


def test_flipped_bit_is_caught_by_its_crc(ask: Asked, random: np.random.Generator) -> None:
    file = bytearray(jpeg(images(1, random, (64, 64))[0], quality=95))
    crc = np.array([zlib.crc32(file)] * 2, "<u4").tobytes()
    flipped = bytearray(file)
    flipped[-200] ^= 1
    raw = elements(bytes(file), bytes(flipped))
    body, headers = binary([("jpeg", "BYTES", [2], raw), ("crc32", "UINT32", [2], crc)])
    reply = ask("POST", INFER, body=body, headers=headers)
    assert np.frombuffer(reply.data[-8:], "<i4").tolist() == [0, 3]


# -- identity -------------------------------------------------------------------------------------


def test_every_reply_names_the_teacher(ask: Asked) -> None:
    for method, path in (
        ("GET", "/v2"),
        ("GET", "/v2/health/live"),
        ("GET", "/nothing"),
        ("PUT", INFER),
        ("POST", INFER),
        ("GET", "/metrics"),
    ):
        assert ask(method, path).headers["etag"] == f'"{"e" * 64}"', path


def test_another_teacher_is_412(ask: Asked, random: np.random.Generator) -> None:
    pixels = images(1, random)
    body, headers = binary([("image", "UINT8", [1, *SIZE, 3], pixels.tobytes())])
    for tag, status in (
        ('"another"', 412),
        (f'"{"e" * 64}"', 200),
        (f'"another", "{"e" * 64}"', 200),
        ("*", 200),
    ):
        reply = ask("POST", INFER, body=body, headers={**headers, "if-match": tag})
        assert reply.status == status, reply.data
    refused = ask("GET", "/v2", headers={"if-match": '"another"'})
    assert "If-Match expects" in json.loads(refused.data)["error"]


def test_request_ids_are_echoed_or_made(ask: Asked) -> None:
    assert ask("GET", "/v2", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    made = ask("GET", "/v2", headers={"x-request-id": "x" * 500}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)


# -- bad input ------------------------------------------------------------------------------------

GOOD = [("image", "UINT8", [1, *SIZE, 3], bytes(192))]


def head(**changes: Any) -> dict[str, Any]:
    """A good request in JSON, but for what changes in its only input."""
    given = {"name": "image", "datatype": "UINT8", "shape": [1, *SIZE, 3], "data": [0] * 192}
    return {"inputs": [{**given, **changes}], "outputs": [{"name": "status"}]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "head: Invalid JSON"),
        (b"{", "head: Invalid JSON"),
        (b"\xff\xfe", "head: Invalid JSON"),
        (b"[]", "head: Input should be an object, [] found"),
        (b"{}", "inputs: Field required"),
        (b'{"inputs": []}', "inputs: List should have at least 1 item"),
        (b'{"inputs": [' + b"[" * 5000, "head: Invalid JSON"),
        (head(name="picture"), r"inputs[0] ('picture'): no such input, expected one of image"),
        (head(name=7), "inputs.0.name: Input should be a valid string, 7 found"),
        (head(datatype="FP32"), "inputs[0] ('image'): 'FP32' found, expected UINT8"),
        (head(shape=[1, 8, 8]), "shape [1, 8, 8] found, expected [any, any, any, 3]"),
        (head(shape=[0, 8, 8, 3]), "shape [0, 8, 8, 3] found"),
        (head(shape=[1, 8, 8, 4]), "shape [1, 8, 8, 4] found"),
        (head(shape=[-1, 8, 8, 3]), "inputs.0.shape.0: Input should be greater than or equal to 0"),
        (head(shape=["1", 8, 8, 3]), "inputs.0.shape.0: Input should be a valid integer"),
        (head(shape=[1, 8, 9, 3]), "192 numbers found, expected 216 by its shape"),
        (head(data=[0] * 191), "191 numbers found, expected 192"),
        (head(data=[256] * 192), "not UINT8 (Python integer 256 out of bounds"),
        (head(data=[0.5] * 192), "not UINT8"),
        (head(data=["a"] * 192), "not UINT8"),
        (head(data=[[0], [0, 1]]), "not UINT8"),
        (head(data=[10**30] * 192), "not UINT8"),
        (head(data=None), "expected either data or binary_data_size"),
        (head(parameters={"binary_data_size": 4}), "expected either data or binary_data_size"),
        ({"inputs": head()["inputs"] * 2}, "appears twice"),
        ({**head(), "outputs": [{"name": "logits"}]}, "outputs[0] ('logits'): no such output"),
        ({**head(), "outputs": [{"name": "status"}] * 2}, "outputs[1] ('status'): appears twice"),
        ({**head(), "outputs": [{"name": "probs"}]}, "FP16 comes raw only"),
        (
            {"inputs": [{"name": "jpeg", "datatype": "BYTES", "shape": [1], "data": ["*"]}]},
            "inputs[0] ('jpeg')[0]: expected a text in base64",
        ),
        (
            {"inputs": [{"name": "jpeg", "datatype": "BYTES", "shape": [2], "data": ["AA=="]}]},
            "1 elements found, expected 2",
        ),
        (
            {"inputs": [{"name": "view", "datatype": "INT32", "shape": [1], "data": [0]}]},
            "inputs view found, expected one of image, jpeg, sample_id",
        ),
        (
            {
                "inputs": [
                    *head()["inputs"],
                    {"name": "view", "datatype": "INT32", "shape": [1], "data": [0]},
                ]
            },
            "input view found with image, expected crc32 or none",
        ),
        (
            {
                "inputs": [
                    *head()["inputs"],
                    {"name": "crc32", "datatype": "UINT32", "shape": [2], "data": [0, 0]},
                ]
            },
            "input crc32: 2 elements found, expected 1",
        ),
        (
            {
                "inputs": [
                    {"name": "sample_id", "datatype": "UINT64", "shape": [1, 2], "data": [1, 2]}
                ]
            },
            "this server has no samples",
        ),
    ],
)
def test_malformed_json_is_400_and_says_where(ask: Asked, body: Any, text: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = ask("POST", INFER, body=content)
    assert reply.status == 400, reply.data
    assert reply.headers["content-type"] == "application/json"
    assert text in json.loads(reply.data)["error"]


@pytest.mark.parametrize(
    ("inputs", "length", "text"),
    [
        (GOOD, "-1", "'-1' found, expected a number of bytes"),
        (GOOD, "seven", "'seven' found, expected a number of bytes"),
        (GOOD, "9999", "but the body has"),
        (GOOD, "40", "head: Invalid JSON"),
        ([("image", "UINT8", [1, *SIZE, 3], bytes(191))], None, "191 bytes found, expected 192"),
        ([("jpeg", "BYTES", [1], b"\xff\xff\xff\xff")], None, "('jpeg')[0]: 4 bytes are left"),
        ([("jpeg", "BYTES", [1], b"\x01")], None, "('jpeg')[0]: 1 bytes are left"),
        ([("jpeg", "BYTES", [1], elements(b"a", b"b"))], None, "more than 1 elements"),
        ([("jpeg", "BYTES", [3], elements(b"a", b"b"))], None, "2 elements found, expected 3"),
    ],
)
def test_malformed_raw_tensors_are_400(ask: Asked, inputs: Any, length: Any, text: str) -> None:
    body, headers = binary(inputs)
    if length:
        headers["inference-header-content-length"] = length
    reply = ask("POST", INFER, body=body, headers=headers)
    assert reply.status == 400, reply.data
    assert text in json.loads(reply.data)["error"]


def test_bytes_that_no_tensor_claims_are_400(ask: Asked) -> None:
    body, headers = binary(GOOD)
    reply = ask("POST", INFER, body=body + b"more", headers=headers)
    assert reply.status == 400
    assert "4 bytes after the last raw tensor" in json.loads(reply.data)["error"]


def test_stale_head_length_of_a_reused_dict_is_400(ask: Asked) -> None:
    _, headers = binary(GOOD)
    longer = [("image", "UINT8", [10, *SIZE, 3], bytes(1920))]
    body, right = binary(longer)
    assert headers != right
    reply = ask("POST", INFER, body=body, headers=headers)
    assert reply.status == 400


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            [("image", "UINT8", [65, *SIZE, 3], bytes(65 * 192))],
            "65 images found, expected at most 64",
        ),
        ([("image", "UINT8", [1, 200, 200, 3], bytes(120_000))], "200×200 pixels found"),
        ([("image", "UINT8", [2**40, 2**40, 2**40, 3], b"")], "images found, expected at most 64"),
    ],
)
def test_too_large_is_413(ask: Asked, inputs: Any, text: str) -> None:
    body, headers = binary(inputs)
    reply = ask("POST", INFER, body=body, headers=headers)
    assert reply.status == 413, reply.data
    assert text in json.loads(reply.data)["error"]


def test_body_beyond_the_cap_is_413_announced_or_not(ask: Asked) -> None:
    large = bytes(2**20 + 1)
    assert ask("POST", INFER, body=large).status == 413
    chunks = (large[i : i + 2**16] for i in range(0, len(large), 2**16))
    assert ask("POST", INFER, body=chunks).status == 413


def test_bomb_is_413_and_does_not_inflate(ask: Asked) -> None:
    bomb = gzip.compress(bytes(2**28), 9)
    reply = ask("POST", INFER, body=bomb, headers={"content-encoding": "gzip"})
    assert reply.status == 413, reply.data


def test_encodings(ask: Asked) -> None:
    good = json.dumps(head()).encode()
    for encoding, body, status in (
        ("gzip", gzip.compress(good), 200),
        ("deflate", zlib.compress(good), 200),
        ("identity", good, 200),
        ("gzip", good, 400),
        ("gzip", gzip.compress(good)[:-9], 400),
        ("gzip", gzip.compress(good) + b"more", 400),
        ("br", good, 415),
        ("gzip, gzip", good, 415),
    ):
        reply = ask("POST", INFER, body=body, headers={"content-encoding": encoding})
        assert reply.status == status, (encoding, reply.data)
        assert status == 200 or "error" in json.loads(reply.data)


def test_other_routes_and_methods_are_json_errors(ask: Asked) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/teacher/versions/2", 404),
        ("GET", "/v2/models/" + "x" * 101, 400),
        ("GET", "/v2/models/%ff%00/ready", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/models/teacher", 405),
        ("GET", "/docs", 404),
    ):
        reply = ask(method, path, redirect=False)
        assert reply.status == status, (path, reply.data)
        assert set(json.loads(reply.data)) == {"error"}, path


def test_what_is_no_http_is_a_json_error(server: Live) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(b"nonsense\r\n\r\n")
        said = line.recv(4096)
    assert said.startswith(b"HTTP/1.1 400")
    assert "error" in json.loads(said.split(b"\r\n\r\n", 1)[1])


def test_nothing_is_in_flight_afterwards(server: Live) -> None:
    assert server.service.admission.idle
    assert server.service.queue.images == 0
    assert not server.named("error")


def test_small_budget_refuses_before_the_body_is_read(
    hierarchy: SemanticHierarchy, random: np.random.Generator
) -> None:
    budgets = Budgets(images=4, bytes=10_000, requests=2)
    with live(echo_teacher(hierarchy), budgets=budgets) as server:
        url = f"http://{server.address}{INFER}"
        for inputs, what in (
            ([("image", "UINT8", [5, *SIZE, 3], bytes(5 * 192))], "images"),
            ([("image", "UINT8", [1, 100, 100, 3], bytes(30_000))], "bytes"),
        ):
            body, headers = binary(inputs)
            reply = urllib3.request("POST", url, body=body, headers=headers, retries=False)
            assert reply.status == 429
            assert int(reply.headers["retry-after"]) >= 1
            text = json.loads(reply.data)["error"]
            assert f"{what} in flight" in text
            assert "try again in" in text
        body, headers = binary(GOOD)
        assert urllib3.request("POST", url, body=body, headers=headers).status == 200
