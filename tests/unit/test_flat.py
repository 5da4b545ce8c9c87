from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import HierarchyError, TeacherError
from distill.hierarchy.flat_heads import FlatHead
from distill.hierarchy.hypernyms import (
    FLAT_LABEL_SETS,
    flat_label_set,
    nearest_ancestor,
    write_table,
)
from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import top_mass
from distill.teacher_server.teacher.loading import ALIASES, MemberChoice, load_teacher

CPU = torch.device("cpu")
TENCH, COONHOUND, DOG = "n01440764", "n02089078", "n02084071"


def plain_flat(
    logits: torch.Tensor, synsets: tuple[str, ...], hierarchy: SemanticHierarchy
) -> tuple[list[dict[str, float]], list[list[float]]]:
    """One image and one class at a time: class → probability within its hierarchy, and reach."""
    answers, reaches = [], []
    for row in logits.double().softmax(1):
        mass = dict.fromkeys(hierarchy.synsets, 0.0)
        for synset, probability in zip(synsets, row.tolist(), strict=True):
            known = nearest_ancestor(synset, hierarchy)
            if known:
                for each in (known, *hierarchy.ancestors(known)):
                    mass[each] += probability
        levels = dict(zip(hierarchy.synsets, hierarchy.levels.tolist(), strict=True))
        reach = [
            sum(m for synset, m in mass.items() if levels[synset] == k)
            for k in range(hierarchy.num_hierarchies)
        ]
        answers.append({s: m / reach[levels[s]] for s, m in mass.items() if levels[s] < len(reach)})
        reaches.append(reach)
    return answers, reaches


def in_columns(answer: dict[str, float], hierarchy: SemanticHierarchy) -> list[float]:
    return [answer[hierarchy.synsets[c]] for c in hierarchy.class_order]


def test_flat_head_equals_one_class_at_a_time(hierarchy: SemanticHierarchy) -> None:
    leaves = [c for c in range(hierarchy.num_classes) if c not in hierarchy.parents]
    synsets = tuple(hierarchy.synsets[c] for c in leaves)
    logits = 3 * torch.randn(16, len(synsets), generator=torch.Generator().manual_seed(0))
    head = FlatHead.of(synsets, hierarchy, CPU)
    probs, reach = head.probs_and_reach(logits)
    expected, reached = plain_flat(logits, synsets, hierarchy)
    np.testing.assert_allclose(reach, reached, rtol=1e-5)
    for row, answer in zip(probs, expected, strict=True):
        np.testing.assert_allclose(row, in_columns(answer, hierarchy), rtol=1e-4, atol=1e-7)
    assert not head.lost


def test_classes_outside_the_hierarchy_count_as_their_nearest_hypernym() -> None:
    hierarchy = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    assert COONHOUND not in hierarchy
    head = FlatHead.of(flat_label_set("imagenet-1k"), hierarchy, CPU)
    assert not head.lost
    logits = torch.full((1, 1000), -20.0)
    logits[0, flat_label_set("imagenet-1k").index(COONHOUND)] = 20.0
    probs, reach = head.probs_and_reach(logits)
    chain = nearest_ancestor(COONHOUND, hierarchy)
    assert chain
    levels = [len(hierarchy.ancestors(s)) for s in (chain, *hierarchy.ancestors(chain))]
    for synset, level in zip((chain, *hierarchy.ancestors(chain)), levels, strict=True):
        column = int(np.flatnonzero(hierarchy.class_order == hierarchy.index(synset))[0])
        assert probs[0, column] == pytest.approx(1, abs=1e-6), synset
        assert reach[0, level] == pytest.approx(1, abs=1e-6)


def test_hierarchy_that_nothing_reaches_is_even_and_reaches_say_so(
    hierarchy: SemanticHierarchy,
) -> None:
    top = hierarchy.synsets[int(np.flatnonzero(hierarchy.levels == 0)[0])]
    probs, reach = FlatHead.of((top,), hierarchy, CPU).probs_and_reach(torch.zeros(2, 1))
    assert reach[0].tolist() == [1.0] + [0.0] * (hierarchy.num_hierarchies - 1)
    for part, size in zip(
        probs.split(hierarchy.classes_per_hierarchy, 1)[1:],
        hierarchy.classes_per_hierarchy[1:],
        strict=True,
    ):
        assert torch.equal(part, torch.full_like(part, 1 / size))


def test_however_little_reaches_a_hierarchy_its_probabilities_sum_to_one() -> None:
    hierarchy = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    head = FlatHead.of(flat_label_set("imagenet-1k"), hierarchy, CPU)
    logits = torch.zeros(1, 1000)
    logits[0, flat_label_set("imagenet-1k").index(TENCH)] = 75.0
    probs, _ = head.probs_and_reach(logits)
    for part in probs.split(hierarchy.classes_per_hierarchy, 1):
        assert float(part.sum()) == pytest.approx(1, abs=1e-4)


def test_teacher_that_has_nothing_to_do_with_the_hierarchy_is_refused(
    hierarchy: SemanticHierarchy,
) -> None:
    with pytest.raises(TeacherError, match=r"none of the teacher's 1 classes \(n01440764"):
        FlatHead.of((TENCH,), hierarchy, CPU)


