"""Frozen dataclasses from TOML files and `key=value` words, nested ones by dotted keys.

Knows no recipe: whoever owns the settings owns the dataclass. Types and choices are pydantic's
work; what a value may be is checked by the dataclass itself.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from distill.errors import ConfigError, near_names

Settings = TypeVar("Settings")


def read_settings(
    kind: type[Settings],
    file: Path | None,
    words: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """A `kind` from defaults, a TOML file, `key=value` words and options that are not None.

    What comes later overrides what came before.

    Raises:
        ConfigError: a key is unknown or missing, a value is of another type or out of range.
    """
    document = {**(defaults or {}), **(_read(file) if file else {})}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"-o {word} found, expected KEY=VALUE, as in -o lr=3e-4")
        _put(document, key.strip(), value.strip())
    for key, value in (options or {}).items():
        if value is not None:
            _put(document, key, value)
    where = f"{file}: " if file else ""
    known = dict(_keys(kind))
    for key in flat(document):
        if key not in known:
            raise ConfigError(f"{where}unknown setting {key!r}; near are {near_names(key, known)}")
    try:
        return TypeAdapter(kind).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ConfigError(f"{where}no {key} found, expected one; pass -o {key}=…") from error
        raise ConfigError(f"{where}{key} {first['input']!r} found: {first['msg']}") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file; expected settings in TOML") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file}: not readable as TOML ({error}); mend it") from error


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for table in tables:
        inner = document.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"unknown setting {key!r}: {table} is a value, expected a table")
        document = inner
    document[last] = value


def _keys(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all settings."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from _keys(hints[field.name], f"{prefix}{field.name}.")
        yield prefix + field.name, hints[field.name]


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
