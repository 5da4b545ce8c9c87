"""`distill inspect`: what the teacher believes, per hierarchy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distill.cli import options
from distill.cli.report import fidelity_line, size_line, state_line

if TYPE_CHECKING:
    from store.summary import HierarchySummary, StoreSummary


@click.command()
@click.argument("path", metavar="STORE")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it: .png, .svg or .pdf.")
@options.as_json
def inspect(path: str, plot: Path | None, as_json: bool) -> None:
    """Print the teacher's confidence per hierarchy, labels, fidelity and size of STORE."""
    from dataclasses import asdict

    from distill.hierarchy import SemanticHierarchy
    from store.logit_store import LogitStore
    from store.summary import QUANTILES, confidence_by_hierarchy, summarise

    opened = LogitStore.open(path)
    summary = summarise(opened)
    hierarchy = SemanticHierarchy.from_json(opened.hierarchy)
    opened.manifest.require(path, hierarchy_digest=hierarchy.digest)
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
    from store.summary import QUANTILES

    click.echo(state_line(summary))
    click.echo("confidence P_k of the teacher alone, its quantiles; kept entries and their mass")
    quantiles = "".join(f"{q:>7.0%}" for q in QUANTILES)
    click.echo(f"hierarchy  classes   mean{quantiles}  labelled  entries    mass")
    for row in rows:
        spread = "".join(f"{q:7.3f}" for q in row.confidence_quantiles)
        click.echo(
            f"{row.hierarchy:9d}  {row.classes:7d}  {row.confidence_mean:5.3f}{spread}  "
            f"{row.labelled:8.1%}  {row.kept_entries:7.1f}  {row.kept_mass:6.4f}"
        )
    click.echo(fidelity_line(summary))
    click.echo(size_line(summary))
