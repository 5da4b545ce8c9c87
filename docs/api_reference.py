"""Writes docs/api.md from the docstrings of what `distill` lists: python docs/api_reference.py."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import distill

HEAD = """# The Python API

What `import distill` offers, and keeps: anything else may change. Written from the docstrings by
`python docs/api_reference.py`. [Your own loop](your-own-loop.md) shows it at work.
"""
MADE_BY_OTHERS = ("Targets", "Criterion", "TargetDataset", "TargetSampler", "DistillError")
WIDTH = 100


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(line for name in distill.__all__ for line in entry(name))])


def entry(name: str) -> Iterator[str]:
    """One public name; of a class also its own public members."""
    thing = getattr(distill, name)
    yield f"## `distill.{name}`\n"
    if not inspect.isclass(thing):
        yield from described(name, thing)
        return
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    assert isinstance(tree, ast.ClassDef)
    fields = [ast.unparse(node) for node in tree.body if isinstance(node, ast.AnnAssign)]
    if fields and name not in MADE_BY_OTHERS:
        yield code([f"class {name}:", *(f"    {field}" for field in fields)])
    yield f"{inspect.getdoc(thing)}\n"
    for own, member in vars(thing).items():
        if own.startswith("_") or not inspect.getdoc(member):
            continue
        if isinstance(member, property | cached_property):
            yield f"### `{name}.{own}`\n"
            yield f"{inspect.getdoc(member)}\n"
        elif inspect.isfunction(member) or isinstance(member, classmethod):
            yield f"### `{name}.{own}()`\n"
            yield from described(own, getattr(thing, own))


def described(name: str, function: Any) -> Iterator[str]:
    """Signature as it is written, and docstring."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.FunctionDef)
    arguments = tree.args
    arguments.args = [each for each in arguments.args if each.arg not in ("self", "cls")]
    gives = f" -> {ast.unparse(tree.returns)}" if tree.returns else ""
    line = f"{name}({ast.unparse(arguments)}){gives}"
    if len(line) > WIDTH:
        parts = _parts(ast.unparse(arguments))
        yield code([f"{name}(", *(f"    {part}," for part in parts), f"){gives}"])
    else:
        yield code([line])
    text = inspect.getdoc(function) or ""
    indented = "Args:" in text or "Raises:" in text
    yield f"```text\n{text}\n```\n" if indented else f"{text}\n"


def _parts(arguments: str) -> list[str]:
    """Split at commas outside of brackets."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def code(lines: list[str]) -> str:
    """A block of Python."""
    return "\n".join(["```python", *lines, "```", ""])


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(reference(), encoding="utf-8")
