"""Schedules that make no sense are refused, and the others say what they need."""

import math
import pickle

import pytest

from negtemp_data.sampling import (
    AnnealedTemperature,
    BernoulliTrigger,
    EntropyTrigger,
    MarginTrigger,
    PeriodicTrigger,
    Piece,
    PositionTrigger,
    Rule,
    Schedule,
    Support,
    TextTrigger,
    Vocabulary,
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": math.nan}, "temperature"),
        ({"start": -1}, "start"),
        ({"cooldown": -1}, "cooldown"),
        ({"defer": -1}, "defer"),
        ({"burst": 0}, "burst"),
    ],
)
def test_a_rule_that_can_not_be_carried_out_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Rule(**({"trigger": PeriodicTrigger(4), "temperature": -1.0} | fields))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (PeriodicTrigger, (0,), "jitter < every"),
        (PeriodicTrigger, (-3,), "jitter < every"),
        (PeriodicTrigger, (5, 5), "jitter < every"),
        (PeriodicTrigger, (5, -1), "jitter < every"),
        (BernoulliTrigger, (-0.1,), "rate"),
        (BernoulliTrigger, (1.1,), "rate"),
        (BernoulliTrigger, (math.nan,), "rate"),
        (TextTrigger, ("literal",), "literal"),
        (TextTrigger, ("literal", ""), "literal"),
        (TextTrigger, ("sentence", "text"), "literal"),
    ],
)
def test_a_trigger_that_could_never_be_right_is_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(*arguments)


@pytest.mark.parametrize(
    "base",
    [
        (Piece(1.0, until=3),),
        (Piece(1.0), Piece(2.0)),
        (Piece(1.0), Piece(2.0, until=3)),
        (Piece(1.0, until=3), Piece(2.0, until=3), Piece(1.0)),
        (Piece(1.0, until=4), Piece(2.0, until=3), Piece(1.0)),
        (Piece(1.0, until=0), Piece(2.0)),
        (Piece(1.0, until=-1), Piece(2.0)),
    ],
)
def test_pieces_that_do_not_cover_each_position_once_are_refused(base):
    with pytest.raises(ValueError, match="until"):
        Schedule(base=base)


def test_pieces_in_order_of_their_ends_are_a_base():
    base = (Piece(3.0, until=1), Piece(2.0, until=8), Piece(1.0))
    assert Schedule(base=base).base == base


@pytest.mark.parametrize(("burst", "defer", "wait"), [(1, 0, 0), (1, 4, 4), (3, 0, 2), (3, 2, 8)])
def test_the_longest_wait_covers_a_burst_that_waits_each_time(burst, defer, wait):
    assert Rule(PeriodicTrigger(9), -1.0, burst=burst, defer=defer).longest_wait == wait


@pytest.mark.parametrize(
    ("trigger", "is_positional"),
    [
        (PeriodicTrigger(3), True),
        (BernoulliTrigger(0.1), True),
        (PositionTrigger((1, 2)), True),
        (EntropyTrigger(above=1.0), False),
        (MarginTrigger(0.1), False),
        (TextTrigger("line"), False),
    ],
)
def test_only_some_rules_fire_by_position_alone(trigger, is_positional):
    assert Rule(trigger, -1.0).is_positional == is_positional


def test_one_distinct_rule_makes_a_schedule_need_siblings():
    plain, distinct = (Rule(PeriodicTrigger(3), -1.0, is_distinct=each) for each in (False, True))
    assert not Schedule((plain, plain)).is_distinct
    assert Schedule((plain, distinct)).is_distinct


def test_equal_schedules_are_one_key_and_survive_a_copy():
    def schedule():
        rule = Rule(
            TextTrigger("literal", "x"),
            -math.inf,
            Support(xtc=0.1, top_k=3),
            Vocabulary(("english",), ("special",)),
            guard=("digits",),
        )
        return Schedule((rule,), (Piece(AnnealedTemperature(2.0, 1.0, 9)),))

    assert {schedule(): 1}[schedule()] == 1
    assert pickle.loads(pickle.dumps(schedule())) == schedule()
