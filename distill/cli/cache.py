"""`distill cache`: decoded views and what else is kept to be fast; all of it can be made again."""

import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from distill.cli.options import common
from distill.cli.options.command import PATH, Group, option
from distill.cli.options.common import format_bytes
from distill.cli.output import print_result
from distill.files import CACHE

# How names of files end, and what they are.
KINDS = {
    "view": "decoded view",
    "ids": "sample ids",
    "beliefs": "figures of inspect",
}


@click.group(cls=Group)
def cache() -> None:
    """List, check and clear the cache of this machine."""


folder_option = option("--cache", type=PATH, default=Path(CACHE), help="Folder of the cache.")


@cache.command("list", examples=[""])
@folder_option
@common.as_json
def list_files(cache: Path, as_json: bool) -> None:
    """List what is kept: size, kind, when it was opened last."""
    from distill.store.views.cache import Cache

    files = Cache(cache.expanduser()).files()
    lines = [
        f"{format_bytes(file.bytes):>10}  {_kind(file.name):18s}  "
        f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(file.opened))}  "
        f"{file.name}{'  in use' if file.in_use else ''}"
        for file in files
    ]
    total = sum(file.bytes for file in files)
    print_result(
        as_json,
        {"folder": str(cache), "files": [asdict(file) for file in files], "bytes": total},
        *lines,
        f"{cache}: {len(files)} files, {format_bytes(total)}",
    )


@cache.command(examples=[""])
@folder_option
@common.as_json
def verify(cache: Path, as_json: bool) -> None:
    """Check every byte, and remove what is damaged: it is made again when it is needed.

    Exits with 2 if anything was.
    """
    from distill.store.views.cache import Cache

    files = Cache(cache.expanduser())
    count, damaged = len(files.files()), files.damaged()
    print_result(
        as_json,
        {"ok": not damaged, "files": count, "removed": damaged},
        *(f"damaged, and removed: {name}" for name in damaged),
        f"{cache}: {count} files, {len(damaged)} damaged",
    )
    if damaged:
        sys.exit(2)


@cache.command(examples=[""])
@folder_option
@common.as_json
def clear(cache: Path, as_json: bool) -> None:
    """Remove all that no process uses. Unfinished work of servers (*.spool) stays."""
    from distill.store.views.cache import Cache

    freed = Cache(cache.expanduser()).clear()
    print_result(as_json, {"freed": freed}, f"{cache}: {format_bytes(freed)} freed")


def _kind(name: str) -> str:
    return next((kind for end, kind in KINDS.items() if f"-{end}" in name), "figures of inspect")
