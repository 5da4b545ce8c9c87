"""Teachers that another process can make by name."""

from dataclasses import replace

import torch
from live import echo_of, echo_teacher

from distill.errors import TeacherError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.creation import create_model
from distill.teacher_server.teacher.teacher import Teacher


def real_teacher(hierarchy: SemanticHierarchy, seed: int = 0) -> Teacher:
    """A real network, whose answers depend on the shape of the batch in their last bits."""
    torch.manual_seed(seed)
    echo = echo_teacher(hierarchy, (32, 32))
    model = create_model("test_resnet", hierarchy.num_classes).eval()
    return replace(echo, members=(replace(echo.members[0], model=model),))


def tight(hierarchy: SemanticHierarchy, most: int) -> Teacher:
    """Of which only so many images fit into memory."""
    teacher = echo_teacher(hierarchy)
    echo_of(teacher).most = most
    return teacher


def another(hierarchy: SemanticHierarchy) -> Teacher:
    teacher = echo_teacher(hierarchy)
    return replace(teacher, identity=replace(teacher.identity, fingerprint="f" * 64))


def unavailable() -> Teacher:
    raise TeacherError("weights: no such file, expected one")
