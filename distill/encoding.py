"""The encoding spec: what of a teacher's answer is kept. Numbers only, no arrays and no torch.

`distill.targets.encode` selects entries by it on the teacher's device, `store.codes` turns them
into the integers of a store. A store's manifest holds the spec, so a reader configures itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distill.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EncodingSpec:
    """Kept entries per hierarchy and the precision of their probabilities.

    entries: the most entries kept in a hierarchy; one of fewer classes keeps all of them.
    prob_bits: bits of a stored probability; code 0 is an empty slot.
    prob_octaves: the smallest stored probability is 2 ** -prob_octaves.
    """

    entries: int = 8
    prob_bits: int = 12
    prob_octaves: float = 16.0

    def __post_init__(self) -> None:
        if not 1 <= self.entries <= 1024:
            raise ConfigError(f"encoding entries {self.entries} found, expected 1 to 1024")
        if not 4 <= self.prob_bits <= 16:
            raise ConfigError(f"encoding prob_bits {self.prob_bits} found, expected 4 to 16")
        if not 1.0 <= self.prob_octaves <= 64.0:
            raise ConfigError(f"encoding prob_octaves {self.prob_octaves} found, expected 1 to 64")

    @property
    def smallest_prob(self) -> float:
        """Smaller probabilities join the tail."""
        return float(2.0**-self.prob_octaves)

    def slots(self, classes_per_hierarchy: Sequence[int]) -> tuple[int, ...]:
        """S_k: the slots laid out for each hierarchy."""
        return tuple(min(self.entries, n) for n in classes_per_hierarchy)

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "EncodingSpec":
        """From a manifest."""
        return cls(
            entries=int(document["entries"]),
            prob_bits=int(document["prob_bits"]),
            prob_octaves=float(document["prob_octaves"]),
        )
