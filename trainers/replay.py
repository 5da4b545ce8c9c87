"""Replay proof: does this machine draw the very views that the teacher saw?"""

import numpy as np

from distill.data import ImageSource
from distill.errors import StoreMismatchError
from distill.loader import ViewRequest, load_views
from distill.views import ViewPolicy
from store.logit_store import LogitStore


def check_replay(store: LogitStore, source: ImageSource, policy: ViewPolicy) -> int:
    """Draw the audit subset again at the teacher's resolution; the number of views compared.

    Raises:
        StoreMismatchError: the pixels differ, so KD would compare answers about different images.
    """
    expected: dict[str, list[str]] = store.require_complete()["replay"]
    if not expected:
        return 0
    views = store.manifest.views.drawn
    rows = np.array([int(row) for row in expected])
    requests = [[ViewRequest(int(row), views, prove=True) for row in rows]]
    size = store.manifest.teacher.input_size
    (batch,) = load_views(source, policy, size, requests, workers=0)
    for row, digests in expected.items():
        found = batch.digests.get(int(row), [])
        wrong = [v for i, v in enumerate(views) if found[i : i + 1] != digests[i : i + 1]]
        if wrong:
            written_by = store.manifest.provenance
            raise StoreMismatchError(
                f"{store.location}: sample {source.samples[int(row)].key!r} gives other pixels in "
                f"view {wrong[0]} than the teacher saw, expected the same; use the torchvision and "
                f"Pillow that wrote the store ({written_by.get('torchvision')}, "
                f"{written_by.get('pillow')}) and the same image files"
            )
    return len(rows) * len(views)
