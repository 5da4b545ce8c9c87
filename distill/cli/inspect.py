"""`distill inspect`: what the teacher believes, per hierarchy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distill.cli import options

if TYPE_CHECKING:
    from store.summary import HierarchySummary, StoreSummary


@click.command()
@click.argument("path", metavar="STORE", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it: .png, .svg or .pdf.")
@options.as_json
def inspect(path: Path, plot: Path | None, as_json: bool) -> None:
    """Print the teacher's confidence per hierarchy, labels, fidelity and size of STORE."""
    from dataclasses import asdict

    from distill.hierarchy import SemanticHierarchy
    from store.logit_store import LogitStore
    from store.summary import QUANTILES, confidence_by_hierarchy, summarise

    opened = LogitStore.open(path)
    summary = summarise(opened)
    hierarchy = SemanticHierarchy.from_json(opened.hierarchy)
    opened.manifest.require(str(path), hierarchy_digest=hierarchy.digest)
    rows = confidence_by_hierarchy(opened, hierarchy.label_table)
    if plot:
        from distill.charts import draw_confidence

        draw_confidence(
            plot,
            classes=[row.classes for row in rows],
            quantiles=[row.confidence_quantiles for row in rows],
            means=[row.confidence_mean for row in rows],
            labelled=[row.labelled for row in rows],
            title=f"Confidence of {summary.teacher} per hierarchy",
        )
    if as_json:
        hierarchies = [asdict(row) for row in rows]
        click.echo(
            json.dumps({**summary.to_json(), "quantiles": QUANTILES, "per_hierarchy": hierarchies})
        )
        return
    print_report(summary, rows)
    if plot:
        click.echo(f"plot: {plot}")


def print_report(summary: "StoreSummary", rows: "list[HierarchySummary]") -> None:
    """The report for people."""
    from rich.console import Console
    from rich.table import Table

    from store.summary import QUANTILES

    console = Console(soft_wrap=True)
    state = "complete" if summary.complete else "INCOMPLETE, {} of {} blocks".format(*summary.blocks)
    console.print(
        f"{summary.path}: teacher {summary.teacher} ({summary.teacher_fingerprint[:12]}), "
        f"{summary.rows} images × {summary.views} views, {state}",
        highlight=False,
        markup=False,
    )
    table = Table(title="confidence P_k of the teacher alone", title_justify="left")
    for heading in ("hierarchy", "classes", "mean", *(f"{q:.0%}" for q in QUANTILES)):
        table.add_column(heading, justify="right")
    table.add_column("labelled", justify="right")
    table.add_column("kept entries", justify="right")
    table.add_column("kept mass", justify="right")
    for row in rows:
        table.add_row(
            str(row.hierarchy),
            str(row.classes),
            f"{row.confidence_mean:.3f}",
            *(f"{q:.3f}" for q in row.confidence_quantiles),
            f"{row.labelled:.1%}",
            f"{row.kept_entries:.1f}",
            f"{row.kept_mass:.4f}",
        )
    console.print(table)
    if summary.fidelity:
        angle = summary.fidelity["gradient_angle_deg"]
        near = summary.fidelity["near_teacher"]["gradient_angle_deg"]
        console.print(
            f"fidelity: KD gradient {angle['median']:.2f}° median, {angle['p99']:.2f}° p99 from the "
            f"exact one for a fresh student, {near['median']:.2f}° and {near['p99']:.2f}° near the "
            f"teacher ({summary.fidelity['rows']} views audited)",
            highlight=False,
        )
    console.print(
        f"size: {summary.bytes_total / 2**20:.2f} MiB, {summary.bytes_per_view:.0f} B a view; "
        f"bad images: {summary.invalid_rows}",
        highlight=False,
    )
