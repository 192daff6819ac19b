"""The set of used ids: exact on what it is given, and small."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from negtemp_data.prompts.ids import IdSet


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
