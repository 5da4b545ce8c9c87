"""The documents name what is there: every module in the map, every dotted name, every file."""

import importlib
import re
import runpy
import tomllib
from pathlib import Path

import pytest
from command_words import in_blocks, require_known

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("distill", "store", "teacher_server", "trainers")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
# A changelog and decisions tell of what was.
CURRENT = [path for path in DOCUMENTS if path.name not in ("CHANGELOG.md", "decisions.md")]
NAMES = re.compile(r"`(distill(?:\.\w+)+)(?:\(.*?\))?`")
TOPS = "distill|store|teacher_server|trainers|tests|docs|deploy|benchmarks"
FILES = re.compile(rf"`((?:{TOPS})/[\w./-]+\.\w+)`|\]\(([\w./-]+)\)")


def test_the_map_names_every_module_once() -> None:
    rows = re.findall(r"^\| `([\w/]+)/` \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    listed = {folder: re.findall(r"`(\w+)`", modules) for folder, modules in rows}
    there: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py":
                there.setdefault(path.parent.relative_to(ROOT).as_posix(), set()).add(path.stem)
    assert {*listed} == {*there}
    for folder, modules in listed.items():
        assert sorted(modules) == sorted(there[folder]), folder


def test_no_folder_has_more_than_fifteen_modules() -> None:
    for package in PACKAGES:
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            assert len([*folder.glob("*.py")]) <= 15, folder
    assert len([*(ROOT / "distill").glob("*.py")]) <= 10


@pytest.mark.parametrize("document", CURRENT, ids=lambda path: path.name)
def test_dotted_names_in_a_document_resolve(document: Path) -> None:
    for name in NAMES.findall(document.read_text(encoding="utf-8")):
        assert resolves(name), f"{document.name}: {name}"


@pytest.mark.parametrize("document", CURRENT, ids=lambda path: path.name)
def test_files_that_a_document_names_are_there(document: Path) -> None:
    for plain, linked in FILES.findall(document.read_text(encoding="utf-8")):
        if plain:
            assert (ROOT / plain).exists(), f"{document.name}: {plain}"
        if linked:
            assert (document.parent / linked).exists(), f"{document.name}: {linked}"


@pytest.mark.parametrize("document", [*CURRENT, ROOT / "docs/decisions.md"], ids=lambda p: p.name)
def test_commands_of_a_document_are_some_that_there_are(document: Path) -> None:
    for words in in_blocks(document.read_text(encoding="utf-8")):
        require_known(words)


def resolves(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for attribute in parts[length:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@pytest.mark.parametrize(
    ("writer", "written"), [("api", "api"), ("command", "commands"), ("error", "errors")]
)
def test_a_reference_is_written_from_the_code(writer: str, written: str) -> None:
    module = runpy.run_path(str(ROOT / f"docs/{writer}_reference.py"))
    page = (ROOT / f"docs/{written}.md").read_text(encoding="utf-8")
    assert page == module["reference"](), f"run: python docs/{writer}_reference.py"


def test_every_dependency_earns_its_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split("[><=]", each)[0] for each in project["dependencies"]}
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^\| ([\w-]+) \| \d", page, re.M)} == needed
    extras = {*project["optional-dependencies"]} - {"bench", "dev"}
    assert {*re.findall(r"^\| `(\w+)` \|", page, re.M)} == extras
