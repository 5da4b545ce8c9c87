"""Messages of the Open Inference Protocol over gRPC, as `inference.proto` has them.

They are made from its compiled form in a pool of their own: generated code would demand one version
of protobuf, and a process may hold another client's messages of the same names.
"""

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from distill.wire.refusal import malformed, too_large

SERVICE = "inference.GRPCInferenceService"
MAX_PARSED_BYTES = 4 * 2**20  # of a request, beside raw tensors: parsing holds up the whole process
MAX_FIELDS = 1000  # of a request
RAW_TENSOR = 7 << 3 | 2  # the tag of a ModelInferRequest's raw_input_contents

_compiled = FileDescriptorSet.FromString(
    files(__package__).joinpath("inference.binpb").read_bytes()
)
_pool = DescriptorPool()
_pool.Add(_compiled.file[0])


def message(name: str) -> Any:
    """The class of a message, such as ModelInferRequest."""
    return GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))


def request_from(kind: Any, raw: bytes) -> Any:
    """A request of a class of `message`, as it came.

    Raises:
        Refused: 400, it is none; 413, there is much in it beside raw tensors, which swells when
            it is parsed.
    """
    try:
        if _beside_raw_tensors(raw) > MAX_PARSED_BYTES:
            raise too_large(
                f"more than {MAX_PARSED_BYTES} bytes beside raw_input_contents found, expected "
                "less; send tensors raw"
            )
        return kind.FromString(raw)
    except (DecodeError, IndexError):
        raise malformed(f"no {kind.DESCRIPTOR.name} found, expected one") from None


def _beside_raw_tensors(raw: bytes) -> int:
    """Bytes of the fields, without raw_input_contents; the fields are walked over, not parsed."""
    place = count = 0
    for _ in range(MAX_FIELDS):
        if place == len(raw):
            break
        began = place
        tag, place = _varint(raw, place)
        match tag & 7:
            case 0:
                _, place = _varint(raw, place)
            case 1:
                place += 8
            case 2:
                length, place = _varint(raw, place)
                place += length
            case 5:
                place += 4
            case _:
                raise DecodeError("groups")
        if place > len(raw):
            raise DecodeError("ends early")
        count += (place - began) * (tag != RAW_TENSOR)
    if place < len(raw):
        raise too_large(f"more than {MAX_FIELDS} fields found, expected fewer")
    return count


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    """The number there, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        byte = raw[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise DecodeError("number too long")
