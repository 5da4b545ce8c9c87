"""Replay proof: does this machine draw the very views that the teacher saw?"""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from distill.data.loader import ViewRequest, load_views
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.errors import DataError, StoreMismatchError
from distill.targets.protocol import ReplayProofs


def check_replay(replay: ReplayProofs, source: ImageSource, policy: ViewPolicy) -> int:
    """Draw the audit subset again at the teacher's resolution; the number of views compared.

    Raises:
        StoreMismatchError: the pixels differ, so KD would compare answers about different images;
        says which step of the view is the first to differ.
        DataError: an image of it cannot be read any more.
    """
    rows, views = [int(row) for row in replay.proofs], replay.views
    requests = [[ViewRequest(row, views, prove=True) for row in rows]]
    (batch,) = load_views(source, policy, [replay.size], requests, workers=0)
    for row, proofs in replay.proofs.items():
        key = source.samples[int(row)].key
        if int(row) in batch.bad:
            raise DataError(
                f"{source.location}: {key!r}: {batch.bad[int(row)]}; expected the image that the "
                "teacher saw"
            )
        for view, stored, drawn in zip(views, proofs, batch.proofs[int(row)], strict=True):
            if stored != drawn:
                where = f"{replay.where}: sample {key!r}, view {view}"
                raise _differs(where, stored, drawn, replay.provenance)
    return len(rows) * len(views)


def _differs(
    where: str, stored: str, drawn: str, provenance: Mapping[str, Any]
) -> StoreMismatchError:
    """Which step of the view is the first to differ, and what to do about it."""
    steps = zip_longest(stored.split(), drawn.split(), fillvalue="nothing:")
    then, now = next((then, now) for then, now in steps if then != now)
    name, _, _ = then.rpartition(":")
    here, _, _ = now.rpartition(":")
    versions = ", ".join(
        f"{library} {provenance.get(library)}" for library in ("distill", "torchvision", "pillow")
    )
    if name != here:
        return StoreMismatchError(
            f"{where}: {here} is drawn where the teacher saw {name}, expected the same; use the "
            f"version that wrote the store ({versions})"
        )
    if name == "decode":
        return StoreMismatchError(
            f"{where}: decode gives other pixels than the teacher saw, expected the same; use the "
            f"same image files, and the Pillow that wrote the store ({versions})"
        )
    return StoreMismatchError(
        f"{where}: the transform {name} gives other pixels than the teacher saw, expected the same;"
        f" use the torchvision and Pillow that wrote the store ({versions})"
    )
