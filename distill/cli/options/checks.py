"""Checks of option values that need no library: they fail before torch or a teacher is loaded."""

import os
import re
from pathlib import Path
from typing import Any

import click

from distill.errors import ConfigError, DataError, StoreError
from distill.hierarchy.names import require_known_hierarchy
from distill.models.names import require_known_model
from distill.targets.encoding import EncodingSpec

LOCAL_MODEL = ("hf-hub:", "hf_hub:", "local-dir:")


def existing_location(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """A callback: a local path must exist; URLs and patterns are checked when they are opened."""
    pattern = str(value).endswith(".tar") and Path(str(value)).parent.is_dir()
    if value and "://" not in str(value) and not (Path(value).exists() or pattern):
        raise DataError(f"{value}: no such file or folder; expected images for {param.opts[0]}")
    return value


def known_label_set(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A callback: a bundled name or a file."""
    if value:
        require_known_hierarchy(value)
    return value


def known_encoding(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """A callback: each value must be an encoding."""
    for name in (value,) if isinstance(value, str) else value or ():
        EncodingSpec.named(name, (100,))
    return value


def existing_targets(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A callback: a store on disk must exist, a teacher in the process must be known."""
    if value and value.startswith("timm:"):
        require_known_model(value.removeprefix("timm:"), "teacher")
    elif value and "://" not in value and not Path(value).exists():
        raise StoreError(
            f"{value}: no such store; expected a folder that `distill precompute` wrote, "
            "http://HOST:PORT or timm:NAME"
        )
    return value


def device_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A callback: it reads like a device; whether it is there shows once torch is loaded."""
    if not re.fullmatch(r"[a-z]+(:\d+)?", value):
        raise ConfigError(f"device {value!r} found, expected auto, cpu, cuda or cuda:N")
    return value


def known_models(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """A callback: each value must be a model that timm has."""
    for name in (value,) if isinstance(value, str) else value or ():
        if not name.startswith(LOCAL_MODEL):
            require_known_model(name, str(param.opts[0]).removeprefix("--"))
    return value


def output_folder(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """A callback: the folder must be there or can be made, be writable, and be no store."""
    if value is None:
        return None
    if (value / "zarr.json").exists():
        raise ConfigError(
            f"{value}: a store found, expected a folder for {param.opts[0]}; choose another"
        )
    nearest = next(each for each in (value, *value.absolute().parents) if each.exists())
    if not nearest.is_dir():
        raise ConfigError(
            f"{nearest}: a file, expected a folder for {param.opts[0]}; choose another"
        )
    if not os.access(nearest, os.W_OK):
        raise ConfigError(
            f"{nearest}: not writable, expected a folder for {param.opts[0]}; choose another"
        )
    return value


def known_root_path(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A callback: a path such as /teacher, or none."""
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", value):
        raise ConfigError(f"{param.opts[0]} {value!r} found, expected a path such as /teacher")
    return value.rstrip("/")
