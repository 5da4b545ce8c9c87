"""What tests run in processes of their own, to kill them or to let them compete.

python tests/child.py write STORE BLOCK … | build FOLDER LOG SECONDS
"""

import sys
import time
from pathlib import Path

import numpy as np

DTYPE = np.dtype([("a", np.uint8, (4,))])


def main() -> None:
    task, where, *rest = sys.argv[1:]
    if task == "write":
        from small_store import write

        from distill.store.logit_store import LogitStore

        write(LogitStore.open(where), map(int, rest))
    elif task == "build":
        from distill.store.views.cache import Cache, Put

        def fill(put: Put) -> None:
            with Path(rest[0]).open("a") as log:
                log.write("built\n")
            time.sleep(float(rest[1]))
            put(0, np.full(1000, 7, DTYPE))

        assert (Cache(Path(where)).open("shared", DTYPE, 1000, fill)["a"] == 7).all()


if __name__ == "__main__":
    main()
