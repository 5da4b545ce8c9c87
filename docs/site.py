"""Build the documentation as a site: `make docs`, or `python docs/site.py [OUT]`.

The pages are the files of the repository as they lie, so that their links hold in both; what has
no page there is left out, and a link to it is an error.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "build/docs"  # named in mkdocs.yml
PAGES = ("*.md", "docs/**/*", "benchmarks/results/*.md", "deploy/**/*", "examples/*.py")
ALONE = ("LICENSE", "NOTICE", "distill/wire/inference.proto")


def stage() -> None:
    """Copy what becomes the site."""
    shutil.rmtree(STAGE, ignore_errors=True)
    found = [path for pattern in PAGES for path in ROOT.glob(pattern)]
    for path in (*found, *(ROOT / name for name in ALONE)):
        if path.is_file():
            place = STAGE / path.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md":
                place.write_text(_with_formulas(path.read_text()))
            else:
                shutil.copyfile(path, place)


def _with_formulas(text: str) -> str:
    """LaTeX as MathML, which browsers draw without a script."""
    return re.sub(
        r"^```math\n(.*?)^```$",
        lambda found: f"<p>{convert(found[1].strip(), display='block')}</p>",
        text,
        flags=re.MULTILINE | re.DOTALL,
    )


def main() -> None:
    stage()
    out = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "site")
    config = ROOT / "docs/mkdocs.yml"
    sys.exit(
        subprocess.call(
            [sys.executable, "-m", "mkdocs", "build", "-q", "-f", str(config), "-d", out]
        )
    )


if __name__ == "__main__":
    main()
