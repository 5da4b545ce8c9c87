"""The manifest: what a store holds and of whom. Written once, when the store is created.

It stands in the root group's attributes under "distill". Its digest is the store's identity; two
stores of one identity hold the same rows of the same teacher's answers.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from operator import gt
from typing import Any, get_args

from distill.errors import ConfigError, CorruptStoreError, StoreError, StoreMismatchError
from distill.store.format.codes import Coding
from distill.targets.encoding import Answers, EncodingSpec

MAX_BLOCKS = 1_000_000
FORMAT_NAME, FORMAT_VERSION = "distill-store", 3
OLDEST_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class TeacherIdentity:
    """fingerprint: SHA-256 over weights, preprocessing and precision of all its models.

    input_size: height and width, of the first model. confidence: "top", or "reach" of a flat head.
    """

    name: str
    fingerprint: str
    input_size: tuple[int, int]
    precision: str
    random_weights: bool = False
    confidence: str = "top"


@dataclass(frozen=True, kw_only=True)
class HierarchyIdentity:
    """The softmaxes that index and confidence refer to."""

    name: str
    digest: str
    num_classes: int
    classes_per_hierarchy: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetIdentity:
    """digest: SHA-256 over the ascending sample ids and their labels."""

    digest: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class ViewIdentity:
    """policy: the `ViewPolicy` as JSON. first: the number of the first view."""

    count: int
    policy: Mapping[str, Any]
    first: int = 0

    @property
    def drawn(self) -> tuple[int, ...]:
        """The numbers by which the policy draws them."""
        return tuple(range(self.first, self.first + self.count))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a reader needs, and everything that must agree.

    answers: of each hierarchy one softmax, or a yes or no for each class, or one softmax of all.
    """

    teacher: TeacherIdentity
    hierarchy: HierarchyIdentity
    dataset: DatasetIdentity
    views: ViewIdentity
    encoding: EncodingSpec
    block_rows: int
    provenance: Mapping[str, Any] = field(default_factory=dict)  # versions; not part of identity
    answers: Answers = "softmax"
    version: int = FORMAT_VERSION

    @property
    def num_blocks(self) -> int:
        """Blocks of `block_rows` rows; the last may be shorter."""
        return -(-self.dataset.rows // self.block_rows)

    @property
    def slots(self) -> tuple[int, ...]:
        """S_k."""
        return self.encoding.entries

    @property
    def coding(self) -> Coding:
        """How answers become the integers of this store."""
        return Coding(self.encoding, self.hierarchy.classes_per_hierarchy, self.answers)

    def rows_of_block(self, block: int) -> range:
        """The rows that `block` holds."""
        first = block * self.block_rows
        return range(first, min(first + self.block_rows, self.dataset.rows))

    @property
    def identity(self) -> str:
        """SHA-256 of all but the provenance."""
        document = self.to_json()
        del document["provenance"]
        if self.version < 3:
            return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        return digest_of_json(document)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if self.version < 3:
            del document["answers"]
        name = f"{FORMAT_NAME}/{document.pop('version')}"
        return {"format": name, **document, "encoding": self.encoding.to_json()}

    @classmethod
    def from_json(cls, document: Any, where: str) -> "Manifest":
        """Read what `to_json` gave.

        Raises:
            StoreError: it is of another format version.
            CorruptStoreError: it is damaged.
        """
        try:
            version = _version_of(str(document["format"]), where)
            teacher, hierarchy = document["teacher"], document["hierarchy"]
            height, width = teacher["input_size"]
            manifest = cls(
                teacher=TeacherIdentity(**{**teacher, "input_size": (height, width)}),
                hierarchy=HierarchyIdentity(
                    **{
                        **hierarchy,
                        "classes_per_hierarchy": tuple(
                            int(n) for n in hierarchy["classes_per_hierarchy"]
                        ),
                    }
                ),
                dataset=DatasetIdentity(**document["dataset"]),
                views=ViewIdentity(**document["views"]),
                encoding=EncodingSpec.from_json(document["encoding"]),
                block_rows=int(document["block_rows"]),
                provenance=document["provenance"],
                answers=document["answers"] if version >= 3 else "softmax",
                version=version,
            )
            _require_types(manifest)
            if manifest.answers not in get_args(Answers):
                raise ValueError(f"answers {manifest.answers!r} found")
            sizes = (manifest.dataset.rows, manifest.block_rows, manifest.views.count)
            classes = manifest.hierarchy.classes_per_hierarchy
            if min(sizes) < 1 or not classes or not all(1 <= n <= 65536 for n in classes):
                raise ValueError("rows, block_rows, views and classes must be positive")
            if manifest.num_blocks > MAX_BLOCKS:
                raise ValueError(f"{manifest.num_blocks} blocks, expected at most {MAX_BLOCKS}")
            entries = manifest.encoding.entries
            if len(entries) != len(classes) or any(map(gt, entries, classes)):
                raise ValueError(f"entries {entries} do not fit classes {classes}")
            return manifest
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise CorruptStoreError(
                f"{where}: damaged manifest ({type(error).__name__}: {error}); "
                "expected what `distill precompute` wrote: restore it or precompute again"
            ) from error

    def require(
        self,
        where: str,
        *,
        teacher_fingerprint: str | None = None,
        hierarchy_digest: str | None = None,
        dataset: DatasetIdentity | None = None,
        views: ViewIdentity | None = None,
        encoding: EncodingSpec | None = None,
    ) -> None:
        """Check the store against what a run expects; None is not checked.

        Raises:
            StoreMismatchError: names the first thing that differs, what was found and expected.
        """
        checks = (
            ("teacher", self.teacher.fingerprint, teacher_fingerprint),
            ("hierarchy", self.hierarchy.digest, hierarchy_digest),
            ("dataset", self.dataset, dataset),
            ("view policy", self.views, views),
            ("encoding", self.encoding, encoding),
        )
        for part, stored, expected in checks:
            if expected is not None and stored != expected:
                cure = f"use a store of that {part}, or `distill precompute` into another --store"
                raise StoreMismatchError(
                    f"{where}: {part} {_short(stored)} found, this run expects {_short(expected)}; "
                    + (_further_views(where, stored, expected) or cure)
                )


def digest_of_json(value: Any) -> str:
    """SHA-256 of the value's canonical JSON: keys sorted, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _further_views(where: str, stored: object, expected: object) -> str:
    """The commands that add views to those that are there."""
    if not (isinstance(stored, ViewIdentity) and isinstance(expected, ViewIdentity)):
        return ""
    more = expected.count - stored.count
    if stored.policy != expected.policy or stored.first != expected.first or more <= 0:
        return ""
    return (
        f"add the other views: `distill precompute … --first-view {stored.first + stored.count} "
        f"--views {more} --store MORE`, then `distill store merge {where} MORE --out ALL`"
    )


def _require_types(manifest: Manifest) -> None:
    texts = (
        *(manifest.teacher.name, manifest.teacher.fingerprint, manifest.teacher.precision),
        manifest.teacher.confidence,
        *(manifest.hierarchy.name, manifest.hierarchy.digest, manifest.dataset.digest),
    )
    numbers = (
        *(manifest.dataset.rows, manifest.views.count, manifest.views.first, manifest.block_rows),
        *(manifest.hierarchy.num_classes, *manifest.teacher.input_size),
    )
    mappings = (manifest.views.policy, manifest.provenance)
    for values, kind in ((texts, str), (numbers, int), (mappings, dict)):
        for value in values:
            if type(value) is not kind:
                raise TypeError(f"{value!r} found where a {kind.__name__} is expected")
    if manifest.views.first < 0:
        raise ValueError(f"first view {manifest.views.first} found")


def _version_of(stored: str, where: str) -> int:
    name, _, version = stored.partition("/")
    if name != FORMAT_NAME or not version.isdecimal():
        raise ValueError(f"format {stored!r} found")
    if int(version) > FORMAT_VERSION:
        raise StoreError(
            f"{where}: format version {version} found, this distill reads up to {FORMAT_VERSION}; "
            "upgrade distill"
        )
    if int(version) < OLDEST_VERSION:
        raise StoreError(
            f"{where}: format version {version} found, a draft from before the first release, "
            f"expected {FORMAT_VERSION}; precompute again"
        )
    return int(version)


def _short(value: object) -> str:
    if isinstance(value, DatasetIdentity):
        return f"{value.digest[:12]} ({value.rows} rows)"
    if isinstance(value, ViewIdentity):
        settings = " ".join(f"{k}={v}" for k, v in value.policy.items())
        last = value.first + value.count - 1
        return f"(views {value.first} to {last}, {settings})"
    return value[:12] if isinstance(value, str) else str(value)
