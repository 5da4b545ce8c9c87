"""The options that say which teacher, for every command that asks one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from distill.cli.options.group import Command, gathered

if TYPE_CHECKING:
    from distill.hierarchy.semantic import SemanticHierarchy
    from teacher_server.teacher.teacher import Teacher

HUB = "hub"
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class TeacherChoice:
    """What the options said. weights, heads: none, or one for each of `teachers`."""

    teachers: tuple[str, ...]
    weights: tuple[str, ...]
    heads: tuple[str, ...]
    random_weights: bool
    label_set: str
    input_size: int | None
    precision: Literal["float32", "bfloat16"] | None
    confidence: Literal["top", "reach"]

    def with_absolute_paths(self) -> "TeacherChoice":
        """For processes that run in other folders."""
        files = (*self.weights, *self.heads, self.label_set)
        absolute = {file: str(Path(file).absolute()) for file in files if Path(file).is_file()}
        return replace(
            self,
            weights=tuple(absolute.get(file, file) for file in self.weights),
            heads=tuple(absolute.get(file, file) for file in self.heads),
            label_set=absolute.get(self.label_set, self.label_set),
        )

    def load(self, device: str, hierarchy: "SemanticHierarchy | None" = None) -> "Teacher":
        """The teacher, ready to answer. hierarchy: of its classes, instead of --label-set."""
        from distill.hierarchy.semantic import resolve
        from distill.models import pick_device
        from teacher_server.teacher.loading import MemberChoice, load_teacher

        weights = _one_each("--weights", self.weights, self.teachers, HUB)
        heads = _one_each("--head", self.heads, self.teachers, AUTO)
        choices = [
            MemberChoice(
                name=name,
                weights=None if file == HUB else Path(file),
                random_weights=self.random_weights,
                head=None if head == AUTO else head,
                input_size=self.input_size,
            )
            for name, file, head in zip(self.teachers, weights, heads, strict=True)
        ]
        return load_teacher(
            choices,
            hierarchy or resolve(self.label_set),
            device=pick_device(device),
            precision=self.precision,
            confidence=self.confidence,
        )


def teacher(*, required: bool = True) -> Callable[[Command], Command]:
    """--teacher and what goes with it; the command gets a `TeacherChoice`, or None without one."""
    return gathered(
        "choice",
        (
            click.option(
                "--teacher",
                "teachers",
                required=required,
                multiple=True,
                help="timm model name, or tresnet_l for the paper's. Several are averaged.",
            ),
            click.option(
                "--weights",
                multiple=True,
                help="safetensors or a state dict; hub for timm's. One for each --teacher.",
            ),
            click.option(
                "--head",
                "heads",
                multiple=True,
                help="semantic, or the label set of one softmax: imagenet-1k, -12k, -21k, -22k, "
                "-22k-ms or a file of wnids. Auto by default. One for each --teacher.",
            ),
            click.option(
                "--random-weights", is_flag=True, help="Try the machinery without real weights."
            ),
            click.option(
                "--label-set",
                default="imagenet21k-p-fall11",
                show_default=True,
                help="Hierarchy of the answers: a name or a JSON.",
            ),
            click.option(
                "--input-size", type=click.IntRange(8, 4096), help="Pixels; the model's if not."
            ),
            click.option(
                "--precision", type=click.Choice(["float32", "bfloat16"]), help="By device."
            ),
            click.option(
                "--confidence",
                type=click.Choice(["top", "reach"]),
                default="top",
                show_default=True,
                help="Sum of the top 5%; or, for a --head of one softmax, the probability that "
                "reaches a hierarchy.",
            ),
        ),
        _choice,
    )


def _choice(**given: Any) -> TeacherChoice | None:
    return TeacherChoice(**given) if given["teachers"] else None


def _one_each(
    option: str, given: tuple[str, ...], teachers: tuple[str, ...], default: str
) -> tuple[str, ...]:
    from distill.errors import ConfigError

    if given and len(given) != len(teachers):
        raise ConfigError(
            f"{len(teachers)} --teacher and {len(given)} {option} found, expected one for each, in "
            f"their order; write `{option} {default}` for those that need none"
        )
    return given or (default,) * len(teachers)
