"""The options that choose a student's targets: a store, a server or a teacher."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from distill.cli.options.checks import existing_targets
from distill.cli.options.command import PATH, option, setting
from distill.cli.options.group import option_group
from distill.cli.options.images import to_stderr
from distill.files import CACHE

if TYPE_CHECKING:
    from distill.hierarchy.semantic import SemanticHierarchy
    from distill.targets.protocol import TrainingTargets


@dataclass(frozen=True, kw_only=True)
class TargetsChoice:
    """The chosen source of targets."""

    targets: str | None
    api_key: str | None
    teacher_weights: str | None
    teacher_head: str | None
    cache: Path
    cache_gib: float | None
    read: Literal["auto", "resident", "streamed"]

    def open(
        self,
        device: str,
        hierarchy: "Callable[[], SemanticHierarchy]",
        *,
        of_tags: bool = False,
        give_up: Callable[[], bool] = lambda: False,
    ) -> "TrainingTargets | None":
        """Ready to be asked; None without --targets.

        give_up: asked while a server is waited for. The others are for a teacher in this process;
        of_tags: its classes are tags, unless its head is given.
        """
        from distill.api.opening import open_answers
        from distill.errors import ConfigError
        from distill.trainers.models.trained import TIMM
        from distill.trainers.sources.server import ServerTargets

        if self.cache_gib is not None and not self.cache_gib >= 0:
            raise ConfigError(f"--cache-gib {self.cache_gib} found, expected a number of GiB")
        in_process = (self.targets or "").startswith(TIMM)
        if not in_process and (self.teacher_weights or self.teacher_head):
            raise ConfigError(
                "--teacher-weights or --teacher-head found without --targets timm:NAME, expected "
                "a teacher that they are of"
            )
        if not self.targets:
            return None
        answers = open_answers(
            self.targets,
            hierarchy,
            device=device,
            cache=self.cache,
            cache_gib=self.cache_gib,
            read=self.read,
            api_key=self.api_key,
            teacher_weights=self.teacher_weights,
            teacher_head=self.teacher_head or ("sigmoid" if in_process and of_tags else None),
            give_up=give_up,
            say=to_stderr,
        )
        if isinstance(answers, ServerTargets):
            click.get_current_context().call_on_close(answers.close)
        return answers


target_options = option_group(
    "targets_choice",
    (
        option(
            "--targets",
            callback=existing_targets,
            help="Store (folder, s3://…, https://…, hf://…), teacher server (https://…), or "
            "timm:NAME for a teacher in this process; without it, labels only.",
        ),
        setting(
            "--api-key",
            envvar="DISTILL_API_KEY",
            show_envvar=True,
            help="API key of the teacher server.",
            section="Input",
        ),
        setting("--teacher-weights", show_default="hub", help="Weight file of timm:NAME."),
        setting(
            "--teacher-head",
            show_default="auto",
            help="Head of timm:NAME, as --head of precompute.",
        ),
        setting("--cache", type=PATH, default=Path(CACHE), help="Folder for decoded views."),
        setting(
            "--cache-gib",
            type=click.FloatRange(0, 2**30),
            show_default="no limit",
            help="Largest size of --cache, in GiB.",
        ),
        setting(
            "--read",
            type=click.Choice(["auto", "resident", "streamed"]),
            default="auto",
            help="resident decodes whole views into --cache, streamed reads blocks as needed.",
        ),
    ),
    TargetsChoice,
)
