"""Open targets, wherever they come from, and check them against the images they are for."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from distill.api.shared import SharedTargets
from distill.api.targets import Targets
from distill.data.source import ImageSource, label_indices, open_source
from distill.data.view_policy import ViewPolicy
from distill.errors import ConfigError
from distill.files import CACHE, tar_indexes
from distill.hierarchy.names import DEFAULT_LABEL_SET
from distill.hierarchy.semantic import SemanticHierarchy, resolve
from distill.models.devices import pick_device
from distill.progress import note
from distill.store.logit_store import LogitStore
from distill.store.places.web import is_store
from distill.store.views.cache import Cache
from distill.targets.protocol import TrainingTargets
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.trainers.models.trained import TIMM
from distill.trainers.sources.in_process import InProcessTargets
from distill.trainers.sources.server import ServerTargets
from distill.trainers.sources.store import StoreTargets
from distill.trainers.training.matching import check_targets
from distill.wire.client import TeacherClient


def open_targets(
    targets: str | Path,
    *,
    data: str | Path | ImageSource,
    split: str = "train",
    label_set: str | None = None,
    views: ViewPolicy | None = None,
    cache: str | Path = CACHE,
    cache_gib: float | None = None,
    read: Literal["auto", "resident", "streamed"] = "auto",
    api_key: str | None = None,
    teacher_weights: str | Path | None = None,
    teacher_head: str | None = None,
    device: str = "auto",
    max_bad_fraction: float = 0.001,
    say: Callable[[str], None] | None = None,
) -> Targets:
    """What a teacher says of a data set, checked: the same images, labels and views.

    Args:
        targets: a store (a folder, s3://…, https://…, hf://…), a teacher server (http://…), or
            timm:NAME for a teacher in this process, on `device`.
        data: the images, as `distill precompute --data` takes them; split: which of them.
        label_set: of timm:NAME; a store and a server bring theirs.
        views: how images are augmented, where the targets do not say it; with `frames`, data are
            clips.
        cache, cache_gib, read: where decoded views are kept, at most so many GiB, and whether at
            all; as of `distill pretrain`.
        api_key: of the server; DISTILL_API_KEY by default.
        teacher_weights, teacher_head: of timm:NAME, as --weights and --head of precompute.
        max_bad_fraction: share of unreadable images beyond which reading them raises DataError.
        say: told what was understood, line by line; None prints to standard error.

    Raises:
        StoreMismatchError: the targets are of other images or labels, or this machine draws other
            views than the teacher saw.
        DistillError: something is not there, not whole, or contradicts itself; one line each.
    """
    say = say or _to_stderr
    _require_sense(targets, data, label_set, views, read, device, cache_gib, max_bad_fraction)
    answers = open_answers(
        str(targets),
        lambda: resolve(label_set or DEFAULT_LABEL_SET),
        device=device,
        cache=Path(cache),
        cache_gib=cache_gib,
        read=read,
        api_key=api_key or os.environ.get("DISTILL_API_KEY"),
        teacher_weights=None if teacher_weights is None else str(teacher_weights),
        teacher_head=teacher_head,
        say=say,
    )
    if views and answers.policy and views != answers.policy:
        raise ConfigError(
            f"views {views.to_json()} found, but the targets of {answers.location} are of views "
            f"with {answers.policy.to_json()}, expected the same; leave views out"
        )
    given = answers.policy or views
    if isinstance(data, ImageSource):
        source = data
    else:
        frames = given.frames if given else 0
        source = open_source(data, split, indexes=tar_indexes(), frames=frames)
    for line in source.describe():
        say(f"data: {line}")
    labels = label_indices(source, answers.hierarchy)
    check_targets(answers, source, labels, say)
    policy = given or ViewPolicy(frames=source.frames)
    source.require_frames(policy.frames)
    shared = SharedTargets(
        answers,
        source,
        labels,
        policy=policy,
        max_bad_fraction=max_bad_fraction,
    )
    return Targets(shared)


def open_answers(
    location: str,
    hierarchy: Callable[[], SemanticHierarchy],
    *,
    device: str,
    cache: Path,
    cache_gib: float | None = None,
    read: Literal["auto", "resident", "streamed"] = "auto",
    api_key: str | None = None,
    teacher_weights: str | None = None,
    teacher_head: str | None = None,
    give_up: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = note,
) -> TrainingTargets:
    """A store, a server, or a teacher of `hierarchy` in this process, ready to be asked.

    give_up: asked while a server is waited for.
    """
    if cache_gib is not None and not cache_gib >= 0:
        raise ConfigError(f"cache_gib {cache_gib} found, expected a number of GiB")
    if location.startswith(TIMM):
        choice = MemberChoice(
            name=location.removeprefix(TIMM), weights=teacher_weights, head=teacher_head
        )
        teacher = load_teacher([choice], hierarchy(), device=pick_device(device))
        for line in teacher.members[0].about:
            say(f"teacher: {line}")
        return InProcessTargets(teacher)
    if teacher_weights or teacher_head:
        raise ConfigError(
            "weights or a head of a teacher found without timm:NAME, expected a teacher that they "
            "are of"
        )
    if location.startswith(("http://", "https://")) and not is_store(location):
        return ServerTargets(TeacherClient(location, api_key=api_key, say=say, give_up=give_up))
    limit = None if cache_gib is None else int(cache_gib * 2**30)
    decoded = Cache(cache.expanduser(), limit)
    return StoreTargets(LogitStore.open(location), decoded, None if read == "auto" else read)


def _require_sense(
    targets: Any,
    data: Any,
    label_set: str | None,
    views: Any,
    read: str,
    device: str,
    cache_gib: Any,
    max_bad_fraction: Any,
) -> None:
    """That no argument is of another kind, or would be dropped in silence."""
    for name, value, expected, fits in (
        ("targets", targets, "a store, a URL or timm:NAME", isinstance(targets, str | Path)),
        ("data", data, "a path, or what open_source gives", isinstance(data, _DATA)),
        ("read", read, "auto, resident or streamed", read in ("auto", "resident", "streamed")),
        ("views", views, "a ViewPolicy", views is None or isinstance(views, ViewPolicy)),
        ("cache_gib", cache_gib, "a number", cache_gib is None or _is_number(cache_gib)),
        (
            "max_bad_fraction",
            max_bad_fraction,
            "a share from 0 to 1",
            _is_number(max_bad_fraction) and 0 <= max_bad_fraction <= 1,
        ),
    ):
        if not fits:
            raise ConfigError(f"{name} {value!r} found, expected {expected}")
    if not str(targets).startswith(TIMM) and (label_set or device != "auto"):
        raise ConfigError(
            "label_set or device found without timm:NAME, expected a teacher in this process; a "
            "store and a server bring their label set along"
        )


_DATA = str | Path | ImageSource


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _to_stderr(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        note(line)
