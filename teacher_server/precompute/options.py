"""Options of a precompute, and the share of its blocks that one process computes."""

from collections.abc import Iterable
from dataclasses import dataclass

from distill.data.view_policy import ViewPolicy
from distill.errors import ConfigError


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


@dataclass(frozen=True, kw_only=True)
class PrecomputeOptions:
    """encoding: as `EncodingSpec.named` takes it. first_view: the number of the first view drawn.

    batch_size: views in one forward pass; None is measured. compiled: None where it is faster.
    block_rows: images between two commits. workers: processes that decode. max_bad_fraction: share
    of unreadable images beyond which the run stops.
    """

    policy: ViewPolicy
    views: int = 1
    first_view: int = 0
    encoding: str = "standard"
    batch_size: int | None = None
    compiled: bool | None = None
    block_rows: int = 8192
    workers: int = 2
    max_bad_fraction: float = 0.001
