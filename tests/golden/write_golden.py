"""Writes the golden store: python tests/golden/write_golden.py. Run once for each format version.

Every later version of distill must read it and find in it what expected.npz holds.
"""

import shutil
import socket
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from small_store import make_complete  # noqa: E402

from distill.store.format.manifest import FORMAT_VERSION  # noqa: E402
from distill.store.upkeep.reader import RowReader  # noqa: E402


def main() -> None:
    socket.gethostname = lambda: "golden"  # type: ignore[method-assign]
    place = HERE / f"v{FORMAT_VERSION}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    store = make_complete(place / "store")
    rows = np.arange(store.manifest.dataset.rows)
    fields = {}
    for view in range(store.manifest.views.count):
        answers = store.manifest.coding.dequantise(RowReader(store, view).rows(rows))
        for name in ("index", "prob", "confidence", "sq_norm", "valid"):
            fields[f"{name}{view}"] = getattr(answers, name)
    np.savez_compressed(
        place / "expected.npz", sample_id=store.sample_ids, label=store.labels, **fields
    )


if __name__ == "__main__":
    main()
