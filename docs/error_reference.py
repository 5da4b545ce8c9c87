"""Writes docs/errors.md from the errors that the code raises: python docs/error_reference.py."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import distill
from distill import errors

ROOT = Path(distill.__file__).parent
HEAD = """# Errors

Every error that a user can cause, by its kind; `…` is what was found. Written from the code, by
`python docs/error_reference.py`. Each is one line on standard error that begins with `distill:` and
says what was found, what was expected and what to do; in Python it is an exception of
`distill.errors`, and all of them are `DistillError`. A command ends with exit code 2, or 75 where
asking again may help ([exit codes](cli.md#exit-codes)). Anything else, with a traceback, is a bug.
"""


def reference() -> str:
    """The whole page."""
    found: dict[str, set[str]] = {}
    for path in _modules():
        for name, text in _raised(ast.parse(path.read_text())):
            found.setdefault(name, set()).add(text)
    kinds = {name: kind for name in vars(errors) if (kind := _kind(name)) is not None}
    lines = [HEAD]
    for name, kind in kinds.items():
        if name not in found:
            continue
        passing = " Exit code 75." if issubclass(kind, errors.PASSING) else ""
        lines += [f"## {name}\n", f"{inspect.getdoc(kind)}{passing}\n"]
        lines += [f"- {text}" for text in sorted(found[name], key=_place)]
        lines.append("")
    return "\n".join(lines)


def _kind(name: str) -> type[errors.DistillError] | None:
    """An error of a user, by its name."""
    kind = getattr(errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, errors.DistillError) else None


def _place(text: str) -> tuple[str, str]:
    """By the first words that stay the same."""
    return text.strip("…:' ").casefold(), text


def _modules() -> Iterator[Path]:
    folders = [ROOT, *(each for each in ROOT.iterdir() if each.is_symlink() and each.is_dir())]
    seen: set[Path] = set()
    for folder in folders:
        for path in folder.resolve().rglob("*.py"):
            if path not in seen:
                seen.add(path)
                yield path


def _raised(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Kind and text of each error that is made from one."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and (kind := _kind(node.func.id))
            and node.args
            and (text := _text(node.args[0]).strip())
            and text.strip("… ")
        ):
            yield kind.__name__, _escaped(text)


def _text(node: ast.expr) -> str:
    """A message with … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(each) for each in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"


def _escaped(text: str) -> str:
    """As Markdown shows it, without marks of its own."""
    return "".join(f"\\{c}" if c in "\\*_<>[]" else c for c in " ".join(text.split()))


if __name__ == "__main__":
    Path(__file__).with_name("errors.md").write_text(reference(), encoding="utf-8")
