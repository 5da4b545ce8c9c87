"""The options that say where a student's targets come from: a store, a server, a teacher."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from distill.cli.options.group import gathered
from distill.cli.options.images import CACHE

if TYPE_CHECKING:
    from distill.hierarchy.semantic import SemanticHierarchy
    from distill.targets.protocol import TrainingTargets
    from trainers.sources.in_process import InProcessTargets

TIMM = "timm:"


@dataclass(frozen=True, kw_only=True)
class TargetsChoice:
    """What the options said."""

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
        yes_or_no: bool = False,
    ) -> "TrainingTargets | None":
        """Ready to be asked; None without --targets.

        All arguments are for a teacher in this process.
        """
        from distill.errors import ConfigError

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
        if in_process:
            return self._in_process(device, hierarchy(), yes_or_no)
        if self.targets.startswith(("http://", "https://")):
            from distill.wire.client import TeacherClient
            from trainers.sources.server import ServerTargets

            live = ServerTargets(TeacherClient(self.targets, api_key=self.api_key))
            click.get_current_context().call_on_close(live.close)
            return live
        from store.logit_store import LogitStore
        from store.views.cache import Cache
        from trainers.sources.store import StoreTargets

        cache_bytes = None if self.cache_gib is None else int(self.cache_gib * 2**30)
        decoded = Cache(self.cache.expanduser(), cache_bytes)
        mode = None if self.read == "auto" else self.read
        return StoreTargets(LogitStore.open(self.targets), decoded, mode)

    def _in_process(
        self, device: str, hierarchy: "SemanticHierarchy", yes_or_no: bool
    ) -> "InProcessTargets":
        from distill.cli.options.teacher import TeacherChoice
        from trainers.sources.in_process import InProcessTargets

        assert self.targets
        teacher = TeacherChoice(
            teachers=(self.targets.removeprefix(TIMM),),
            weights=(self.teacher_weights,) if self.teacher_weights else (),
            heads=(self.teacher_head,) if self.teacher_head else (),
            random_weights=False,
            label_set=hierarchy.name,
            input_size=None,
            precision=None,
            confidence="top",
        )
        return InProcessTargets(teacher.load(device, hierarchy), yes_or_no=yes_or_no)


targets = gathered(
    "targeting",
    (
        click.option(
            "--targets",
            help="Store (a folder or s3://…), teacher server (http://…) or teacher in this process "
            "(timm:NAME); without, labels alone.",
        ),
        click.option(
            "--api-key",
            envvar="DISTILL_API_KEY",
            help="Of the teacher server; or in DISTILL_API_KEY.",
        ),
        click.option("--teacher-weights", help="File for timm:NAME; the hub's if not."),
        click.option("--teacher-head", help="Of timm:NAME, as precompute's --head."),
        click.option(
            "--cache",
            type=click.Path(path_type=Path),
            default=Path(CACHE),
            show_default=True,
            help="Folder of decoded views.",
        ),
        click.option(
            "--cache-gib",
            type=click.FloatRange(0, 2**30),
            help="Most it may hold; all by default.",
        ),
        click.option(
            "--read",
            type=click.Choice(["auto", "resident", "streamed"]),
            default="auto",
            show_default=True,
            help="Whole views decoded into --cache, or blocks as needed; auto by what fits.",
        ),
    ),
    TargetsChoice,
)
