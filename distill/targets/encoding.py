"""The encoding spec: what of a teacher's answer is kept. Numbers only, no arrays and no torch.

`distill.targets.tensors.encode` selects entries by it on the teacher's device,
`distill.store.format.codes` turns them into the integers of a store. A store's manifest holds the
spec, so a reader configures itself.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distill.errors import ConfigError, did_you_mean

# A hierarchy's probabilities are one softmax over its classes, a yes or no for each of them, or its
# part of one softmax over all classes.
Answers = Literal["softmax", "sigmoid", "flat"]
# The schemes of models whose own answers the latter two are, and of students that learn from them.
RAW_SCHEMES: dict[str, str] = {"sigmoid": "multi-label", "flat": "single-label"}
MAX_ENTRIES = 1024
MAX_PROB_STEPS = 65535

# Points on the frontier of bytes against gradient angle: (entries, prob_steps, tilt) of `budgeted`.
# benchmarks/encoding_frontier.py measured them: the first three for MSE, the last for KL.
EVEN_GRADIENT = 1 / 3
PRESETS = {
    "small": (5, 127, EVEN_GRADIENT),
    "standard": (9, 191, EVEN_GRADIENT),
    "fine": (16, 511, EVEN_GRADIENT),
    "dense": (18, 191, -EVEN_GRADIENT),
}


def mass(answers: Answers, confidence: Any, sizes: Any) -> Any:
    """What the probabilities of a hierarchy sum to. sizes: its classes, as arrays broadcast."""
    if answers == "softmax":
        return 1
    return confidence * sizes if answers == "sigmoid" else confidence


@dataclass(frozen=True, kw_only=True)
class EncodingSpec:
    """Kept entries of each hierarchy and the precision of their probabilities.

    entries: S_k, the most entries kept in hierarchy k.
    prob_steps: probabilities are rounded to multiples of 1 / prob_steps; those below half a step
    are not kept and join the tail.
    """

    entries: tuple[int, ...]
    prob_steps: int = 191

    def __post_init__(self) -> None:
        if not self.entries or not all(1 <= n <= MAX_ENTRIES for n in self.entries):
            raise ConfigError(
                f"encoding entries {self.entries} found, expected 1 to {MAX_ENTRIES} per hierarchy"
            )
        if not 7 <= self.prob_steps <= MAX_PROB_STEPS:
            raise ConfigError(
                f"encoding steps {self.prob_steps} found, expected 7 to {MAX_PROB_STEPS}"
            )

    @classmethod
    def budgeted(
        cls,
        classes_per_hierarchy: Sequence[int],
        *,
        entries: int,
        prob_steps: int = 191,
        tilt: float = EVEN_GRADIENT,
    ) -> "EncodingSpec":
        """`entries` in a hierarchy of median size n̄, entries · (n̄/n)^tilt in one of n classes.

        A hierarchy of few classes weighs more in the MSE gradient of a fresh student, so its
        entries are worth more; for KL those of a large one are, where more is left out.
        """
        if entries < 1:
            raise ConfigError(f"encoding entries {entries} found, expected 1 to {MAX_ENTRIES}")
        middle = statistics.median(classes_per_hierarchy)
        wanted = [round(entries * (middle / n) ** tilt) for n in classes_per_hierarchy]
        kept = zip(wanted, classes_per_hierarchy, strict=True)
        return cls(
            entries=tuple(max(1, min(w, n, MAX_ENTRIES)) for w, n in kept), prob_steps=prob_steps
        )

    @classmethod
    def named(cls, text: str, classes_per_hierarchy: Sequence[int]) -> "EncodingSpec":
        """A preset, or "entries=9,steps=191" for `budgeted`.

        Raises:
            ConfigError: it is neither.
        """
        custom = re.fullmatch(r"entries=(\d{1,4}),steps=(\d{1,5})", text)
        if custom:
            entries, steps, tilt = int(custom[1]), int(custom[2]), EVEN_GRADIENT
        elif text in PRESETS:
            entries, steps, tilt = PRESETS[text]
        else:
            raise ConfigError(
                f"encoding {text!r} found{did_you_mean(text, PRESETS)}, expected "
                f"{', '.join(PRESETS)} or entries=N,steps=M, as in entries=9,steps=191"
            )
        return cls.budgeted(classes_per_hierarchy, entries=entries, prob_steps=steps, tilt=tilt)

    def to_json(self) -> dict[str, Any]:
        """Return a document for a manifest."""
        return {"entries": list(self.entries), "prob_steps": self.prob_steps}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "EncodingSpec":
        """From a manifest."""
        return cls(
            entries=tuple(int(n) for n in document["entries"]),
            prob_steps=int(document["prob_steps"]),
        )
