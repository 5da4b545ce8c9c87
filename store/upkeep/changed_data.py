"""A data set that is no longer that of its store: what changed, and the commands that mend it."""

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import SampleIds, find_rows
from distill.store.logit_store import LogitStore


def changed_data(store: LogitStore, ids: SampleIds, labels: NDArray[np.int64]) -> str:
    """What a store lacks, holds beyond, and labels otherwise, with commands that go on with it.

    ids: ascending, of the data as it is. Empty where nothing differs.
    """
    rows = find_rows(store.sample_ids, ids)
    new, gone = int((rows < 0).sum()), len(store.sample_ids) - int((rows >= 0).sum())
    held = rows >= 0
    other = int((store.labels[rows[held]] != labels[held]).sum())
    counts = ((new, "new to it"), (gone, "no longer there"), (other, "labelled otherwise"))
    what = ", ".join(f"{count} images {text}" for count, text in counts if count)
    if not what:
        return ""
    here = store.location
    steps = []
    if gone:
        steps.append(f"`distill store subset {here} --data DATA --out KEPT`")
    if new:
        steps.append(f"`distill precompute … --data DATA --not-in {here} --store NEW`")
        steps.append(f"`distill store merge {'KEPT' if gone else here} NEW --out GROWN`")
    if other:
        steps.append("new labels as a list for `distill pretrain --samples`, the data as it was")
    return f"{what}; go on with {', then '.join(steps)}"
