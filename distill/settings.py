"""Frozen dataclasses from values by dotted key, and TOML files that hold such values.

Knows no recipe: whoever owns the settings owns the dataclass. Types and choices are pydantic's
work; what a value may be is checked by the dataclass itself.
"""

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from distill.errors import ConfigError, did_you_mean

Settings = TypeVar("Settings")
RECIPES = Path(__file__).parent / "recipes"  # deploy/configs of the repository


def make_settings(
    kind: type[Settings], values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Settings:
    """A `kind` from values by dotted key, those of None left out, over defaults.

    Raises:
        ConfigError: a key is unknown or missing, a value is of another type or out of range.
    """
    document = dict(defaults or {})
    known = dict(keys_of(kind))
    free = tuple(f"{key}." for key, hint in known.items() if get_origin(hint) is dict)
    for key, value in values.items():
        if value is not None:
            _put(document, key, _as_toml(value) if key.startswith(free) else value)
    for key in flat(document):
        if key not in known and not key.startswith(free):
            raise ConfigError(f"unknown setting {key!r}{did_you_mean(key, known)}")
    try:
        return TypeAdapter(kind).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ConfigError(f"no {key} found, expected one; pass -o {key}=…") from error
        expected = first["msg"].replace("Input should be", "expected")
        raise ConfigError(f"{key} {first['input']!r} found, {expected}") from error


def recipe_names() -> tuple[str, ...]:
    """Files of settings that come with the package."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.toml")))


def read_toml(file: Path) -> dict[str, Any]:
    """A file of settings, or where there is none the recipe of that name.

    Raises:
        ConfigError: it cannot be read.
    """
    if not file.exists() and str(file) in recipe_names():
        file = RECIPES / f"{file}.toml"
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = recipe_names()
        raise ConfigError(
            f"{file}: no such file{did_you_mean(str(file), known)}; expected settings in TOML, or a"
            f" recipe: {', '.join(known)}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file}: not readable as TOML ({error}); fix it") from error


def _as_toml(value: Any) -> Any:
    """A number, a truth or a list, where text is one; nothing says the types of free tables."""
    if isinstance(value, str):
        with suppress(tomllib.TOMLDecodeError):
            return tomllib.loads(f"value = {value}")["value"]
    return value


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for table in tables:
        inner = document.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"unknown setting {key!r}: {table} is a value, expected a table")
        document = inner
    document[last] = value


def keys_of(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all settings."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from keys_of(hints[field.name], f"{prefix}{field.name}.")
        yield prefix + field.name, hints[field.name]


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by their dotted keys."""
    flattened: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{prefix}{key}.")
        else:
            flattened[prefix + key] = value
    return flattened
