import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.sample_ids import ascending, find_rows, sample_ids
from distill.store.views.lookup import ID_DTYPE, RowIndex

pairs = st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1))


@given(st.sets(pairs, min_size=1), st.lists(pairs))
def test_rows_are_found_also_where_high_words_collide(
    kept: set[tuple[int, int]], wanted: list[tuple[int, int]]
) -> None:
    ids = np.array(sorted(kept), np.uint64)
    asked = np.array([*wanted, *sorted(kept)], np.uint64).reshape(-1, 2)
    rows = find_rows(ids, asked)
    for row, (high, low) in zip(rows, asked.tolist(), strict=True):
        if (high, low) in kept:
            assert ids[row].tolist() == [high, low]
        else:
            assert row == -1


@given(st.sets(st.text(), min_size=1, max_size=50))
def test_ids_depend_on_the_key_alone(keys: set[str]) -> None:
    forward, backward = sorted(keys), sorted(keys, reverse=True)
    assert (sample_ids(forward) == sample_ids(backward)[::-1]).all()
    ids = sample_ids(forward)
    order = ascending(ids)
    assert sorted(map(tuple, ids.tolist())) == [tuple(row) for row in ids[order].tolist()]


def test_ids_are_pinned() -> None:
    """A change here orphans every store that exists."""
    assert sample_ids(["n01440764_18"]).tolist() == [[6448753252290553566, 16957363317063190975]]


@given(st.integers(1, 3000), st.integers(0, 2**32), st.booleans())
@settings(deadline=None)
def test_row_index_finds_what_binary_search_finds(count: int, seed: int, crowded: bool) -> None:
    random = np.random.default_rng(seed)
    words = random.integers(0, 2**64, (count, 2), dtype=np.uint64)
    if crowded:  # no hash does this
        words[:, 0] %= np.uint64(max(1, count // 2))
    words = np.unique(words, axis=0)
    ids = np.zeros(len(words), ID_DTYPE)
    ids["words"] = words
    wanted = np.concatenate([words[random.permutation(len(words))], words + np.uint64(1)])
    assert (RowIndex(ids).rows(wanted) == find_rows(words, wanted)).all()
