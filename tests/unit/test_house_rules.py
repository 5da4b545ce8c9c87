"""Rules of the house that no linter has: names that are unique, parameters that shadow nothing."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("distill", "store", "teacher_server", "trainers")


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_no_two_public_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for _, tree in modules()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_parameter_shadows_an_imported_module() -> None:
    shadowed = [
        f"{path.relative_to(ROOT)}: {function.name}({argument.arg})"
        for path, tree in modules()
        for names in [set(imported_modules(tree))]
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for argument in (*function.args.args, *function.args.kwonlyargs)
        if argument.arg in names
    ]
    assert shadowed == []


def imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                place = ROOT / node.module.replace(".", "/") / alias.name
                if place.is_dir() or place.with_suffix(".py").exists():
                    yield alias.asname or alias.name


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    dangling = [
        f"{path.relative_to(ROOT)}: {text.splitlines()[0]}"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if (text := ast.get_docstring(node)) and text.split()[0] in ("Of", "For")
    ]
    assert dangling == []
