"""Names of models, known without importing timm or torch.

timm registers a model by a decorator on a function of its name, so its source files say which there
are. Reading them takes a few hundredths of a second, importing timm takes seconds.
"""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from distill.errors import ConfigError, did_you_mean

WITHOUT_FILE = ("pretrained", "random")  # words of --init; all else is a run or a weight file
REGISTERED = re.compile(r"^@register_model\ndef (\w+)\(", re.MULTILINE)


@cache
def architectures() -> frozenset[str]:
    """All that the installed timm registers."""
    package = find_spec("timm")
    if package is None or not package.submodule_search_locations:
        raise ConfigError("timm is not installed, expected it; pip install timm")
    folder = Path(package.submodule_search_locations[0]) / "models"
    sources = (path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    return frozenset(name for source in sources for name in REGISTERED.findall(source))


def require_known_model(name: str, role: str) -> str:
    """`name` without its pretrained tag, if timm has that architecture. role: for the message.

    Raises:
        ConfigError: it has not; suggests near ones.
    """
    architecture = name.partition(".")[0]
    if architecture not in architectures():
        raise ConfigError(
            f"unknown {role} {name!r}{did_you_mean(architecture, architectures())}, expected a "
            "model of timm"
        )
    return architecture
