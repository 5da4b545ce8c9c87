"""The options that choose a teacher, for every command that runs one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from distill.cli.options import common
from distill.cli.options.checks import known_models
from distill.cli.options.command import option, setting
from distill.cli.options.group import Command, option_group
from distill.cli.options.images import to_stderr
from distill.errors import ConfigError

if TYPE_CHECKING:
    from distill.hierarchy.semantic import SemanticHierarchy
    from distill.teacher_server.teacher.teacher import Teacher

HUB = "hub"
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class TeacherChoice:
    """The chosen teacher. weights, heads: none, or one for each of `teachers`."""

    teachers: tuple[str, ...]
    weights: tuple[str, ...]
    heads: tuple[str, ...]
    random_weights: bool
    label_set: str
    input_size: int | None
    precision: Literal["float32", "bfloat16"] | None
    confidence: Literal["top", "reach"]

    def with_absolute_paths(self) -> "TeacherChoice":
        """Return the choice with absolute paths, for processes that run in other folders."""
        files = (*self.weights, *self.heads, self.label_set)
        absolute = {file: str(Path(file).absolute()) for file in files if Path(file).exists()}
        return replace(
            self,
            weights=tuple(absolute.get(file, file) for file in self.weights),
            heads=tuple(absolute.get(file, file) for file in self.heads),
            label_set=absolute.get(self.label_set, self.label_set),
        )

    def load(
        self,
        device: str,
        hierarchy: "SemanticHierarchy | None" = None,
        say: Callable[[str], None] = to_stderr,
    ) -> "Teacher":
        """The teacher, ready to answer, with a word of what it was taken for.

        hierarchy: of its classes, instead of --label-set.
        """
        from distill.hierarchy.semantic import resolve
        from distill.models.devices import pick_device
        from distill.teacher_server.teacher.loading import MemberChoice, load_teacher

        weights = _one_each("--weights", self.weights, self.teachers, HUB)
        heads = _one_each("--head", self.heads, self.teachers, AUTO)
        choices = [
            MemberChoice(
                name=name,
                weights=None if file == HUB else file,
                random_weights=self.random_weights,
                head=None if head == AUTO else head,
                input_size=self.input_size,
            )
            for name, file, head in zip(self.teachers, weights, heads, strict=True)
        ]
        teacher = load_teacher(
            choices,
            hierarchy or resolve(self.label_set),
            device=pick_device(device),
            precision=self.precision,
            confidence=self.confidence,
        )
        for line in (line for member in teacher.members for line in member.about):
            say(f"teacher: {line}")
        return teacher

    def load_again(self, device: str) -> "Teacher":
        """`load` without a word, for another process."""
        return self.load(device, say=lambda line: None)


def teacher_options(*, required: bool = True) -> Callable[[Command], Command]:
    """--teacher and what goes with it; the command gets a `TeacherChoice`, or None without one."""
    return option_group(
        "teacher_choice",
        (
            option(
                "--teacher",
                "teachers",
                required=required,
                multiple=True,
                callback=known_models,
                help="timm model name; tresnet_l is the paper's. Repeat it to average several.",
            ),
            option(
                "--weights",
                multiple=True,
                show_default="hub",
                help="Weight file, a run's or timm's folder, hf-hub:NAME, or hub for timm's own; "
                "one per --teacher.",
            ),
            setting(
                "--head",
                "heads",
                multiple=True,
                show_default="auto",
                help="semantic, single-label, multi-label, flat or sigmoid (those two, their "
                "answers as they are), or the label set of a flat classifier: imagenet-1k, -12k, "
                "-21k, -22k, -22k-ms or a file of wnids; one per --teacher.",
            ),
            option(
                "--random-weights",
                is_flag=True,
                show_default=False,
                help="Allow random weights, for a trial run.",
            ),
            common.label_set(setting=True),
            setting(
                "--input-size",
                type=click.IntRange(8, 4096),
                show_default="the model's",
                help="Pixels per side.",
            ),
            setting(
                "--precision",
                type=click.Choice(["float32", "bfloat16"]),
                show_default="bfloat16 on a GPU, float32 elsewhere",
                help="Floating-point format.",
            ),
            setting(
                "--confidence",
                type=click.Choice(["top", "reach"]),
                default="top",
                help="P_k: the sum of the top 5%; or, of flat classifiers, the probability that "
                "reaches the hierarchy.",
            ),
        ),
        _choice,
    )


def _choice(**given: Any) -> TeacherChoice | None:
    if given["random_weights"] and any(file != HUB for file in given["weights"]):
        raise ConfigError("--weights and --random-weights found, expected one of them")
    return TeacherChoice(**given) if given["teachers"] else None


def _one_each(
    option: str, given: tuple[str, ...], teachers: tuple[str, ...], default: str
) -> tuple[str, ...]:
    if given and len(given) != len(teachers):
        raise ConfigError(
            f"{len(teachers)} --teacher and {len(given)} {option} found, expected one for each, in "
            f"their order; write `{option} {default}` for those that need none"
        )
    return given or (default,) * len(teachers)
