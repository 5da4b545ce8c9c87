"""Devices: which there are, which one is meant, and what their errors mean to a user."""

import os
from pathlib import Path

import torch

from distill.errors import (
    ConfigError,
    DeviceUnavailableError,
    DistillError,
    OutOfMemoryError,
    first_line,
)

NVIDIA = Path("/dev/nvidiactl")  # is there where a driver is
HIDDEN = ("", "-1", "NoDevFiles")  # CUDA_VISIBLE_DEVICES of those who want none
OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc"),
    *("status_alloc_failed", "device_allocation_failed"),  # cuBLAS, cuDNN
)
UNFIT = ("NVIDIA driver", "driver version is insufficient", "no kernel image is available")
LOST = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS", "NCCL")


def gpus() -> list[str]:
    """All of this machine, as torch names them; none without one."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def devices_named(name: str) -> list[str]:
    """All that work may be spread over: `auto` is every GPU, or the CPU; another name is itself.

    Raises:
        ConfigError: as `pick_device`.
    """
    if name != "auto":
        return [name]
    return gpus() or [str(pick_device(name))]


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU; `auto:N` is GPU N modulo their number, or the CPU.

    Raises:
        ConfigError: there is no such device, or `auto` would take the CPU beside a GPU that torch
        cannot use.
    """
    kind, _, rank = name.partition(":")
    if kind == "auto" and (rank.isdecimal() or name == "auto"):
        count = torch.cuda.device_count()
        if not count:
            _require_no_gpu()
        return torch.device("cuda", int(rank or 0) % count) if count else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} found, expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} found, but this machine has {torch.cuda.device_count()} CUDA "
            "devices; use --device auto"
        )
    return device


def _require_no_gpu() -> None:
    """A driver too old for this torch, say, must not mean days on a CPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in HIDDEN
    if hidden or torch.version.cuda is None or not NVIDIA.exists():
        return
    try:
        torch.cuda.init()
        why = "it finds none"
    except (RuntimeError, AssertionError) as error:
        why = first_line(error)
    raise ConfigError(
        f"an NVIDIA GPU is here, but torch {torch.__version__} cannot use it ({why}), expected a "
        "driver for its CUDA; update the driver, take a torch for it, or say --device cpu"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might do."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY)


def is_lost(error: BaseException) -> bool:
    """Whether a device does not answer any more."""
    return any(sign in str(error) for sign in LOST)


def device_error(error: BaseException) -> DistillError | None:
    """What a user is told of an error of torch's; None where it is none of a device's.

    Those of a loader's threads begin with another's traceback, others end with hints.
    """
    said = first_line(error, *OUT_OF_MEMORY, *UNFIT, *LOST)
    if is_out_of_memory(error):
        return OutOfMemoryError(
            f"out of memory ({said}), expected room for a batch; lower --batch-size or "
            "--image-size, or choose another --device"
        )
    if any(sign in str(error) for sign in UNFIT):
        return ConfigError(
            f"the device cannot be used ({said}), expected one that fits torch "
            f"{torch.__version__}; update the driver, take a torch for it, or say --device cpu"
        )
    if is_lost(error):
        return DeviceUnavailableError(
            f"the device was lost ({said}), expected it to answer; run the same command again, it "
            "goes on from what is there, or choose another --device"
        )
    return None
