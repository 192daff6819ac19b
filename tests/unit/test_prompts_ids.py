"""Hashes of ids are what they always were; the set of used ids is exact, and small."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from negtemp_data.prompts import row_seed
from negtemp_data.prompts.ids import IdSet, group_seed


def test_the_seed_of_siblings_never_changes_and_is_no_seed_of_a_row() -> None:
    # Another value would give other tokens to data sets that exist.
    assert group_seed(7, "lighthouse") == 2567507539772944595
    seeds = {group_seed(seed, f"p{i}") for seed in range(20) for i in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert group_seed(7, "p") not in {row_seed(7, "p", sample) for sample in range(100)}


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=3)))
def test_id_set_agrees_with_a_set(ids: list[str]) -> None:
    seen: set[str] = set()
    id_set = IdSet()
    for prompt_id in ids:
        assert id_set.add(prompt_id) is (prompt_id not in seen)
        seen.add(prompt_id)


def test_id_set_takes_less_than_9_bytes_an_id_beyond_its_fixed_part() -> None:
    id_set = IdSet()
    n_ids = 150_000
    tracemalloc.start()
    n_added = sum(id_set.add(f"id-{i}") for i in range(n_ids))
    size_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert n_added == n_ids
    assert size_bytes < 9 * n_ids + 4096 * 128
