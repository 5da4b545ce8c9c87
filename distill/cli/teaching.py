"""The options that say which teacher, for every command that asks one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from teacher_server.teacher import Teacher

OPTIONS = (
    click.option("--weights", type=click.Path(path_type=Path), help="safetensors or a state dict."),
    click.option("--random-weights", is_flag=True, help="Try the machinery without real weights."),
    click.option(
        "--label-set", default="imagenet21k-p-fall11", show_default=True, help="Name or JSON."
    ),
    click.option("--input-size", type=click.IntRange(8, 4096), help="Pixels; the model's if not."),
    click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="By device."),
)


@dataclass(frozen=True, kw_only=True)
class TeacherChoice:
    """What the options said."""

    teacher: str
    weights: Path | None
    random_weights: bool
    label_set: str
    input_size: int | None
    precision: Literal["float32", "bfloat16"] | None

    def load(self, device: str) -> "Teacher":
        """The teacher, ready to answer."""
        from distill.hierarchy import resolve
        from distill.models import pick_device
        from teacher_server.teacher import load_teacher

        return load_teacher(
            self.teacher,
            resolve(self.label_set),
            device=pick_device(device),
            weights=self.weights,
            random_weights=self.random_weights,
            input_size=self.input_size,
            precision=self.precision,
        )


def teacher(*, required: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--teacher and what goes with it; the command gets a `TeacherChoice`, or None without one."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def chosen(
            teacher: str | None,
            weights: Path | None,
            random_weights: bool,
            label_set: str,
            input_size: int | None,
            precision: Literal["float32", "bfloat16"] | None,
            **others: Any,
        ) -> Any:
            choice = teacher and TeacherChoice(
                teacher=teacher,
                weights=weights,
                random_weights=random_weights,
                label_set=label_set,
                input_size=input_size,
                precision=precision,
            )
            return command(choice=choice or None, **others)

        chosen.__name__, chosen.__doc__ = command.__name__, command.__doc__
        chosen.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
        decorated: Callable[..., Any] = chosen
        for option in reversed(OPTIONS):
            decorated = option(decorated)
        return click.option(
            "--teacher", required=required, help="timm model name, or tresnet_l for the paper's."
        )(decorated)

    return decorate
