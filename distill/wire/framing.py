"""The Open Inference Protocol v2 over HTTP, with binary tensors: bytes to named arrays and back.

A body is a JSON head and then raw tensors in the order of the head's inputs: little-endian, C
order, no padding; an element of BYTES is its length as a 32-bit integer and its bytes. Knows no web
framework and no teacher; the server and the client both speak through it. Specified in
https://github.com/kserve/open-inference-protocol and, for the raw tensors, by the binary tensor
data extension of the Triton Inference Server.
"""

import base64
import binascii
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distill.wire.refusal import malformed

HEAD_LENGTH = "inference-header-content-length"
MAX_HEAD_BYTES = 2**16  # of a head that raw tensors follow
MAX_PARTS, MAX_DIMENSIONS = 16, 8  # inputs and outputs of a request; of a shape
MAX_ID = 1024  # characters

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
BYTES = "BYTES"

# Numbers of a shape, or the elements of a BYTES tensor.
Tensor = NDArray[Any] | list[memoryview]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class InputParameters(_Part):
    """binary_data_size: bytes among the raw tensors; None where `data` holds the numbers."""

    binary_data_size: Annotated[int, Field(ge=0)] | None = None


class InputHead(_Part):
    """A tensor of the request. data: its numbers, flat or nested; base64 texts for BYTES."""

    name: str
    datatype: str
    shape: Annotated[
        list[Annotated[int, Field(ge=0, le=2**40)]], Field(min_length=1, max_length=MAX_DIMENSIONS)
    ]
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class OutputParameters(_Part):
    """binary_data: raw, or as JSON numbers. classification: not supported."""

    binary_data: bool | None = None
    classification: int | None = None


class OutputHead(_Part):
    """A tensor that the client wants."""

    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(_Part):
    """binary_data_output: outputs come raw. timeout: microseconds until the answer is of no use.

    expect: the digest of the model's metadata that the client knows; 412 by a server of another.
    """

    binary_data_output: bool = False
    expect: str | None = None
    timeout: Annotated[int, Field(ge=0)] | None = None


class RequestHead(_Part):
    """What a request asks. outputs: none of them means all but the dense ones."""

    id: Annotated[str, Field(max_length=MAX_ID)] | None = None
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[InputHead], Field(min_length=1, max_length=MAX_PARTS)]
    outputs: Annotated[list[OutputHead], Field(max_length=MAX_PARTS)] = []


