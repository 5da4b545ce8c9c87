"""`distill store info`."""

import json

import click

from distill.cli import options


@click.group()
def store() -> None:
    """What a store is."""


@store.command()
@click.argument("path", metavar="STORE")
@options.as_json
def info(path: str, as_json: bool) -> None:
    """Rows, views, bytes, identity and fidelity of a store, without reading a row."""
    from store.logit_store import LogitStore
    from store.summary import summarise

    summary = summarise(LogitStore.open(path)).to_json()
    if as_json:
        click.echo(json.dumps(summary))
        return
    for name, value in summary.items():
        shown = (
            {k: v for k, v in value.items() if k != "how"}
            if name == "fidelity" and value
            else value
        )
        click.echo(f"{name:20s} {shown}")
