import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.hierarchy.semantic import SemanticHierarchy


@st.composite
def forests(draw: st.DrawFn) -> dict[str, list[str]]:
    """Synset → its ancestors, nearest first; every synset has an entry."""
    chains: dict[str, list[str]] = {}
    for i in range(draw(st.integers(1, 25))):
        parent = draw(st.sampled_from([None, *chains]))
        chains[f"s{i}"] = [parent, *chains[parent]] if parent else []
    order = draw(st.permutations(list(chains)))
    return {synset: chains[synset] for synset in order}


@given(forests(), st.booleans())
def test_labels_say_exactly_what_their_chains_say(
    chains: dict[str, list[str]], drop_deepest: bool
) -> None:
    hierarchy = SemanticHierarchy.from_chains(list(chains), chains, drop_deepest=drop_deepest)
    again = SemanticHierarchy.from_json(hierarchy.to_json())
    assert again.digest == hierarchy.digest
    labels = hierarchy.semantic_labels(torch.arange(hierarchy.num_classes))
    members = [hierarchy.class_order[m] for m in hierarchy.slices]
    for c, synset in enumerate(hierarchy.synsets):
        said = {
            hierarchy.synsets[members[k][position]]
            for k, position in enumerate(labels[c].tolist())
            if position >= 0
        }
        above = {a for a in (synset, *chains[synset]) if len(chains[a]) < hierarchy.num_hierarchies}
        assert said == above


@given(forests())
def test_every_class_but_the_dropped_has_one_column(chains: dict[str, list[str]]) -> None:
    hierarchy = SemanticHierarchy.from_chains(list(chains), chains)
    assert len(set(hierarchy.class_order.tolist())) == sum(hierarchy.classes_per_hierarchy)
    assert all(1 <= w <= 20 for w in hierarchy.weights)
