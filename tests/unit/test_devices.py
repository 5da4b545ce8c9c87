"""Devices that are asked for, and what is said of those in trouble."""

from pathlib import Path

import pytest
import torch

from distill.errors import ConfigError, DeviceUnavailableError, OutOfMemoryError
from distill.models import devices
from distill.models.devices import device_error, devices_named, pick_device


def test_devices_that_are_not_there_are_named() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
        pick_device("gpu0")
    with pytest.raises(ConfigError, match="use --device auto"):
        pick_device("cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_gpu_that_torch_cannot_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert pick_device("auto:3") == torch.device("cpu")
    monkeypatch.setattr(devices, "NVIDIA", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for choose in (pick_device, devices_named):
        with pytest.raises(ConfigError, match=r"GPU is here, but torch .* cannot use it \("):
            choose("auto")
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices_named("auto") == ["cpu"]


IN_A_THREAD = """Caught AcceleratorError in pin memory thread for device 0.
Original Traceback (most recent call last):
  File "pin_memory.py", line 41, in do_one_step
torch.AcceleratorError: CUDA error: unspecified launch failure"""


WITH_HINTS = """CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."""


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), OutOfMemoryError, "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError, "room for"),
        (MemoryError(), OutOfMemoryError, r"out of memory \(MemoryError\), expected room for a b"),
        (RuntimeError("CUDA error: out of memory"), OutOfMemoryError, "room for a batch"),
        (RuntimeError("CUDA error: device-side assert"), DeviceUnavailableError, "was lost"),
        (RuntimeError(WITH_HINTS), DeviceUnavailableError, r"was lost \(CUDA error: an illegal"),
        (RuntimeError(IN_A_THREAD), DeviceUnavailableError, r"\(torch.AcceleratorError: CUDA err"),
        (RuntimeError("The NVIDIA driver on your system is too old"), ConfigError, "update the dr"),
        (RuntimeError("CUDA error: no kernel image is available"), ConfigError, "fits torch"),
    ],
)
def test_errors_of_devices_are_one_line(error: Exception, kind: type[Exception], said: str) -> None:
    told = device_error(error)
    assert type(told) is kind
    assert "\n" not in str(told)
    with pytest.raises(kind, match=said):
        raise told


def test_other_errors_are_none_of_a_device() -> None:
    assert device_error(RuntimeError("shapes differ")) is None