def parse_head(raw: bytes | bytearray | memoryview) -> RequestHead:
    """The JSON head.

    Raises:
        Refused: it is not one; says which field.
    """
    try:
        return RequestHead.model_validate_json(bytes(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "head"
        detail = "" if first["type"] in ("missing", "json_invalid") else f", {_short(first)} found"
        raise malformed(f"{where}: {first['msg']}{detail}") from error


def tensors(head: RequestHead, raw: memoryview) -> dict[str, Tensor]:
    """The inputs by name. raw: what follows the head; arrays are views of it.

    Raises:
        Refused: names the input that is wrong, and the element.
    """
    tensors: dict[str, Tensor] = {}
    for where, given in each_input(head):
        size = given.parameters.binary_data_size
        if (size is None) == (given.data is None):
            raise malformed(f"{where}: expected either data or binary_data_size")
        if size is None:
            tensors[given.name] = _from_json(given, where)
            continue
        if size > len(raw):
            raise malformed(f"{where}: binary_data_size {size}, but {len(raw)} bytes are left")
        tensors[given.name] = from_raw(given, raw[:size], where)
        raw = raw[size:]
    if len(raw):
        raise malformed(
            f"{len(raw)} bytes after the last raw tensor, expected none; binary_data_size and "
            f"{HEAD_LENGTH} must add up to the body"
        )
    return tensors


def each_input(head: RequestHead) -> Iterator[tuple[str, InputHead]]:
    """The inputs in turn, each with its place for an error to begin with.

    Raises:
        Refused: 400, one appears twice.
    """
    names: set[str] = set()
    for i, given in enumerate(head.inputs):
        where = f"inputs[{i}] ({_named(given.name)})"
        if given.name in names:
            raise malformed(f"{where}: appears twice, expected each input once")
        names.add(given.name)
        yield where, given


def from_raw(given: InputHead, raw: memoryview, where: str) -> Tensor:
    """One input; arrays are views of `raw`.

    Raises:
        Refused: 400, begins with `where`.
    """
    if given.datatype == BYTES:
        return _elements(raw, math.prod(given.shape), where)
    dtype = _dtype(given.datatype, where)
    expected = math.prod(given.shape) * dtype.itemsize
    if expected != len(raw):
        raise malformed(
            f"{where}: {len(raw)} bytes found, expected {expected} for {given.datatype} "
            f"{given.shape}"
        )
    return np.frombuffer(raw, dtype).reshape(given.shape)


def _elements(raw: memoryview, count: int, where: str) -> list[memoryview]:
    elements: list[memoryview] = []
    while len(raw):
        size = struct.unpack_from("<I", raw)[0] if len(raw) >= 4 else len(raw)
        if len(raw) < 4 + size:
            raise malformed(
                f"{where}[{len(elements)}]: {len(raw)} bytes are left, expected a 32-bit length "
                "and as many bytes"
            )
        if len(elements) == count:
            raise malformed(f"{where}: more than {count} elements, expected as many as its shape")
        elements.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    if len(elements) != count:
        raise malformed(f"{where}: {len(elements)} elements found, expected {count} by its shape")
    return elements


def _from_json(given: InputHead, where: str) -> Tensor:
    count = math.prod(given.shape)
    if given.datatype == BYTES:
        texts = given.data or []
        if len(texts) != count:
            raise malformed(f"{where}: {len(texts)} elements found, expected {count} by its shape")
        return [_from_base64(text, f"{where}[{i}]") for i, text in enumerate(texts)]
    dtype = _dtype(given.datatype, where)
    if given.datatype == "FP16":
        raise malformed(f"{where}: FP16 as JSON, expected it raw; send binary_data_size")
    try:
        # Through objects: NumPy would make floats of integers that need all 64 bits.
        elements = np.array(given.data, np.object_).ravel().tolist()
        fitting = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
        strange = next((value for value in elements if type(value) not in fitting), None)
        if strange is not None:
            raise TypeError(f"{repr(strange)[:40]} found")
        values = np.array(elements, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise malformed(f"{where}: not {given.datatype} ({str(error)[:200]})") from error
    if values.size != count:
        raise malformed(f"{where}: {values.size} numbers found, expected {count} by its shape")
    return values.reshape(given.shape)


def _from_base64(text: object, where: str) -> memoryview:
    try:
        return memoryview(base64.b64decode(text, validate=True))  # type: ignore[arg-type]
    except (TypeError, ValueError, binascii.Error) as error:
        raise malformed(f"{where}: expected a text in base64; or send it raw") from error


def _dtype(name: str, where: str) -> np.dtype[Any]:
    if name not in DTYPES:
        known = ", ".join([*DTYPES, BYTES])
        raise malformed(f"{where}: datatype {_named(name)} found, expected one of {known}")
    dtype: np.dtype[Any] = np.dtype(DTYPES[name])
    return dtype


def _short(error: Mapping[str, Any]) -> str:
    return repr(error.get("input"))[:60]


def _named(name: str) -> str:
    """A client's text, short and without control characters."""
    return repr(name[:40])


def requested_outputs(
    head: RequestHead, available: Sequence[str], default: Sequence[str]
) -> list[str]:
    """The names of the outputs, in the order in which they are asked for.

    Raises:
        Refused: one is unknown, appears twice, or is wanted as a classification.
    """
    names = [output.name for output in head.outputs]
    for i, output in enumerate(head.outputs):
        where = f"outputs[{i}] ({_named(output.name)})"
        if output.name not in available:
            raise malformed(f"{where}: no such output, expected one of {', '.join(available)}")
        if output.parameters.classification:
            raise malformed(f"{where}: classification is not supported; ask for the tensor itself")
        if names.index(output.name) != i:
            raise malformed(f"{where}: appears twice, expected each output once")
        if output.name == "probs" and not _is_raw(output, head):
            raise malformed(f"{where}: FP16 comes raw only; ask for it with binary_data")
    return names or list(default)


def _is_raw(output: OutputHead, head: RequestHead) -> bool:
    own = output.parameters.binary_data
    return head.parameters.binary_data_output if own is None else own


def raw_outputs(head: RequestHead, names: Sequence[str]) -> set[str]:
    """Those of `names` that are to come raw."""
    if not head.outputs:
        return set(names) if head.parameters.binary_data_output else set()
    return {output.name for output in head.outputs if _is_raw(output, head)}


def encode_body(
    fields: Mapping[str, Any],
    key: str,
    arrays: Mapping[str, Tensor | Sequence[bytes]],
    raw: set[str],
) -> tuple[bytes, int | None]:
    """A body, and the length of its head, None where all of it is JSON.

    fields: what else the head says. key: "outputs", or "inputs" of a request. raw: the names of
    arrays that follow the head; the others are JSON.
    """
    described, tail = [], []
    for name, values in arrays.items():
        content = raw_bytes(values) if name in raw else None
        described.append(_described(key, name, values, content))
        if content is not None:
            tail.append(content)
    head = json.dumps({**fields, key: described}, separators=(",", ":")).encode()
    return b"".join([head, *tail]), len(head) if tail else None


def raw_arrays(described: Sequence[Mapping[str, Any]], raw: memoryview) -> dict[str, NDArray[Any]]:
    """The outputs of a reply that came raw.

    Raises:
        KeyError, TypeError, ValueError: it is not a reply.
        Refused: its sizes do not add up.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for each in described:
        size, dtype = int(each["parameters"]["binary_data_size"]), _dtype(each["datatype"], "reply")
        arrays[each["name"]] = np.frombuffer(raw[:size], dtype).reshape(each["shape"])
        raw = raw[size:]
    return arrays


def raw_bytes(values: Tensor | Sequence[bytes]) -> bytes | memoryview:
    """A tensor as it follows a head."""
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).data.cast("B") if values.size else b""
    return b"".join(part for each in values for part in (struct.pack("<I", len(each)), each))


def _described(
    key: str, name: str, values: Tensor | Sequence[bytes], content: bytes | memoryview | None
) -> dict[str, Any]:
    is_array = isinstance(values, np.ndarray)
    tensor: dict[str, Any] = {
        "name": name,
        "datatype": datatype(values.dtype) if is_array else BYTES,  # type: ignore[union-attr]
        "shape": list(values.shape) if is_array else [len(values)],  # type: ignore[union-attr]
    }
    if content is not None:
        tensor["parameters"] = {"binary_data_size": len(content)}
    elif is_array:
        tensor["data"] = values.ravel().tolist()  # type: ignore[union-attr]
    else:
        tensor["data"] = [base64.b64encode(each).decode() for each in values]
    return tensor


def datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a NumPy dtype."""
    return next(name for name, own in DTYPES.items() if np.dtype(own) == dtype)
