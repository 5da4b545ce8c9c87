import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import HierarchyError
from distill.hierarchy.semantic import SemanticHierarchy, bundled_names, resolve

FALL11 = (294, 1280, 2080, 2573, 2193, 1377, 703, 303, 198, 154, 60, 6)
WINTER21 = (292, 985, 1793, 2452, 2152, 1359, 697, 302, 198, 154, 60, 6)

COMMAND = [sys.executable, "-m", "distill.cli.main"]
CHAINS = {"cat": ["feline", "animal"], "feline": ["animal"], "dog": ["animal"]}
SYNSETS = ["dog", "animal", "cat", "plant", "feline"]


@pytest.mark.parametrize(
    ("name", "sizes"), [("imagenet21k-p-fall11", FALL11), ("imagenet21k-p-winter21", WINTER21)]
)
def test_bundled_hierarchies_have_the_papers_level_counts(
    name: str, sizes: tuple[int, ...]
) -> None:
    hierarchy = SemanticHierarchy.bundled(name)
    assert hierarchy.level_sizes == sizes
    assert hierarchy.num_hierarchies == 11
    assert hierarchy.classes_per_hierarchy == sizes[:11]
    assert hierarchy.num_classes == sum(sizes)


def test_chains_are_those_of_the_paper() -> None:
    hierarchy = SemanticHierarchy.bundled("imagenet21k-p-fall11")

    def chain(synset: str) -> list[str]:
        return [hierarchy.display_name(s) for s in hierarchy.ancestors(synset)]

    (swan,) = hierarchy.find("swan")
    assert chain(swan) == ["aquatic bird", "bird", "vertebrate", "animal"]
    assert chain("n01887787") == ["placental", "mammal", "vertebrate", "animal"]
    roots = {n for n, level in zip(hierarchy.names, hierarchy.levels, strict=True) if level == 0}
    assert {"person", "animal", "plant", "food", "artifact"} <= roots


@pytest.mark.parametrize("hash_seed", ["0", pytest.param("4242", marks=pytest.mark.slow)])
def test_bundled_files_are_what_build_writes_whatever_the_hash_seed(
    hash_seed: str, wordnet: Path, tmp_path: Path
) -> None:
    labels = Path(__file__).resolve().parents[2] / "distill/hierarchy/bundled"
    sources = {
        "imagenet21k-p-fall11": "imagenet21k-p-fall11",
        "imagenet21k-p-winter21": "imagenet21k-p-winter21",
        "plane-figures": str(labels / "plane-figures.txt"),
    }
    for name in bundled_names() if hash_seed == "1" else ("imagenet21k-p-fall11",):
        out = tmp_path / f"{name}.json"
        subprocess.run(
            [*COMMAND, "hierarchy", "build", sources[name], "--out", str(out)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "NLTK_DATA": str(wordnet)},
            check=True,
        )
        assert out.read_bytes() == (labels / f"{name}.json").read_bytes()


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    built = SemanticHierarchy.from_chains(
        SYNSETS, CHAINS, names={"cat": "Felis_catus"}, name="pets"
    )
    built.save(tmp_path / "pets.json")
    loaded = SemanticHierarchy.load(tmp_path / "pets.json")
    assert loaded.to_json() == built.to_json()
    assert loaded.digest == built.digest
    assert loaded.display_name("cat") == "Felis catus"


def test_keeping_the_deepest_level_survives_a_file(tmp_path: Path) -> None:
    built = SemanticHierarchy.from_chains(SYNSETS, CHAINS, drop_deepest=False)
    built.save(tmp_path / "pets.json")
    assert built.classes_per_hierarchy == (2, 2, 1)
    assert SemanticHierarchy.load(tmp_path / "pets.json").classes_per_hierarchy == (2, 2, 1)


def test_deepest_level_is_dropped_but_its_labels_train_those_above() -> None:
    hierarchy = SemanticHierarchy.from_chains(SYNSETS, CHAINS)
    assert hierarchy.level_sizes == (2, 2, 1)
    assert hierarchy.classes_per_hierarchy == (2, 2)
    labels = torch.tensor([SYNSETS.index(s) for s in ("cat", "feline", "plant")] + [-1])
    assert hierarchy.semantic_labels(labels).tolist() == [[0, 1], [0, 1], [1, -1], [-1, -1]]
    assert hierarchy.label_depths(labels).tolist() == [2, 1, 0, -1]


def test_a_flat_label_set_keeps_its_only_level() -> None:
    assert SemanticHierarchy.from_chains(["a", "b"], {}).classes_per_hierarchy == (2,)


def test_weights_count_the_classes_that_activate_each_softmax() -> None:
    hierarchy = SemanticHierarchy.from_chains(SYNSETS, CHAINS)
    assert hierarchy.weights == (1.0, 5 / 3)
    assert max(SemanticHierarchy.bundled("imagenet21k-p-fall11").weights) == 20.0


