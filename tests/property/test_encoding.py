import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distill.answers import Answers
from distill.encoding import EncodingSpec
from distill.hierarchy import SemanticHierarchy
from distill.targets import dense_targets, densify, encode
from store.codes import dequantise, prob_table, quantise

HIERARCHY = SemanticHierarchy.bundled("plane-figures")

specs = st.builds(
    EncodingSpec,
    entries=st.integers(1, 12),
    prob_bits=st.integers(4, 16),
    prob_octaves=st.floats(2, 32),
)
logits = hnp.arrays(np.float32, (3, 29), elements=st.floats(-30, 30, width=32))


@given(logits, specs)
@settings(deadline=None)
def test_decoded_targets_are_distributions_that_keep_the_largest(
    values: np.ndarray, spec: EncodingSpec
) -> None:
    teacher = torch.from_numpy(values)
    exact = dense_targets(teacher, HIERARCHY)
    sparse = encode(teacher, HIERARCHY, spec)
    decoded = densify(sparse, HIERARCHY)
    for k, members in enumerate(HIERARCHY.slices):
        assert torch.allclose(decoded[:, members].sum(1), torch.ones(3), atol=1e-4)
        largest = exact.probs[:, members].max(1).values
        kept = sparse.prob.split(sparse.slots, 1)[k][:, 0]
        assert torch.allclose(kept, torch.where(largest < spec.smallest_prob, 0.0, largest))
        assert torch.allclose(sparse.sq_norm[:, k], exact.probs[:, members].square().sum(1))


@given(logits, specs)
@settings(deadline=None)
def test_stored_numbers_stay_within_half_a_step(values: np.ndarray, spec: EncodingSpec) -> None:
    answers = encode(torch.from_numpy(values), HIERARCHY, spec).to_answers()
    sizes = HIERARCHY.classes_per_hierarchy
    codes = quantise(answers, spec, sizes)
    back = dequantise(codes, spec)
    step = spec.prob_octaves / (2**spec.prob_bits - 2)
    kept = answers.prob > 0
    ratio = np.abs(np.log2(back.prob[kept]) - np.log2(answers.prob[kept].astype(np.float64)))
    assert ratio.max(initial=0) <= step / 2 + 1e-5
    assert ((back.prob > 0) == kept).all()
    assert (back.index[kept] == answers.index[kept]).all()
    assert np.abs(back.confidence - np.clip(answers.confidence, 0, 1)).max() <= 0.51 / 65535
    assert np.abs(back.sq_norm - np.clip(answers.sq_norm, 0, 1)).max() <= 0.51 / 65535


@given(logits, specs)
@settings(deadline=None)
def test_storing_twice_changes_nothing(values: np.ndarray, spec: EncodingSpec) -> None:
    sizes = HIERARCHY.classes_per_hierarchy
    once = quantise(encode(torch.from_numpy(values), HIERARCHY, spec).to_answers(), spec, sizes)
    twice = quantise(dequantise(once, spec), spec, sizes)
    for name in ("index", "prob", "confidence", "sq_norm", "valid"):
        assert (getattr(once, name) == getattr(twice, name)).all()


@given(st.integers(4, 16), st.floats(1, 64))
def test_probability_codes_rise_to_one(bits: int, octaves: float) -> None:
    table = prob_table(EncodingSpec(prob_bits=bits, prob_octaves=octaves))
    assert len(table) == 2**bits
    assert table[0] == 0
    assert table[-1] == 1
    assert (np.diff(table) > 0).all()


def test_rows_without_an_image_are_all_zero() -> None:
    answers = Answers.empty(4, 28, 4)
    answers.confidence[:] = 0.5
    answers.prob[:] = 0.5
    codes = quantise(answers, EncodingSpec(), HIERARCHY.classes_per_hierarchy)
    assert not codes.confidence.any()
    assert not codes.prob.any()
