"""Small objects of a store whose digests are in the root document."""

import hashlib
import json
from collections.abc import Sequence

from distill.errors import CorruptStoreError
from distill.store.format import commits
from distill.store.format.codes import ANSWER_ARRAYS
from distill.store.format.layout import SAMPLE_ARRAYS
from distill.store.format.root import Root, group_document
from distill.store.places.objects import Objects

HIERARCHY_KEYS = ("hierarchy/zarr.json", "hierarchy/c.0")
ANSWER_KEYS = tuple(f"{name}/zarr.json" for name in ANSWER_ARRAYS)
SAMPLE_KEYS = tuple(f"{name}/zarr.json" for name in SAMPLE_ARRAYS)
DOCUMENTS = (
    *ANSWER_KEYS,
    *SAMPLE_KEYS,
    *HIERARCHY_KEYS,
    commits.GROUP_KEY,
)


def document_digests(objects: Objects, keys: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each of those objects as it is there, empty where it is missing."""
    contents = zip(keys, objects.read_all(keys), strict=True)
    return {key: hashlib.sha256(_plain(c)).hexdigest() if c else "" for key, c in contents}


def require_documents(objects: Objects, root: Root) -> None:
    wrong = damaged_documents(objects, root)
    if wrong:
        raise CorruptStoreError(
            f"{objects.location}: {wrong[0]} is missing or not what was written"
            f"{f', and {len(wrong) - 1} others' if wrong[1:] else ''}; "
            "`distill store repair` writes it again"
        )


def _plain(content: bytes) -> bytes:
    """Without the metadata that Zarr consolidated into a group: they repeat other documents."""
    if b"consolidated_metadata" not in content:
        return content
    try:
        return group_document(dict(json.loads(content)["attributes"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return content


def damaged_documents(objects: Objects, root: Root) -> list[str]:
    """Keys of the documents that are missing or not what the root says."""
    digests = document_digests(objects, list(root.documents))
    return [key for key, digest in root.documents.items() if digests[key] != digest]
