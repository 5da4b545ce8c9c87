"""Messages of the Open Inference Protocol over gRPC, as `inference.proto` has them.

They are made from its compiled form in a pool of their own: generated code would demand one version
of protobuf, and a process may hold another client's messages of the same names.
"""

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

SERVICE = "inference.GRPCInferenceService"

_compiled = FileDescriptorSet.FromString(
    files(__package__).joinpath("inference.binpb").read_bytes()
)
_pool = DescriptorPool()
_pool.Add(_compiled.file[0])


def message(name: str) -> Any:
    """The class of a message, such as ModelInferRequest."""
    return GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))
