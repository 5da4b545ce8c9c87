"""WordNet 3.0 through nltk, and the label sets that timm ships. Needed to build, never to run."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from distill.errors import HierarchyError

# Our names for the label sets of the paper, and timm's files of them.
TIMM_LABEL_SETS = {
    "imagenet21k-p-fall11": "imagenet21k_miil_synsets.txt",
    "imagenet21k-p-winter21": "imagenet21k_miil_w21_synsets.txt",
}


def read_label_set(source: str) -> list[str]:
    """Synsets in order: one of `TIMM_LABEL_SETS`, or a text file, a wnid a line (# comments)."""
    if source in TIMM_LABEL_SETS:
        text = (resources.files("timm.data") / "_info" / TIMM_LABEL_SETS[source]).read_text()
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HierarchyError(
                f"{source}: cannot be read as a label set ({error}); expected a text file with one "
                f"wnid a line, or one of {', '.join(TIMM_LABEL_SETS)}"
            ) from error
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def hypernym_paths(synsets: Sequence[str]) -> dict[str, list[str]]:
    """Each synset's hypernyms up to the root, nearest first, as wnids.

    Where WordNet gives several, the one whose name sorts first is followed: nltk returns them in
    set order, which changes with PYTHONHASHSEED. Instance hypernyms count where there are no
    others.
    """
    return {wnid: _path_to_root(wnid) for wnid in synsets}


def lemmas(synsets: Sequence[str]) -> dict[str, str]:
    """Each synset's first lemma, such as "aquatic_bird"."""
    return {wnid: str(_synset(wnid).lemma_names()[0]) for wnid in synsets}


def wnid_of(name: str) -> str:
    """The wnid of WordNet's name of a synset, such as swan.n.01; "" where there is none.

    Raises:
        HierarchyError: WordNet is not installed.
    """
    from nltk.corpus import wordnet
    from nltk.corpus.reader.wordnet import WordNetError

    try:
        return f"n{wordnet.synset(name).offset():08d}"
    except LookupError as error:
        raise _not_installed() from error
    except (WordNetError, ValueError, KeyError):
        return ""


def _path_to_root(wnid: str) -> list[str]:
    path: list[str] = []
    synset = _synset(wnid)
    while above := synset.hypernyms() or synset.instance_hypernyms():
        synset = min(above, key=lambda s: str(s.name()))
        path.append(f"n{synset.offset():08d}")
    return path


def _synset(wnid: str) -> Any:
    from nltk.corpus import wordnet
    from nltk.corpus.reader.wordnet import WordNetError

    if not (len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdecimal()):
        raise HierarchyError(f"{wnid!r} found, expected a wnid such as n01440764")
    try:
        return wordnet.synset_from_pos_and_offset("n", int(wnid[1:]))
    except LookupError as error:
        raise _not_installed() from error
    except (WordNetError, ValueError, AssertionError) as error:
        raise HierarchyError(
            f"{wnid} is not a noun of WordNet 3.0, expected a wnid of it as ImageNet has them; "
            "those of WordNet 3.1 are other numbers: translate them first"
        ) from error


def _not_installed() -> HierarchyError:
    return HierarchyError(
        "WordNet 3.0 is not installed; set NLTK_DATA to a folder that holds "
        "corpora/wordnet.zip, or run `python -m nltk.downloader wordnet`"
    )
