"""The root document of a store: manifest, state and seal, in the root group's `zarr.json`.

One small object says what the store is, how far it is, and by digest what every other document of
it must contain; its seal is a digest of itself. So a flipped bit or an edit by hand is found when
the store is opened. A copy stands beside it, from which `distill store repair` restores it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from distill.errors import CorruptStoreError, StoreError
from distill.store.format import version2
from distill.store.format.audit import modern
from distill.store.format.manifest import Manifest, digest_of_json
from distill.store.places.objects import Objects, open_objects

# Arrays of a generation of compacted commits.
COMPACTED = ("content_sha256", "chunk_bytes", "records")
DOCUMENT_KEY = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*/(zarr\.json|c[/.]0)")
ROOT_KEY, COPY_KEY, CLAIM_KEY = "zarr.json", "copy/zarr.json", "claim/zarr.json"
GROUP = {"zarr_format", "node_type", "attributes"}
DESCRIPTION = "Outputs of a teacher model for distillation; docs/store-format.md of distill."


@dataclass(frozen=True, kw_only=True)
class Root:
    """documents: SHA-256 of each other `zarr.json`, by key.

    generation: which compacted commits count; empty while there are none.
    compacted_sha256: of the bytes of each array of that generation.
    revoked: compacted blocks that do not count any more and are to be computed again.
    certificate: what `LogitStore.finish` found; None while blocks are missing.
    """

    manifest: Manifest
    documents: Mapping[str, str]
    generation: str = ""
    compacted_sha256: Mapping[str, str] = field(default_factory=dict)
    revoked: Sequence[int] = ()
    certificate: Mapping[str, Any] | None = field(default=None)

    def to_document(self) -> bytes:
        """The sealed `zarr.json`."""
        attributes: dict[str, Any] = {
            "description": DESCRIPTION,
            "distill": self.manifest.to_json(),
            "documents": dict(self.documents),
            "generation": self.generation,
            "compacted_sha256": dict(self.compacted_sha256),
            "revoked": list(self.revoked),
            "certificate": None if self.certificate is None else dict(self.certificate),
        }
        return group_document({**attributes, "seal": digest_of_json(attributes)})

    @classmethod
    def read(cls, objects: Objects, key: str = ROOT_KEY) -> "Root":
        """The root document of what lies there.

        Raises:
            StoreError: nothing is there, or it is of another format version.
            CorruptStoreError: something else is there, or it was damaged or edited.
        """
        content = objects.read(key)
        if content is None:
            _raise_nothing_there(objects)
        attributes = _attributes(content, objects.location)
        if "distill" not in attributes:
            raise CorruptStoreError(
                f"{objects.location}: not a distill store; expected a Zarr v3 group whose "
                "attributes have 'distill', as `distill precompute` writes it"
            )
        # The manifest comes first: a store of another version is no damaged one.
        manifest = Manifest.from_json(attributes["distill"], objects.location)
        seal = attributes.pop("seal", None)
        if seal != digest_of_json(attributes):
            raise CorruptStoreError(
                f"{objects.location}: {key} was damaged or edited, its seal does not match; "
                "`distill store repair` restores it from its copy"
            )
        if not _are_possible(attributes, manifest.version):
            raise CorruptStoreError(
                f"{objects.location}: {key} has a seal that matches but values that distill never "
                "writes; expected a store that `distill precompute` made"
            )
        return cls(
            manifest=manifest,
            documents=attributes["documents"],
            generation=attributes["generation"],
            compacted_sha256=attributes["compacted_sha256"],
            revoked=tuple(attributes["revoked"]),
            certificate=modern(attributes["certificate"]),
        )

    def write(self, objects: Objects) -> None:
        """Put its copy in place, then itself: a copy is never older than what it may replace."""
        document = self.to_document()
        objects.write(COPY_KEY, document)
        objects.write(ROOT_KEY, document)


def read_root_or_copy(location: str) -> Root:
    """The root document, or its copy where it is damaged.

    Raises:
        CorruptStoreError: both are.
    """
    objects = open_objects(location)
    try:
        return Root.read(objects)
    except CorruptStoreError as error:
        if objects.read(COPY_KEY) is None:
            raise
        try:
            return Root.read(objects, COPY_KEY)
        except CorruptStoreError:
            raise CorruptStoreError(
                f"{objects.location}: the root and its copy are both damaged, expected one of them "
                "to be whole; run the same `distill precompute` again, which writes them from what "
                "is there"
            ) from error


def claim_of(manifest: Manifest) -> bytes:
    """What says that a place is being filled, and by whom."""
    return group_document({"identity": manifest.identity})


def claimed(objects: Objects, manifest: Manifest) -> bool:
    """Whether the place is to be filled; only by one identity, so all write the same bytes."""
    claim = claim_of(manifest)
    if not objects.write_new(CLAIM_KEY, claim) and objects.read(CLAIM_KEY) != claim:
        raise StoreError(
            f"{objects.location}: another store is being made there, or was begun and left; "
            "choose another --store, or delete what is there"
        )
    # The claim of who was faster is gone when the root is there.
    made = objects.read(ROOT_KEY) is not None
    if made:
        objects.delete([CLAIM_KEY])
    return not made


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """The `zarr.json` of a Zarr v3 group."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def _are_possible(attributes: dict[str, Any], version: int) -> bool:
    """Whoever edits a root may compute its seal, too."""
    documents, generation = attributes.get("documents"), attributes.get("generation")
    compacted, revoked = attributes.get("compacted_sha256"), attributes.get("revoked")
    certificate = attributes.get("certificate")
    arrays = version2.COMPACTED if version == version2.VERSION else COMPACTED
    return (
        isinstance(documents, dict)
        and all(DOCUMENT_KEY.fullmatch(key) for key in documents)
        and all(isinstance(digest, str) for digest in documents.values())
        and isinstance(generation, str)
        and re.fullmatch("([0-9a-f]{16})?", generation) is not None
        and isinstance(compacted, dict)
        and (not generation or {*compacted} == {*arrays})
        and isinstance(revoked, list)
        and all(type(block) is int for block in revoked)
        and (certificate is None or (generation != "" and _is_certificate(certificate)))
    )


def _is_certificate(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"fidelity", "replay", "bad_images"} <= value.keys()
        and isinstance(value["replay"], dict)
        and isinstance(value["bad_images"], int)
    )


def _attributes(content: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
        if document["zarr_format"] != 3 or document["node_type"] != "group":
            raise ValueError("not a Zarr v3 group")
        attributes = document["attributes"]
        # Zarr's own consolidated metadata repeat what the other documents say.
        if not isinstance(attributes, dict) or document.keys() - {"consolidated_metadata"} != GROUP:
            raise ValueError("not a document of distill")
        return attributes
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptStoreError(
            f"{where}: zarr.json is damaged ({error}); expected the root of a store: "
            "`distill store repair` restores it from its copy"
        ) from error


def _raise_nothing_there(objects: Objects) -> NoReturn:
    if objects.exists():
        raise CorruptStoreError(
            f"{objects.location}: no zarr.json found, expected a store that `distill precompute` "
            "wrote; choose another --store"
        )
    raise StoreError(
        f"{objects.location}: no store there; `distill precompute --store {objects.location}` "
        "makes one"
    )
