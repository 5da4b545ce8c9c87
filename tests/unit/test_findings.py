"""Which tags a teacher would add or take back; images whose beliefs are written by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.errors import ConfigError, HierarchyError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.teacher_server.inspect.findings import Rules, TagFindings, find_tags
from distill.teacher_server.inspect.statistics import UNITS, Beliefs, RowState, block_dtype
from distill.teacher_server.inspect.tree import ClassTree

PATH = ("polygon", "quadrilateral", "parallelogram", "rectangle")


def believed(
    hierarchy: SemanticHierarchy,
    tags: list[str | None],
    path: tuple[str, ...],
    probs: tuple[float, ...],
    tag_prob: float = 0.01,
) -> tuple[Beliefs, NDArray[np.int64]]:
    """Every image is of `path` to the teacher, with those probabilities."""
    labels = np.array([-1 if t is None else hierarchy.index(hierarchy.find(t)[0]) for t in tags])
    tops = hierarchy.label_table[hierarchy.index(hierarchy.find(path[-1])[0])]
    blocks = np.zeros(1, block_dtype(4, len(tags)))
    for image, label in zip(blocks["image"][0], labels, strict=True):
        positions = hierarchy.label_table[label]
        image["known"] = RowState.ANSWER
        for k in range(4):
            image["top"][k] = max(0, tops[k])
            image["top_prob"][k] = round(probs[k] * UNITS)
            if positions[k] >= 0:
                image["tag_prob"][k] = round(
                    (probs[k] if positions[k] == tops[k] else tag_prob) * UNITS
                )
    return Beliefs("by hand", len(tags), blocks), labels


def found_in(
    beliefs: Beliefs, labels: NDArray[np.int64], hierarchy: SemanticHierarchy, rules: Rules
) -> TagFindings:
    blocks = [verdicts for _, verdicts in find_tags(beliefs, labels, hierarchy, rules)]
    return TagFindings(np.concatenate(blocks))


def named(hierarchy: SemanticHierarchy, found: TagFindings) -> dict[str, list[str]]:
    return {
        kind: [hierarchy.names[c] for c in getattr(found, kind).proposed]
        for kind in ("missing", "suspect")
    }


@pytest.mark.parametrize(
    ("tag", "probs", "added"),
    [
        ("polygon", (0.9, 0.9, 0.9, 0.9), "rectangle"),
        ("polygon", (0.9, 0.9, 0.9, 0.6), "parallelogram"),
        ("polygon", (0.9, 0.9, 0.6, 0.9), "quadrilateral"),
        ("polygon", (0.9, 0.6, 0.9, 0.9), None),
        ("polygon", (0.2, 0.9, 0.9, 0.9), "rectangle"),  # the tag itself is given
        ("parallelogram", (0.9, 0.9, 0.9, 0.9), "rectangle"),
        ("rectangle", (0.9, 0.9, 0.9, 0.9), None),
        ("square", (0.9, 0.9, 0.9, 0.9), None),  # of the level without a softmax
        ("ellipse", (0.9, 0.9, 0.9, 0.9), None),  # not on the teacher's path
        (None, (0.9, 0.9, 0.9, 0.9), None),
    ],
)
def test_missing_tag_is_as_deep_as_the_teacher_is_sure(
    hierarchy: SemanticHierarchy, tag: str | None, probs: tuple[float, ...], added: str | None
) -> None:
    beliefs, labels = believed(hierarchy, [tag], PATH, probs)
    found = found_in(beliefs, labels, hierarchy, Rules())
    assert named(hierarchy, found)["missing"] == ([added] if added else [])
    assert found.judged == (tag is not None)


def test_missing_tags_stand_by_their_least_certain_class(hierarchy: SemanticHierarchy) -> None:
    beliefs, labels = believed(
        hierarchy, ["polygon", "parallelogram"], PATH, (0.9, 0.95, 0.8, 0.99)
    )
    found = found_in(beliefs, labels, hierarchy, Rules()).missing
    assert found.rows.tolist() == [1, 0]
    np.testing.assert_allclose(found.score, [0.99, 0.8], atol=1e-4)


def test_suspect_tag_is_contradicted_along_its_path(hierarchy: SemanticHierarchy) -> None:
    tags = ["ellipse", "rectangle", "trapezium", None]
    beliefs, labels = believed(hierarchy, tags, PATH, (0.9, 0.9, 0.8, 0.7))
    found = found_in(beliefs, labels, hierarchy, Rules(suspect_above=0.5)).suspect
    deep = [hierarchy.levels[labels[row]] + 1 for row in found.rows]
    wrong = [
        sum(
            np.log(beliefs.images(found.rows)[i]["top_prob"][k] / max(1, tag))
            for k, tag in enumerate(beliefs.images(found.rows)[i]["tag_prob"][: deep[i]])
        )
        / deep[i]
        for i in range(len(found))
    ]
    np.testing.assert_allclose(found.score, wrong, rtol=1e-6)
    assert 1 not in found.rows
    assert 3 not in found.rows
    assert 0 in found.rows


def test_unsure_teacher_suspects_nobody(hierarchy: SemanticHierarchy) -> None:
    beliefs, labels = believed(hierarchy, ["ellipse"], PATH, (0.25, 0.25, 0.2, 0.2), 0.0)
    assert len(found_in(beliefs, labels, hierarchy, Rules(sure_above=0.3)).suspect) == 0
    assert len(found_in(beliefs, labels, hierarchy, Rules(sure_above=0.2)).suspect) == 1


def test_images_without_an_answer_are_not_judged(hierarchy: SemanticHierarchy) -> None:
    beliefs, labels = believed(hierarchy, ["polygon", "ellipse"], PATH, (0.9, 0.9, 0.9, 0.9))
    beliefs.blocks["image"][0]["known"] = [RowState.NOTHING, RowState.BAD]
    found = found_in(beliefs, labels, hierarchy, Rules())
    assert (found.judged, len(found.missing), len(found.suspect)) == (0, 0, 0)


@pytest.mark.parametrize(
    "rules", [{"missing_above": 2.0}, {"suspect_above": 0.0}, {"sure_above": float("nan")}]
)
def test_rules_out_of_range_are_refused(rules: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Rules(**rules)


def test_subtree_is_a_range_of_the_depth_first_order(hierarchy: SemanticHierarchy) -> None:
    tree = ClassTree(hierarchy)
    values = np.arange(hierarchy.num_classes) ** 2
    summed = tree.summed(values)
    for c, synset in enumerate(hierarchy.synsets):
        below = {d for d in range(29) if synset in (hierarchy.synsets[d], *_up(hierarchy, d))}
        assert set(tree.order[tree.subtree(c)]) == below
        assert summed[c] == sum(values[list(below)])
        assert [hierarchy.synsets[p] for p in tree.path(c)][:-1] == list(_up(hierarchy, c))[::-1]


def test_ambiguous_class_name_offers_its_synsets() -> None:
    tree = ClassTree(SemanticHierarchy.bundled("imagenet21k-p-fall11"))
    names = [name.lower() for name in tree.hierarchy.names]
    twice = next(name for name in names if names.count(name) > 1)
    with pytest.raises(HierarchyError, match="pass its synset: n0") as said:
        tree.named(twice)
    for c in (c for c, name in enumerate(names) if name == twice):
        assert tree.hierarchy.synsets[c] in str(said.value)
        assert tree.named(tree.hierarchy.synsets[c]) == c


def _up(hierarchy: SemanticHierarchy, c: int) -> tuple[str, ...]:
    return hierarchy.ancestors(hierarchy.synsets[c])
