"""Every error a user can cause. The command line turns each into one line and exit code 2.

A message says what was found, what was expected and what to do. Caller bugs are ValueError or
TypeError and stay tracebacks.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

DISTRIBUTION = "distill-kd"  # as pip knows this package
MOST_SAID = 300  # characters of what another library says
DEAD_DECODER = ("DataLoader worker (pid", "Too many open files", "ancdata")


class DistillError(Exception):
    """Something the user can fix."""


class ConfigError(DistillError):
    """An option, a name or a file of settings is wrong."""


class NotFiniteError(ConfigError):
    """A loss or a logit is no number any more."""


class InUseError(DistillError):
    """Another process writes to the same place."""


class OutOfMemoryError(DistillError):
    """A device, or the machine, has no room for a batch."""


class DeviceUnavailableError(DistillError):
    """A device does not answer any more; starting again may help."""


class HierarchyError(DistillError):
    """A label set, a synset or a hierarchy file is wrong."""


class DataError(DistillError):
    """Images or labels are missing, unreadable or outside the label set."""


class DataUnavailableError(DataError):
    """Images cannot be read now; asking again may help."""


class StoreError(DistillError):
    """A logit store cannot be used."""


class StoreMismatchError(StoreError):
    """The store is of another teacher, hierarchy, dataset or view policy."""


class StoreUnavailableError(StoreError):
    """A bucket does not answer now; asking again may help."""


class IncompleteStoreError(StoreError):
    """Blocks are still to be computed."""


class CorruptStoreError(StoreError):
    """Bytes on disk are not what was committed."""


class TeacherError(DistillError):
    """The teacher cannot be loaded, or answers nonsense."""


class TeacherUnavailableError(TeacherError):
    """The teacher does not answer now; asking again may help."""


class TeacherRequestError(TeacherError):
    """The teacher refuses this request; asking again will not help."""


PASSING = (
    *(DataUnavailableError, DeviceUnavailableError),
    *(StoreUnavailableError, TeacherUnavailableError),
)


@contextmanager
def optional(extra: str, what: str) -> Iterator[None]:
    """Around imports of what is installed by an extra alone. what: needs it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or extra).partition(".")[0]
        raise ConfigError(
            f"{what} needs {package}, which is not installed; pip install '{DISTRIBUTION}[{extra}]'"
        ) from error


def printable(text: str) -> str:
    """File names may hold bytes that are no UTF-8, and control characters; both are escaped."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    if whole.isprintable():
        return whole
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole)


def first_line(error: BaseException, *having: str) -> str:
    """What another library's error says first, or its name. having: first with one of those."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    signs = [sign.lower() for sign in having]
    line = next((each for each in lines if any(s in each.lower() for s in signs)), lines[0])
    return line if len(line) <= MOST_SAID else f"{line[:MOST_SAID]}…"


def is_dead_decoder(error: BaseException) -> bool:
    """Whether torch says so that a process of its loader died, or cannot be heard any more."""
    return any(sign in str(error) for sign in DEAD_DECODER)


def dead_decoder(why: BaseException | str) -> str:
    """What to tell of it."""
    reason = why if isinstance(why, str) else first_line(why)
    cure = (
        "allow more open files (`ulimit -n 65536`)"
        if "open files" in reason
        else "give it more memory (in a container also shared memory, `docker run --shm-size 8g`)"
    )
    return (
        f"a process that decodes images died ({reason}), expected it to keep running; {cure}, or "
        "lower --workers or --batch-size"
    )


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """ " (did you mean A or B?)" with the known names that are near; empty where none is."""
    by_lower = {each.lower(): each for each in sorted(known, reverse=True)}
    near = difflib.get_close_matches(name.lower(), sorted(by_lower), n=limit, cutoff=0.6)
    near += [n for n in sorted(by_lower) if len(name) > 2 and name.lower() in n and n not in near]
    names = [by_lower[each] for each in near[:limit]]
    return (
        f" (did you mean {', '.join(names[:-1])}{' or ' * (len(names) > 1)}{names[-1]}?)"
        if names
        else ""
    )
