"""The device that these tests are for; where there is none, what can runs on the CPU."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """A GPU, or the CPU that stands in for it: the tests must not rot."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture
def gpu() -> torch.device:
    """A GPU; nothing else will do."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", 0)


@pytest.fixture
def little_memory(gpu: torch.device) -> Iterator[None]:
    """A twentieth of a GPU's."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.02)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
