"""A cleaned list of samples: which images to train on, and as what.

Teachers find wrong and missing tags (`distill inspect`); a list of the samples to keep, with or
without other labels, is how that comes back into training. The data stays as it is, and so do the
stores that were computed for it.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.sample_ids import SampleIds, find_rows, sample_ids
from distill.data.source import ImageSource
from distill.errors import DataError
from distill.hierarchy.semantic import SemanticHierarchy

SUSPECT = (
    *("key", "tag", "tag_name", "path", "confidence"),
    *("seen", "seen_name", "seen_confidence", "score"),
)
FINDINGS = (
    *("key", "tag", "tag_name", "kind", "seen", "seen_name", "seen_confidence", "score"),
    "confirmed",
)


@dataclass(frozen=True, eq=False)
class SampleList:
    """keys: to keep. wnids: their labels, empty where the data's own stays.

    findings: it lists what is wrong with the images, not what to train on.
    """

    location: str
    keys: tuple[str, ...]
    wnids: tuple[str, ...]
    findings: bool = False

    @classmethod
    def read(cls, path: Path) -> "SampleList":
        """One key a line; or CSV with a column `key`, and `wnid` where labels change.

        Raises:
            DataError: the file is missing or of another form.
        """
        try:
            text = path.read_text(encoding="utf-8-sig", errors="surrogatepass")
            header = next(csv.reader(io.StringIO(text)), [])
            if "key" in header:
                table = list(csv.DictReader(io.StringIO(text)))
                keys = tuple(row["key"] or "" for row in table)
                wnids = tuple((row.get("wnid") or "").strip() for row in table)
            else:
                keys = tuple(line.strip() for line in text.splitlines() if line.strip())
                wnids = ("",) * len(keys)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"{path}: cannot be read ({error}); expected one sample key per line, or CSV with "
                "key and wnid"
            ) from error
        if not keys:
            raise DataError(f"{path}: no samples found; expected one key per line")
        return cls(str(path), keys, wnids, tuple(header) in (SUSPECT, FINDINGS))

    def rows(self, source: ImageSource) -> NDArray[np.int64]:
        """[n]: where each key stands in `source`, in the order of the list.

        Raises:
            DataError: a key is not in the data, or appears twice.
        """
        rows = find_rows(source.ids, sample_ids(self.keys))
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            raise DataError(
                f"{self.location}: {len(absent)} of {len(rows)} samples are not in "
                f"{source.location} (first: {self.keys[absent[0]]!r}); expected keys of that data"
            )
        kept, counts = np.unique(rows, return_counts=True)
        if (counts > 1).any():
            twice = source.samples[int(kept[np.argmax(counts > 1)])].key
            raise DataError(f"{self.location}: {twice!r} appears twice, expected every key once")
        return rows

    def applied(
        self, source: ImageSource, labels: NDArray[np.int64], hierarchy: SemanticHierarchy
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows to train on, ascending, and the labels [n] of all rows, the new ones included.

        Raises:
            DataError: it lists findings about tags; a key is not in the data, or appears twice; a
            wnid is not in the label set.
        """
        if self.findings:
            raise DataError(
                f"{self.location}: lists what is wrong with images, expected images to train on; "
                "pass what `distill inspect --cleaned` writes"
            )
        rows, labels = self.rows(source), labels.copy()
        for row, wnid in zip(rows, self.wnids, strict=True):
            if wnid:
                if wnid not in hierarchy:
                    raise DataError(
                        f"{self.location}: {wnid!r} is not in label set {hierarchy.name}; expected "
                        "a synset of it"
                    )
                labels[row] = hierarchy.index(wnid)
        return np.sort(rows), labels


def fold_of(ids: SampleIds, folds: int) -> NDArray[np.int64]:
    """[n]: the fold of each sample, 0 to folds - 1, by its id alone.

    By its low word: rows ascend by the high one, and the first rows must be of all folds.
    """
    return (ids[:, 1] % np.uint64(folds)).astype(np.int64)
