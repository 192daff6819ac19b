"""Rows that kill engines are found, and innocent ones never blamed."""

import random

import pytest

from negtemp_data.pipeline.suspects import Care, Suspects

ROWS = [f"r{number}" for number in range(32)]


def play(suspects, poisonous, *, worker="w", limit=100):
    """Makes shard 0 until it is done; returns given up rows and the number of deaths."""
    left, given_up, deaths = list(ROWS), set(), 0

    def die():
        nonlocal deaths
        deaths += 1
        assert deaths < limit, "it never ends"
        suspects.died(worker)

    while left:
        care = suspects.begin(worker, 0)
        if care is None:
            if poisonous.intersection(left):
                die()
                continue
            left = []
        else:
            given_up |= care.given_up & set(left)
            left = [row for row in left if row not in care.given_up]
            for group in care.groups(left):
                suspects.run_group(worker, group)
                if poisonous.intersection(group):
                    die()
                    break
                suspects.run_group(worker, ())
                left = [row for row in left if row not in group]
    suspects.end(worker, 0)
    return given_up, deaths


@pytest.mark.parametrize("n_poisonous", [0, 1, 2, 5])
def test_exactly_the_rows_that_kill_are_given_up(n_poisonous):
    for seed in range(20):
        poisonous = set(random.Random(seed).sample(ROWS, n_poisonous))
        given_up, deaths = play(Suspects(), poisonous)
        assert given_up == poisonous
        # Two as usual, then halves down to one row, and two alone, for each of them.
        assert deaths <= 2 + n_poisonous * 7


def test_deaths_from_outside_give_nothing_up():
    suspects = Suspects()
    for _ in range(3):
        suspects.begin("w", 0)
        suspects.died("w")
    assert play(suspects, set()) == (set(), 0)


def test_a_shard_of_which_one_engine_has_died_is_made_as_usual():
    suspects = Suspects()
    suspects.begin("w", 0)
    suspects.begin("w", 1)
    suspects.end("w", 1)
    assert suspects.died("w") is False
    assert suspects.begin("w", 0) is None
    suspects.died("w")
    assert suspects.begin("w", 0) is not None
    assert suspects.begin("w", 1) is None, "it was not in flight"


def test_deaths_of_a_shard_count_whichever_worker_had_it():
    suspects = Suspects()
    for worker in ("a", "b"):
        assert suspects.begin(worker, 0) is None
        suspects.died(worker)
    assert suspects.begin("c", 0) is not None


def test_a_death_in_a_group_blames_nobody_outside_it():
    suspects = Suspects()
    for _ in range(2):
        suspects.begin("w", 0)
        suspects.died("w")
    suspects.begin("w", 0)
    suspects.begin("w", 1)
    suspects.run_group("w", ["a", "b"])
    assert suspects.died("w") is True
    assert suspects.begin("w", 1) is None
    care = suspects.begin("w", 0)
    assert care.sizes == {"a": 1, "b": 1}


def test_groups_keep_the_order_and_the_sizes():
    care = Care({"c": 1, "d": 2, "e": 2}, frozenset())
    expected = [["a", "b"], ["c"], ["d", "e"], ["f", "g", "h"]]
    assert care.groups(list("abcdefgh")) == expected
    for group in care.groups(list("abcdefgh")):
        assert len(group) <= min(care.sizes.get(row, 4) for row in group)
    assert [row for group in care.groups(list("abcdefgh")) for row in group] == list("abcdefgh")
    assert care.groups([]) == []
