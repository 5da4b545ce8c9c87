"""What distill needs: sizes, licences, known vulnerabilities, a bill of materials: `make audit`.

    python deploy/audit.py OUT

Looks at the packages of the running environment that the image has. Ends with 1
where a licence is not known to go with Apache-2.0, or a vulnerability is known. A database that
cannot be reached is said, and no error.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, files, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

# Words of licences under which a package may be used beside Apache-2.0 code that is not changed.
FREE = re.compile(
    r"\b(mit|mit-cmu|apache|bsd|psf|python|isc|mpl|zpl|zlib|0bsd|cc0|hpnd|unlicense|bsl-1\.0)\b"
)
# CUDA's libraries, which torch brings; they may be used, and passed on with it.
NVIDIA = re.compile(r"\bnvidia\b")
EXTRAS = ("arrow", "charts", "detect", "otel", "ray", "s3", "video")  # of container/Dockerfile
KNOWN = {"distill-kd": "Apache-2.0", "cuda-toolkit": "NVIDIA"}  # that do not say it themselves


def dependencies(name: str, extras: Sequence[str] = (), found: set[str] | None = None) -> set[str]:
    """Names of all packages that `name` with these extras needs here."""
    found = set() if found is None else found
    try:
        needed = requires(name) or []
    except PackageNotFoundError:
        return found
    found.add(_normal(name))
    for text in needed:
        requirement = Requirement(text)
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": e}) for e in ("", *extras))
        if wanted and _normal(requirement.name) not in found:
            dependencies(requirement.name, [*requirement.extras], found)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def sizes(names: set[str]) -> None:
    """Print the MiB of each package as it was installed, the largest first."""
    taken = {name: sum(_bytes(name)) / 2**20 for name in names}
    print(f"size: {sum(taken.values()):.0f} MiB")
    for name, size in sorted(taken.items(), key=lambda item: -item[1]):
        print(f"size of {name}: {size:.1f}")


def _bytes(name: str) -> Iterator[int]:
    for file in files(name) or ():
        path = Path(str(file.locate()))
        if path.is_file():
            yield path.stat().st_size


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False
    )


def licences(names: set[str]) -> list[str]:
    """What is wrong; prints how many there are of each."""
    listed: list[dict[str, Any]] = json.loads(_run("piplicenses", "--format=json").stdout)
    wrong, counts = [], dict[str, int]()
    for each in listed:
        name = _normal(each["Name"])
        licence = KNOWN.get(name, each["License"])
        if name not in names:
            continue
        counts[licence] = counts.get(licence, 0) + 1
        words = licence.lower()
        if not (FREE.search(words) or NVIDIA.search(words)) or re.search(r"\b[al]?gpl", words):
            wrong.append(f"{each['Name']} {each['Version']}: licence {licence!r}")
    for licence, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"licence {licence}: {count}")
    return wrong


def vulnerabilities(names: set[str]) -> list[str]:
    """Known ones, by pip-audit."""
    done = _run("pip_audit", "--format=json", "--progress-spinner=off")
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"vulnerabilities: not looked up, no database can be reached ({last})")
        return []
    ours = [package for package in packages if _normal(package["name"]) in names]
    unknown = [p["name"] for p in ours if "skip_reason" in p]
    print(f"vulnerabilities: {len(ours) - len(unknown)} of {len(ours)} packages looked up")
    if unknown:
        print(f"vulnerabilities: the database has no {', '.join(unknown[:3])}, …")
    return [
        f"{package['name']} {package['version']}: {each['id']}"
        for package in packages
        if _normal(package["name"]) in names
        for each in package.get("vulns", [])
    ]


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    names = dependencies("distill-kd", EXTRAS)
    print(f"{len(names)} packages")
    sizes(names)
    wrong = [*licences(names), *vulnerabilities(names)]
    bill = out / "sbom.json"
    done = _run("cyclonedx_py", "environment", sys.executable, "--output-file", str(bill))
    if done.returncode:
        sys.exit(done.stderr)
    document = json.loads(bill.read_text())
    document["components"] = [c for c in document["components"] if _normal(c["name"]) in names]
    bill.write_text(json.dumps(document, indent=1) + "\n")
    print(f"bill of materials: {bill}, {len(document['components'])} components")
    for line in wrong:
        print(line)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