def test_ancestors_outside_the_label_set_are_passed_over() -> None:
    hierarchy = SemanticHierarchy.from_chains(["a", "c"], {"a": ["b", "c", "d"], "c": ["d"]})
    assert hierarchy.ancestors("a") == ("c",)


def test_digest_is_of_classes_and_chains_not_of_names() -> None:
    built = SemanticHierarchy.from_chains(SYNSETS, CHAINS)
    renamed = SemanticHierarchy.from_chains(SYNSETS, CHAINS, names={"cat": "puss"}, name="other")
    reordered = SemanticHierarchy.from_chains(SYNSETS[::-1], CHAINS)
    deeper = SemanticHierarchy.from_chains(SYNSETS, CHAINS, drop_deepest=False)
    assert built.digest == renamed.digest
    assert len({built.digest, reordered.digest, deeper.digest}) == 3


def test_miil_tree_gives_the_same_hierarchy_as_its_chains(tmp_path: Path) -> None:
    tree = {
        "class_list": SYNSETS,
        "class_tree_list": [[0, 1], [1], [2, 4, 1], [3], [4, 1]],
        "class_description": {"cat": "cat, true cat"},
    }
    torch.save(tree, tmp_path / "tree.pth")
    imported = SemanticHierarchy.from_miil_tree(tmp_path / "tree.pth")
    assert imported.digest == SemanticHierarchy.from_chains(SYNSETS, CHAINS).digest
    assert imported.display_name("cat") == "cat, true cat"


def test_miil_tree_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "boom"),)

    (tmp_path / "tree.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(HierarchyError, match="not a readable tree"):
        SemanticHierarchy.from_miil_tree(tmp_path / "tree.pth")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("chains", "message"),
    [
        ({"cat": ["feline"], "feline": ["animal"]}, "every chain must go on"),
        ({"cat": ["dog", "animal"]}, "every chain must go on"),
        ({"cat": ["cat"]}, "every chain must go on"),
    ],
)
def test_chains_that_disagree_are_refused(chains: dict[str, list[str]], message: str) -> None:
    with pytest.raises(HierarchyError, match=message):
        SemanticHierarchy.from_chains(SYNSETS, chains)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a hierarchy"),
        ('{"synsets": ["a"]}', "not a hierarchy"),
        ('{"synsets": [], "ancestors_nearest_first": {}}', "empty"),
        ('{"format": "other/9", "classes": []}', "expected 'distill-hierarchy/1'"),
        (
            '{"format": "distill-hierarchy/1", "num_hierarchies": 1, '
            '"classes": [["a", "a", "b"], ["b", "b", "a"]]}',
            "circle",
        ),
        (
            '{"format": "distill-hierarchy/1", "num_hierarchies": 1, "classes": [["a", "a", "x"]]}',
            "not in the label set",
        ),
        (
            '{"format": "distill-hierarchy/1", "num_hierarchies": 9, '
            '"classes": [["a", "a", null]]}',
            "expected 1 to 1",
        ),
    ],
)
def test_hostile_files_are_named_errors(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "h.json").write_text(text)
    with pytest.raises(HierarchyError, match=message):
        SemanticHierarchy.load(tmp_path / "h.json")


def test_unknown_names_list_the_near_ones() -> None:
    with pytest.raises(HierarchyError, match="imagenet21k-p-fall11"):
        resolve("imagenet21k-fall11")
    with pytest.raises(HierarchyError, match=r"did you mean .*square"):
        SemanticHierarchy.bundled("plane-figures").find("sqare")
    with pytest.raises(HierarchyError, match="stands at 0 and at 1"):
        SemanticHierarchy.from_chains(["a", "a"], {})


def test_label_beyond_the_set_is_a_callers_bug(hierarchy: SemanticHierarchy) -> None:
    with pytest.raises(ValueError, match="expected < 29"):
        hierarchy.semantic_labels(torch.tensor([29]))


def test_show_prints_levels_and_chains(distill) -> None:  # type: ignore[no-untyped-def]
    table = distill("hierarchy", "show", "imagenet21k-p-fall11")
    counts = [int(line.split()[1]) for line in table.out.splitlines()[2:]]
    assert tuple(counts) == FALL11
    chain = distill("hierarchy", "show", "plane-figures", "square")
    assert chain.out.startswith("hierarchy 4: square (n13878634) → rectangle (n13883346) → ")
    by_wnid = distill("hierarchy", "show", "plane-figures", "n13878634")
    assert by_wnid.out == chain.out


def test_positions_are_by_class_index_within_the_level(hierarchy: SemanticHierarchy) -> None:
    for k, members in enumerate(hierarchy.slices):
        classes = hierarchy.class_order[members]
        assert (np.diff(classes) > 0).all()
        assert (hierarchy.levels[classes] == k).all()
        assert hierarchy.label_table[classes, k].tolist() == list(range(len(classes)))
