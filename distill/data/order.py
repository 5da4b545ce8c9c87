"""The order in which samples are seen: a pure function of the seed and the position.

A position counts samples since the first epoch began. What comes at a position does not depend on
batch size, workers or the number of processes, so training goes on exactly where it stopped,
whatever of these has changed: one number is the whole state.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SampleOrder:
    """Every row once an epoch.

    block_rows, window: shuffle within groups of `window` random blocks of `block_rows` rows, so
    that a reader needs few blocks at a time; without them every order of an epoch is as likely.
    """

    rows: int
    seed: int
    block_rows: int | None = None
    window: int = 1

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """[rows]: the order of an epoch."""
        generator = np.random.Philox(key=np.array([self.seed, epoch], np.uint64))
        if self.block_rows is None:
            return _shuffled(np.arange(self.rows), generator)
        blocks = _shuffled(np.arange(-(-self.rows // self.block_rows)), generator)
        groups = [
            _shuffled(
                np.concatenate(
                    [
                        np.arange(b * self.block_rows, min((b + 1) * self.block_rows, self.rows))
                        for b in blocks[i : i + self.window]
                    ]
                ),
                generator,
            )
            for i in range(0, len(blocks), self.window)
        ]
        return np.concatenate(groups)

    def at(self, position: int, count: int) -> list[tuple[int, NDArray[np.int64]]]:
        """The `count` rows from `position` on, as (epoch, rows), one pair for each epoch."""
        ranges = []
        while count > 0:
            epoch, start = divmod(position, self.rows)
            part = _epoch(self, epoch)[start : start + count]
            ranges.append((epoch, part))
            position, count = position + len(part), count - len(part)
        return ranges


@lru_cache(maxsize=2)
def _epoch(order: SampleOrder, epoch: int) -> NDArray[np.int64]:
    rows = order.epoch(epoch)
    rows.flags.writeable = False
    return rows


def _shuffled(values: NDArray[np.int64], generator: np.random.Philox) -> NDArray[np.int64]:
    # Raw words, because numpy promises them to stay the same from version to version.
    return values[np.argsort(generator.random_raw(len(values)), kind="stable")]
