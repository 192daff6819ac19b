"""Halves of a pool: what a threshold is chosen on must not be measured on."""

from negtemp_data.lab.judge import _alike_in_halves


def test_rows_keep_the_half_of_their_prompt_where_some_are_missing() -> None:
    clean = {f"p{i}": {} for i in range(7)}
    rows = {prompt_id: {"id": prompt_id} for prompt_id in clean if prompt_id != "p2"}
    # p2's partner goes with it, and so does the last prompt, which has none.
    assert list(_alike_in_halves(clean, rows)) == ["p0", "p1", "p4", "p5"]
