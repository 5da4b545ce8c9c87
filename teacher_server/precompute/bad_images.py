"""Counts of images and bad images of a run, and the limit on bad ones."""

from collections import Counter
from collections.abc import Mapping

from distill.data.source import ImageSource
from distill.errors import DataError
from distill.store.logit_store import LogitStore


class BadImages:
    """Images done in this run, and bad ones over all runs.

    Raises `DataError` from `add` when more than `max_fraction` of the source is bad.
    """

    def __init__(self, store: LogitStore, source: ImageSource, max_fraction: float) -> None:
        self.source, self.max_fraction, self.images = source, max_fraction, 0
        records = store.records().values()
        self._bad = {bad["key"]: bad["reason"] for record in records for bad in record["bad"]}

    def add(self, images: int, bad: Mapping[str, str]) -> None:
        """Images more, and the reasons of the bad ones by key, which may be known already."""
        self.images += images
        self._bad |= bad
        if bad and len(self._bad) > self.max_fraction * len(self.source):
            key, reason = next(iter(bad.items()))
            raise DataError(
                f"{self.source.location}: {len(self._bad)} of {len(self.source)} images are bad "
                f"(last: {key!r}: {reason}), expected at most a share of {self.max_fraction:g}; "
                "repair or remove them, or raise --max-bad-fraction"
            )

    @property
    def bad(self) -> dict[str, int]:
        """Images by kind of damage: what stands before the colon of a reason."""
        return dict(Counter(reason.partition(":")[0] for reason in self._bad.values()))

    @property
    def note(self) -> str:
        """Return a note for the progress bar."""
        return f"{len(self._bad)} bad" if self._bad else ""
