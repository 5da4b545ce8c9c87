"""Options of a precompute, and the share of its blocks that one process computes."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log2

from distill.data.view_policy import ViewPolicy
from distill.errors import ConfigError

BLOCKS, LEAST_BLOCK_ROWS, MOST_BLOCK_ROWS = 750, 4096, 16384


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which blocks are this process's: every `count`th, from `index` on."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"shard index {self.index} of {self.count} found, expected 0 to {self.count - 1}; "
                "pass --shard-index below --num-shards"
            )

    def of(self, blocks: Iterable[int]) -> list[int]:
        """Those of `blocks` that are this share's."""
        return [block for block in blocks if block % self.count == self.index]


def block_rows_for(rows: int, asked: int | None = None) -> int:
    """A power of two, so that a store of any size has some hundreds of blocks at most.

    Below the least, compression suffers; above the most, too much is computed again after a kill
    (benchmarks/store_read.py).
    """
    power = 2 ** round(log2(max(1, rows / BLOCKS)))
    return min(rows, asked or min(max(power, LEAST_BLOCK_ROWS), MOST_BLOCK_ROWS))


@dataclass(frozen=True, kw_only=True)
class PrecomputeOptions:
    """encoding: as `EncodingSpec.named` takes it. first_view: the number of the first view drawn.

    batch_size: views in one forward pass; None is measured. compiled: None where it is faster.
    block_rows: images between two commits, `block_rows_for` where None. workers: processes that
    decode. max_bad_fraction: share of unreadable images beyond which the run stops.
    """

    policy: ViewPolicy
    views: int = 1
    first_view: int = 0
    encoding: str = "standard"
    batch_size: int | None = None
    compiled: bool | None = None
    block_rows: int | None = None
    workers: int = 2
    max_bad_fraction: float = 0.001
