"""What a data set holds beside the images that are read: counted by reason, with examples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3  # of each reason

HIDDEN = "hidden or of the system"
SUFFIX = "not images by their suffix"
VIDEO = "videos, which commands with --frames take"
BESIDE_CLIPS = "no videos by their suffix, and no frames in a folder of their clip"
TABLE = "tables; pass one of them as --data to read its labels"
LOOSE = "loose images beside class folders"
SPECIAL_MEMBER = "links and special members of tars"
NO_IMAGE = "labels without an image"
SECOND_IMAGE = "further images of a sample that has one"
BESIDE_CONTAINER = "beside the folder that holds all"
BESIDE_SPLITS = "beside the splits"
BESIDE_TARS = "beside the tars"
BESIDE_ARROW = "beside the Hugging Face data set"
LINK = "links to folders below a class, which are not followed"
EMPTY_CLASS = "class folders without an image"
SECOND_ARCHIVE = "a second archive after the end of a tar"


@dataclass
class Skipped:
    """By reason: how many there are, and the names of the first."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, *names: str) -> None:
        """Count some more; nothing where no name is given."""
        if not names:
            return
        self.counts[reason] = self.counts.get(reason, 0) + len(names)
        first = self.examples.setdefault(reason, [])
        first += names[: EXAMPLES - len(first)]

    def update(self, other: "Skipped") -> None:
        """Count what another counted."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            first = self.examples.setdefault(reason, [])
            first += other.examples[reason][: EXAMPLES - len(first)]

    @property
    def total(self) -> int:
        """How many are skipped."""
        return sum(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """By reason, count and examples."""
        return {
            reason: {"count": count, "examples": list(self.examples[reason])}
            for reason, count in self.counts.items()
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Skipped":
        """What `to_json` gave.

        Raises:
            ValueError, TypeError or KeyError: it is something else.
        """
        skipped = cls()
        for reason, each in document.items():
            skipped.counts[str(reason)] = int(each["count"])
            skipped.examples[str(reason)] = [str(name) for name in each["examples"]][:EXAMPLES]
        return skipped

    def __str__(self) -> str:
        """In words: 3 hidden or of the system (.DS_Store, …)."""
        parts = []
        for reason, count in self.counts.items():
            names = self.examples[reason]
            more = ", …" if count > len(names) else ""
            parts.append(f"{count} {reason} ({', '.join(names)}{more})")
        return "; ".join(parts)