def test_flat_label_sets_are_timms() -> None:
    sizes = {name: len(flat_label_set(name)) for name in FLAT_LABEL_SETS}
    assert sizes == {
        "imagenet-1k": 1000,
        "imagenet-12k": 11821,
        "imagenet-21k": 21843,
        "imagenet-22k": 21841,
        "imagenet-22k-ms": 21842,
    }
    assert flat_label_set("imagenet-1k")[0] == TENCH
    with pytest.raises(HierarchyError, match="expected imagenet-1k, "):
        flat_label_set("imagenet-3k")


def test_table_of_hypernyms_is_what_wordnet_says(wordnet: Path, tmp_path: Path) -> None:
    bundled = Path(__file__).resolve().parents[2] / "distill/hierarchy/bundled/hypernyms.txt"
    assert write_table(tmp_path / "hypernyms.txt") > 23_000
    assert (tmp_path / "hypernyms.txt").read_bytes() == bundled.read_bytes()


def test_nearest_walks_up() -> None:
    assert nearest_ancestor(COONHOUND, {COONHOUND, DOG}) == COONHOUND
    assert nearest_ancestor(COONHOUND, {TENCH, DOG}) == DOG
    assert nearest_ancestor(COONHOUND, {TENCH}) is None
    assert nearest_ancestor("n99999999", {TENCH}) is None


def pixels(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 256, (3, 3, s, s), dtype=torch.uint8, generator=generator) for s in sizes
    ]


@pytest.fixture
def leaves_file(hierarchy: SemanticHierarchy, tmp_path: Path) -> str:
    leaves = [s for c, s in enumerate(hierarchy.synsets) if c not in hierarchy.parents]
    path = tmp_path / "leaves.txt"
    path.write_text("\n".join(leaves))
    return str(path)


def test_ensemble_averages_probabilities_each_at_its_own_size(
    hierarchy: SemanticHierarchy, leaves_file: str
) -> None:
    choices = [
        MemberChoice(name="test_vit", random_weights=True, input_size=160),
        MemberChoice(name="test_resnet", random_weights=True, input_size=32, head=leaves_file),
    ]
    both = load_teacher(choices, hierarchy, device=CPU)
    alone = [load_teacher([choice], hierarchy, device=CPU) for choice in choices]
    assert both.sizes == ((160, 160), (32, 32))
    shown = pixels(160, 32)
    said = both.targets(shown)
    each = [teacher.targets([seen]) for teacher, seen in zip(alone, shown, strict=True)]
    mean = (each[0].probs + each[1].probs) / 2
    torch.testing.assert_close(said.probs, mean)
    torch.testing.assert_close(said.confidence, top_mass(mean, hierarchy))
    assert both.identity.name == "test_vit + test_resnet"
    assert both.identity.input_size == (160, 160)
    prints = {t.identity.fingerprint for t in (both, *alone)}
    swapped = load_teacher(choices[::-1], hierarchy, device=CPU)
    assert len(prints | {swapped.identity.fingerprint}) == 4


def test_reach_is_the_confidence_of_a_flat_teacher_on_request(
    hierarchy: SemanticHierarchy, leaves_file: str
) -> None:
    choice = MemberChoice(name="test_vit", random_weights=True, input_size=32, head=leaves_file)
    shown = pixels(32)
    top, reach = (
        load_teacher([choice], hierarchy, device=CPU, confidence=rule) for rule in ("top", "reach")
    )
    _, expected = top.members[0].probs_and_reach(top.logits(shown)[0], hierarchy)
    torch.testing.assert_close(reach.targets(shown).confidence, expected)
    assert not torch.allclose(top.targets(shown).confidence, expected)
    assert top.identity.fingerprint != reach.identity.fingerprint


def test_rows_with_logits_that_are_not_finite_are_nan(hierarchy: SemanticHierarchy) -> None:
    choice = MemberChoice(name="test_vit", random_weights=True, input_size=32)
    teacher = load_teacher([choice], hierarchy, device=CPU)
    logits = torch.zeros(4, hierarchy.num_classes)
    logits[1, 3], logits[2, 5], logits[3, 0] = float("nan"), float("inf"), float("-inf")
    confidence = teacher.answer([logits]).confidence
    assert confidence.isfinite().all(1).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("name", "label_set"),
    [
        ("resnet50.a1_in1k", "imagenet-1k"),
        ("convnext_tiny.in12k", "imagenet-12k"),
        ("vit_tiny_patch16_224.augreg_in21k", "imagenet-21k"),
        ("beit_base_patch16_224.in22k_ft_in22k", "imagenet-22k"),
        ("focalnet_large_fl3.ms_in22k", "imagenet-22k-ms"),
    ],
)
def test_weights_of_timm_know_their_flat_label_set(name: str, label_set: str) -> None:
    from distill.teacher_server.teacher.loading import _flat_synsets

    hierarchy = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    found = _flat_synsets(MemberChoice(name=name), name, None, hierarchy)
    assert found == flat_label_set(label_set)


@pytest.mark.parametrize("alias", ALIASES)
def test_weights_of_the_papers_authors_are_semantic(alias: str) -> None:
    from distill.teacher_server.teacher.loading import _flat_synsets

    hierarchy = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    assert _flat_synsets(MemberChoice(name=alias), ALIASES[alias], None, hierarchy) == ()
