"""Results as JSON or as lines, as several commands print them: of stores, and of lists."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options.common import format_bytes

if TYPE_CHECKING:
    from distill.store.summary import StoreSummary


def print_result(as_json: bool, document: Mapping[str, Any], *lines: str) -> None:
    """One JSON document, or lines for people."""
    click.echo(json.dumps(document, allow_nan=False) if as_json else "\n".join(lines))


def state_line(summary: "StoreSummary") -> str:
    """Which teacher, how many images, how far."""
    state = (
        "complete" if summary.complete else "INCOMPLETE, {} of {} blocks".format(*summary.blocks)
    )
    return (
        f"{summary.path}: teacher {summary.teacher} ({summary.teacher_fingerprint[:12]}), "
        f"{summary.rows} images × {summary.views} views, {state}"
    )


def fidelity_line(summary: "StoreSummary") -> str:
    """The certificate's angles."""
    if not summary.fidelity:
        return "fidelity: not certified yet"
    angles = summary.fidelity["angle_deg"]

    def of(loss: str) -> str:
        students = {"fresh": "fresh student", "middle": "half-way", "near": "near the teacher"}
        said = [
            f"{angles[name]['median']:.2f}° {angles[name]['p99']:.2f}° {words}"
            for student, words in students.items()
            if (name := f"{loss}_{student}") in angles
        ]
        return f"{loss.upper()} {', '.join(said)}" if said else ""

    losses = "; ".join(filter(None, (of("mse"), of("kl"))))
    audited = summary.fidelity["views"]
    basis = f"{audited} views audited" if audited else summary.fidelity["how"]
    line = f"fidelity: KD gradient off by (median, p99) {losses} ({basis})"
    if own := angles.get("precision"):
        line += f"; the teacher's precision costs {own['median']:.2f}° {own['p99']:.2f}°"
    return line


def size_line(summary: "StoreSummary") -> str:
    """Bytes and bad images."""
    return (
        f"size: {format_bytes(summary.bytes_total)}, {summary.bytes_per_view:.0f} B per view; "
        f"bad images: {summary.invalid_rows}"
    )


def store_lines(summary: "StoreSummary") -> list[str]:
    """All that `store info` shows."""
    policy = ", ".join(f"{name} {value}" for name, value in summary.view_policy.items())
    entries = " ".join(map(str, summary.encoding["entries"]))
    made = summary.lineage and (
        f"made by: {summary.lineage['command']} of "
        f"{', '.join(source['store'] for source in summary.lineage['sources'])}"
    )
    return [
        state_line(summary),
        *summary.missing,
        *(f"teacher: {line}" for line in summary.teacher_about),
        *(["teacher: RANDOM WEIGHTS, of no use but for trials"] if summary.random_weights else []),
        f"{summary.hierarchies} hierarchies (digest {summary.hierarchy_digest[:12]}); "
        f"entries kept {entries}, probabilities in {summary.encoding['prob_steps']} steps",
        f"views from number {summary.first_view} on: {policy}",
        fidelity_line(summary),
        size_line(summary),
        *([made] if made else []),
    ]


def truth_lines(
    missing: Mapping[str, float | None], suspect: Mapping[str, float | None]
) -> list[str]:
    """How right lists of missing and suspect tags are, as they were scored."""
    ranking = suspect["average_precision"]
    return [
        f"missing tags against the truth: {missing['added']} added on {missing['images']} images, "
        f"precision {_percent(missing['precision'])}, recall {_percent(missing['recall'])} of "
        f"{missing['missing']}",
        f"suspect tags against the truth: {suspect['images']} listed, precision "
        f"{_percent(suspect['precision'])}, recall {_percent(suspect['recall'])} of "
        f"{suspect['wrong']} wrong ones, average precision "
        f"{'–' if ranking is None else f'{ranking:.3f}'}",
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
