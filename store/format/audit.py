"""How faithful a store is to its teacher: what was measured view by view, and figures of it.

Each commit record holds the angles of some of its block's views, so the sample comes from all over
the store, and what becomes of the store keeps those of its rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_ROWS, SHARE = 1024, 0.001  # of a store that are audited
DECIMALS = 3
# By loss: p99 above which users are told, and an encoding that is below (benchmarks/kd_gain.py).
MOST_DEG = {"mse": 6.0, "kl": 20.0}
MENDS = {"mse": "fine", "kl": "dense"}
STUDENTS = {"fresh": "that knows nothing", "middle": "half-way", "near": "near the teacher"}

# An angle is named by loss and student, as mse_fresh; this one is what the teacher's own precision
# costs against float32.
PRECISION = "precision"
HOW = (
    "Angle in degrees between the gradients of the semantic KD loss by the student's logits, from "
    "the store and from the teacher's exact answers, weighted as in training; students: uniform in "
    "every hierarchy (fresh), half-way (middle: the geometric mean of the answers to this image "
    "and another), the teacher at temperature 2 (near)."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditedViews:
    """n views of some rows. row, view: [n] as the store counts them. angles: [n] by name."""

    row: NDArray[np.int64]
    view: NDArray[np.int64]
    angles: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def none(cls) -> "AuditedViews":
        """Nothing, audited."""
        return cls(row=np.zeros(0, np.int64), view=np.zeros(0, np.int64), angles={})

    @classmethod
    def together(cls, parts: Sequence["AuditedViews"]) -> "AuditedViews":
        """Those of all parts; angles that some have not are left out."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return cls.none()
        names = [n for n in parts[0].angles if all(n in part.angles for part in parts)]
        return cls(
            row=np.concatenate([part.row for part in parts]),
            view=np.concatenate([part.view for part in parts]),
            angles={name: np.concatenate([part.angles[name] for part in parts]) for name in names},
        )

    def select(self, which: NDArray[Any]) -> "AuditedViews":
        """Those, by index or by mask."""
        angles = {name: values[which] for name, values in self.angles.items()}
        return AuditedViews(row=self.row[which], view=self.view[which], angles=angles)

    def figures(self) -> dict[str, Any] | None:
        """Median, p99 and maximum of each angle, for a certificate; None of nothing."""
        if not len(self):
            return None
        angles = {name: _spread(values) for name, values in self.angles.items()}
        return {"views": len(self), "angle_deg": angles, "how": HOW}

    def to_json(self) -> dict[str, Any]:
        """What a commit record holds of it."""
        return {
            "row": self.row.tolist(),
            "view": self.view.tolist(),
            "angle_deg": {n: np.round(v, DECIMALS).tolist() for n, v in self.angles.items()},
        }

    @classmethod
    def from_json(cls, document: Any) -> "AuditedViews":
        """What a commit record holds; nothing where it has none, or one of format 2."""
        if not isinstance(document, dict) or "angle_deg" not in document:
            return cls.none()
        return cls(
            row=np.array(document["row"], np.int64),
            view=np.array(document["view"], np.int64),
            angles={n: np.array(v, np.float64) for n, v in document["angle_deg"].items()},
        )


def audited_rows(block_rows: int, num_blocks: int) -> int:
    """How many rows of each block are audited, the first ones: they stand in hashed order."""
    return min(block_rows, max(ceil(LEAST_ROWS / num_blocks), ceil(SHARE * block_rows)))


def certificate_of(records: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What the records of a whole store say: fidelity, replay proofs, bad images."""
    audits = [AuditedViews.from_json(record.get("audit")) for record in records.values()]
    replay: dict[str, Any] = {}
    for record in records.values():
        replay |= record.get("replay", {})
    measured = AuditedViews.together(audits).figures()
    inherited = [r["inherited"] for r in records.values() if r.get("inherited")]
    return {
        "fidelity": worst_of([*([measured] if measured else []), *inherited]),
        "replay": replay,
        "bad_images": sum(len(record["bad"]) for record in records.values()),
    }


def worst_of(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The largest of each figure that all of them have; None of none."""
    if not figures:
        return None
    names = [n for n in figures[0]["angle_deg"] if all(n in f["angle_deg"] for f in figures)]
    worst = {
        name: {
            of: max(each["angle_deg"][name][of] for each in figures)
            for of in ("median", "p99", "max")
        }
        for name in names
    }
    return {
        "views": sum(each["views"] for each in figures),
        "angle_deg": worst,
        "how": " ".join(dict.fromkeys(each["how"] for each in figures)),
    }


def fidelity_warning(fidelity: Mapping[str, Any] | None, loss: str) -> str | None:
    """What to tell a user whose loss is `loss`; None where nothing is to be told."""
    angles = {n: a for n, a in (fidelity or {}).get("angle_deg", {}).items() if n.startswith(loss)}
    worst = max(angles, key=lambda name: angles[name]["p99"], default=None)
    if worst is None or angles[worst]["p99"] <= MOST_DEG[loss]:
        return None
    student = STUDENTS[worst.removeprefix(f"{loss}_")]
    return (
        f"the store's answers turn the {loss.upper()} gradient by {angles[worst]['median']:.1f}° "
        f"(median; {angles[worst]['p99']:.1f}° p99) for a student {student}, "
        f"more than {MOST_DEG[loss]:.0f}° p99; a finer one is `distill precompute --encoding "
        f"{MENDS[loss]}`, or entries=N,steps=M"
    )


def modern(certificate: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A certificate of format 2 in today's words."""
    fidelity = certificate and certificate["fidelity"]
    if not certificate or not fidelity or "gradient_angle_deg" not in fidelity:
        return certificate
    angles = {
        "mse_fresh": fidelity["gradient_angle_deg"],
        "mse_near": fidelity["near_teacher"]["gradient_angle_deg"],
    }
    today = {"views": fidelity["rows"], "angle_deg": angles, "how": fidelity["how"]}
    return {**certificate, "fidelity": today}


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    median, p99 = np.quantile(values, [0.5, 0.99])
    # Three digits: more are noise, and no number needs an exponent in the store's documents.
    figures = {"median": median, "p99": p99, "max": values.max()}
    return {name: round(float(value), DECIMALS) for name, value in figures.items()}
