"""Schedules as text, rules that make no sense, and classes of tokens."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_sampler as reference
from negtemp_data.sampling import (
    BernoulliTrigger,
    PeriodicTrigger,
    Rule,
    Schedule,
    Support,
    TokenTable,
    Vocabulary,
)

CPU = torch.device("cpu")

fraction = st.floats(0, 1)
triggers = st.integers(1, 10**6).flatmap(
    lambda every: st.builds(PeriodicTrigger, st.just(every), st.integers(0, every - 1))
) | st.builds(BernoulliTrigger, fraction)
supports = st.builds(
    Support,
    min_p=st.none() | fraction,
    top_p=st.none() | fraction,
    top_k=st.none() | st.integers(1, 10**6),
    top_n_sigma=st.none() | st.floats(0, 100),
    epsilon=st.none() | fraction,
)
names = st.lists(st.sampled_from(["special", "word_start"]), max_size=2).map(tuple)
count = st.integers(0, 10**6)
rules = st.builds(
    Rule,
    trigger=triggers,
    temperature=st.floats(allow_nan=False),
    support=supports,
    vocabulary=st.builds(Vocabulary, names, names),
    start=count,
    stop=st.none() | count,
    cooldown=count,
    burst=st.integers(1, 100),
    max_injections=st.none() | count,
    defer=count,
)
schedules = st.lists(rules, max_size=3).map(lambda each: Schedule(tuple(each)))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(schedule=schedules)
def test_a_schedule_survives_json(schedule):
    text = schedule.to_json()
    assert Schedule.from_json(text) == schedule
    assert Schedule.from_json(text).to_json() == text


@pytest.mark.parametrize("temperature", [math.inf, -math.inf])
def test_infinite_temperatures_are_standard_json(temperature):
    schedule = Schedule((Rule(PeriodicTrigger(2), temperature),))

    def refuse(constant):
        raise AssertionError(constant)

    data = json.loads(schedule.to_json(), parse_constant=refuse)
    assert data["rules"][0]["temperature"] == str(temperature)
    assert Schedule.from_json(schedule.to_json()).rules[0].temperature == temperature


def test_a_schedule_read_twice_is_one_object():
    text = Schedule((Rule(PeriodicTrigger(2), -1.0),)).to_json()
    assert Schedule.from_json(text) is Schedule.from_json(text)


def broken(**changes):
    """JSON of a schedule whose rule has these fields instead; None leaves a field out."""
    rule = json.loads(Schedule((Rule(PeriodicTrigger(2), -1.0),)).to_json())["rules"][0]
    rule = {name: value for name, value in (rule | changes).items() if value is not None}
    return json.dumps({"rules": [rule]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "3",
        "null",
        "{}",
        '{"rules": 3}',
        '{"rules": [3]}',
        '{"rules": [{}]}',
        broken(trigger={}),
        broken(trigger={"every": 2, "rate": 0.5}),
        broken(trigger="every"),
        broken(trigger={"every": 0, "jitter": 0}),
        broken(trigger={"every": "2", "jitter": 0}),
        broken(trigger={"rate": "often"}),
        broken(trigger={"rate": 2}),
        broken(temperature="warm"),
        broken(temperature="nan"),
        broken(temperature=[1]),
        broken(surprise=1),
        broken(support={"max_p": 0.5}),
        broken(vocabulary={"include": []}),
        broken(vocabulary=[]),
        broken(burst=0),
        broken(defer=-1),
        *[broken(**{name: None}) for name in ("trigger", "temperature", "support", "vocabulary")],
    ],
)
def test_text_that_is_no_schedule_is_a_value_error(text):
    with pytest.raises(ValueError, match="not a schedule"):
        Schedule.from_json(text)


def test_the_error_of_a_broken_schedule_shows_its_beginning_only():
    with pytest.raises(ValueError, match="not a schedule") as error:
        Schedule.from_json(json.dumps({"rule": "x" * 5000}))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": math.nan}, "temperature"),
        ({"trigger": PeriodicTrigger(0)}, "jitter < every"),
        ({"trigger": PeriodicTrigger(-3)}, "jitter < every"),
        ({"trigger": PeriodicTrigger(5, 5)}, "jitter < every"),
        ({"trigger": PeriodicTrigger(5, -1)}, "jitter < every"),
        ({"trigger": BernoulliTrigger(-0.1)}, "rate"),
        ({"trigger": BernoulliTrigger(1.1)}, "rate"),
        ({"trigger": BernoulliTrigger(math.nan)}, "rate"),
        ({"start": -1}, "start"),
        ({"cooldown": -1}, "cooldown"),
        ({"defer": -1}, "defer"),
        ({"burst": 0}, "burst"),
    ],
)
def test_a_rule_that_can_not_be_carried_out_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Rule(**({"trigger": PeriodicTrigger(4), "temperature": -1.0} | fields))


@pytest.mark.parametrize(("burst", "defer", "wait"), [(1, 0, 0), (1, 4, 4), (3, 0, 2), (3, 2, 8)])
def test_the_longest_wait_covers_a_burst_that_waits_each_time(burst, defer, wait):
    assert Rule(PeriodicTrigger(9), -1.0, burst=burst, defer=defer).longest_wait == wait


TABLE = TokenTable(["<s>", "Ġa", "▁b", " c", "d", "Ġ", "▁", "</s>", "", "<Ġ"], frozenset({0, 7}))


@pytest.mark.parametrize("width", [10, 13, 5])
@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        (Vocabulary(), set(range(10))),
        (Vocabulary(exclude=("special",)), set(range(10)) - {0, 7}),
        (Vocabulary(include=("word_start",)), {1, 2, 3}),
        (Vocabulary(include=("word_start", "special")), {0, 1, 2, 3, 7}),
        (Vocabulary(exclude=("word_start", "special")), {4, 5, 6, 8, 9}),
        (Vocabulary(include=("word_start",), exclude=("special",)), {1, 2, 3}),
    ],
)
def test_a_vocabulary_allows_its_classes_within_the_tokenizer_and_the_logits(
    width, vocabulary, expected
):
    expected = {token for token in expected if token < width}
    if len(expected) < 2:
        with pytest.raises(ValueError, match="fewer than two"):
            TABLE.mask(vocabulary, width, CPU)
        return
    mask = TABLE.mask(vocabulary, width, CPU)
    assert mask.shape == (width,)
    assert set(mask.nonzero().flatten().tolist()) == expected
    assert reference.allowed_tokens(TABLE, vocabulary, width) == expected


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_an_unknown_token_class_is_refused_with_those_known(field):
    with pytest.raises(ValueError, match=r"'verbs'.*special, word_start"):
        TABLE.mask(Vocabulary(**{field: ("verbs",)}), 10, CPU)


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary(include=("special",), exclude=("special",)),
        Vocabulary(include=("word_start",)),
    ],
)
def test_a_vocabulary_with_fewer_than_two_tokens_is_refused(vocabulary):
    table = TokenTable(["<s>", "Ġa", "b"], frozenset({0}))
    with pytest.raises(ValueError, match="fewer than two tokens"):
        table.mask(vocabulary, 3, CPU)
