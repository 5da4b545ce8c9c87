"""A reader written from docs/store-format.md alone: Zarr, NumPy and JSON, nothing of the project.

Slow and plain on purpose: it is the reference that the fast reader and the golden stores are
compared with, and a start for whoever reads stores in another language.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import zarr


def read_store(folder: Path) -> dict[str, Any]:
    """Manifest, hierarchy, samples, and all answers as numbers."""
    root = json.loads((folder / "zarr.json").read_text())["attributes"]
    manifest = root["distill"]
    entries, steps = manifest["encoding"]["entries"], manifest["encoding"]["prob_steps"]
    classes = manifest["hierarchy"]["classes_per_hierarchy"]
    group: Any = zarr.open_group(folder, mode="r")
    codes = {n: group[n][...] for n in ("index", "prob", "confidence", "sq_norm")}
    if manifest["format"] == "distill-store/2":
        valid = group["valid"][...]
    else:
        valid = codes["confidence"][..., 0] > 0
        codes["confidence"] = codes["confidence"].astype(np.int64) - 1
    units = steps * -(-5000 // steps)
    rows, views, _ = codes["prob"].shape
    confidence = np.zeros((rows, views, len(classes)))
    sq_norm = np.zeros((rows, views, len(classes)))
    for row in range(rows):
        for view in range(views):
            if not valid[row, view]:
                continue
            start = 0
            for k, (slots, n) in enumerate(zip(entries, classes, strict=True)):
                kept = [int(c) for c in codes["prob"][row, view, start : start + slots]]
                start += slots
                answers = manifest.get("answers", "softmax")
                counted = min(slots, -(-n // 20))
                predicted = sum(kept[:counted]) * (units // steps)
                if answers == "sigmoid":
                    predicted = sum(kept) * (units // steps) // n
                elif answers == "flat":
                    predicted = sum(kept) * (units // steps)
                code = predicted + unzigzag(int(codes["confidence"][row, view, k]))
                confidence[row, view, k] = code / units
                unkept = max(1, n - sum(c > 0 for c in kept))
                squares = sum(c * c for c in kept)
                if answers == "sigmoid":
                    tail = max(0, code * n // (units // steps) - sum(kept)) // unkept
                    predicted = (squares + tail * tail * unkept) * 1024 // (steps * steps)
                else:
                    mass = steps if answers == "softmax" else code // (units // steps)
                    left = max(0, mass - sum(kept))
                    squares = squares * unkept + left * left
                    predicted = squares * 1024 // (steps * steps * unkept)
                sq_norm[row, view, k] = (
                    predicted + unzigzag(int(codes["sq_norm"][row, view, k]))
                ) / 1024
    return {
        "manifest": manifest,
        "hierarchy": json.loads(group["hierarchy"][...].tobytes()),
        "sample_id": group["sample_id"][...],
        "label": group["label"][...],
        "index": codes["index"],
        "prob": codes["prob"] / steps,
        "confidence": confidence,
        "sq_norm": sq_norm,
        "valid": valid,
    }


def unzigzag(code: int) -> int:
    return (code >> 1) ^ -(code & 1)
