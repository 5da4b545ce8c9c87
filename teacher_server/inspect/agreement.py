"""How often the teacher of a store agrees with its tags, on a sample of its rows."""

import numpy as np

from distill.errors import CorruptStoreError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.format.commits import commit_of
from distill.store.logit_store import LogitStore
from distill.targets.agreement import AGREEMENT_ROWS, TagAgreement, agreement_of


def agreement_of_store(store: LogitStore) -> TagAgreement | None:
    """Compare the first view of the first rows; None where those are missing or damaged."""
    records, manifest = store.records(), store.manifest
    if 0 not in records:
        return None
    try:
        codes = store.read_codes(0, 0, commit_of(records[0]))
    except CorruptStoreError:
        return None
    rows = np.arange(min(AGREEMENT_ROWS, len(manifest.rows_of_block(0))))
    predicted = manifest.coding.dequantise(codes).select(rows)
    hierarchy = SemanticHierarchy.from_json(store.hierarchy)
    return agreement_of(predicted, store.labels[rows], hierarchy, manifest.slots)
