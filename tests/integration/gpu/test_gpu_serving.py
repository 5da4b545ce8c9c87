"""A teacher server on a GPU: pixels and JPEGs, several lanes, several GPUs."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from live import images, live
from made_teachers import real_teacher
from numpy.typing import NDArray
from PIL import Image

from distill.data.images import decode_image
from distill.data.views import ViewParams, render_view
from distill.hierarchy.semantic import SemanticHierarchy
from distill.targets.tensors import SparseTargets
from distill.teacher_server.teacher.teacher import Teacher
from distill.wire.client import TeacherClient

pytestmark = pytest.mark.gpu
SIZE = (32, 32)


def teacher_on(device: torch.device, hierarchy: SemanticHierarchy) -> Teacher:
    plain = real_teacher(hierarchy)
    member = plain.members[0]
    moved = replace(member, model=member.model.to(device))
    return replace(plain, members=(moved,), device=device)


def assert_answers(found: SparseTargets, teacher: Teacher, pixels: torch.Tensor) -> None:
    """Those of these pixels, up to the rounding of other kernels and of the wire."""
    exact = teacher.targets([pixels])
    confidence = exact.confidence.cpu()
    np.testing.assert_allclose(found.confidence.float(), confidence, atol=5e-3)


def client_of(address: str) -> closing[TeacherClient]:
    return closing(TeacherClient(f"http://{address}", deadline_s=30))


def test_pixels_are_answered_and_never_mixed_up(
    hierarchy: SemanticHierarchy, device: torch.device
) -> None:
    """Two lanes of one device, batches ahead in pinned memory."""
    teacher = teacher_on(device, hierarchy)
    rounds = 50 if device.type == "cuda" else 5
    with live(teacher, lanes=2, max_batch_size=16) as server:

        def ask(seed: int) -> None:
            random = np.random.default_rng(seed)
            with client_of(server.address) as client:
                for _ in range(rounds):
                    pixels = images(int(random.integers(1, 60)), random, SIZE)
                    found = client.infer_images(pixels)
                    assert_answers(found, teacher, torch.from_numpy(pixels).permute(0, 3, 1, 2))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))


def test_jpegs_are_decoded_and_answered(hierarchy: SemanticHierarchy, device: torch.device) -> None:
    teacher = teacher_on(device, hierarchy)
    random = np.random.default_rng(0)
    files = [jpeg(random.integers(0, 256, (90, 120, 3), np.uint8)) for _ in range(40)]
    with live(teacher, max_batch_size=16) as server, client_of(server.address) as client:
        found = client.infer_jpegs(files)
    assert_answers(found, teacher, rendered(files))


def test_two_gpus_answer_side_by_side(hierarchy: SemanticHierarchy, gpu: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    random = np.random.default_rng(0)
    first, second = (teacher_on(torch.device("cuda", i), hierarchy) for i in range(2))
    with live(first, others=[second], max_batch_size=8) as server:
        for _ in range(20):
            pixels = images(50, random, SIZE)
            with client_of(server.address) as client:
                found = client.infer_images(pixels)
            assert_answers(found, first, torch.from_numpy(pixels).permute(0, 3, 1, 2))


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def rendered(files: Sequence[bytes]) -> torch.Tensor:
    return torch.stack([render_view(decode_image(each), ViewParams(), SIZE) for each in files])
