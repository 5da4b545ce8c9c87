"""Names that people give to splits, and which split each means.

train, Training, train2017, imagenet21k_train, imagenet1k-train-0000.tar; val, valid, validation,
dev; test, testing; and their like. Knows names alone; `distill.data.layout` looks into folders.
"""

import re
from collections.abc import Iterable, Mapping

from distill.errors import DataError

WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}
# What people add to the word without meaning anything else by it.
FILLERS = {"set", "split", "data", "dataset", "image", "images", "img", "imgs", "jpeg", "jpg"}
# Folders of the system, of programs, and of what was deleted; names that begin with . are hidden.
SYSTEM = {"__macosx", "lost+found", "$recycle.bin", "system volume information", "#recycle"}
SYSTEM |= {"@eadir", "@recycle", "@tmp", "thumbs.db", "desktop.ini"}


def is_hidden(name: str) -> bool:
    """Whether a folder or a file is hidden, or the system's: never a class and never an image."""
    return name.startswith(".") or name.casefold() in SYSTEM


def split_of(name: str) -> str | None:
    """The split that a name is of: train, val or test; None where it is of none, or of several."""
    found = {SPLIT_OF[word] for word in _words(name) if word in SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def has_word(name: str, word: str) -> bool:
    """Whether a name has that word, as shard-extra-000 has extra."""
    return word.casefold() in _words(name)


def is_split_name(name: str) -> bool:
    """Whether a name says nothing but a split, as train_images does and bullet_train does not."""
    words = _words(name)
    return split_of(name) is not None and {*words} <= {*SPLIT_OF, *FILLERS}


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """By name, the split of those folders that stand for one.

    A name that says nothing but a split is one. NAME_train is one where it is alone, or where
    NAME_val or its like is beside it; bullet_train among other classes is none.
    """
    names = [name for name in names if not is_hidden(name)]
    splits = {name: split for name in names if (split := split_of(name))}
    partners: dict[tuple[str, ...], set[str]] = {}
    for name, split in splits.items():
        partners.setdefault(_other_words(name), set()).add(split)
    return {
        name: split
        for name, split in splits.items()
        if is_split_name(name) or len(names) == 1 or len(partners[_other_words(name)]) > 1
    }


def canonical(split: str) -> str:
    """train, val or test for a word that means it; another name as it is."""
    return SPLIT_OF.get(split.casefold(), split)


def named_folder(folders: Mapping[str, str], split: str, where: str) -> str | None:
    """The one of `folders`, as `split_folders` gives them, that a split is in; None without one.

    Raises:
        DataError: several are.
    """
    several = sorted(name for name, each in folders.items() if each == canonical(split))
    if len(several) > 1:
        raise DataError(
            f"{where}: {' and '.join(several)} all look like the split {split}, expected one; "
            "pass the folder itself, or rename the others"
        )
    return several[0] if several else None


def _words(name: str) -> list[str]:
    """Lower case, without digits at their ends: ILSVRC2012_imgTrain gives ilsvrc, img, train."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold()
    words = (word.rstrip("0123456789") for word in re.split(r"[\W_]+", apart))
    return [word for word in words if word]


def _other_words(name: str) -> tuple[str, ...]:
    return tuple(word for word in _words(name) if word not in SPLIT_OF)
