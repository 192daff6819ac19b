"""Rulers and words: marks stand where positions are, and every form of a schedule has words."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negtemp_data.cli.drawing import describe_schedule, draw_firings, draw_schedule
from negtemp_data.cli.ruler import Ruler, heat
from negtemp_data.cli.words import describe_base, describe_rule
from negtemp_data.jobspec import ScheduleConfig


def read(data: Any) -> ScheduleConfig:
    """A schedule as a job file has it."""
    return ScheduleConfig.model_validate_json(json.dumps(data))


def test_a_short_stretch_has_a_column_for_each_position() -> None:
    ruler = Ruler(length=12, width=40)
    assert ruler.marks([0, 3, 11]) == "▲··▲·······▲"
    assert ruler.band(2, 5) == "··░░░·······"
    assert ruler.band(9, 99) == "·········░░░"
    assert ruler.band(12, 12) == "·" * 12
    assert ruler.bars([1.0] * 12) == "▁" * 12
    assert ruler.scale() == "0         10"


def test_positions_of_a_long_stretch_share_columns() -> None:
    ruler = Ruler(length=100, width=50)
    assert ruler.marks([0, 1, 98]) == "▲" + "·" * 48 + "▲"
    assert ruler.band(50, 52) == "·" * 25 + "░" + "·" * 24
    assert ruler.bars([1.0] * 50 + [9.0] + [1.0] * 49) == "▁" * 25 + "█" + "▁" * 24
    assert ruler.scale() == "0         20        40        60        80"


@given(st.integers(1, 5000), st.integers(10, 90))
def test_numbers_stand_below_the_columns_of_their_positions(length: int, width: int) -> None:
    ruler = Ruler(length, width)
    scale = ruler.scale()
    numbers = [int(word) for word in scale.split()]
    assert numbers[0] == 0
    assert all(number < length for number in numbers)
    for number in numbers:
        mark = ruler.marks([number]).index("▲")
        assert scale[mark:].startswith(str(number))
    assert len(ruler.marks([])) == min(length, width)


def test_heat_rises_from_cold_over_infinite_to_negative() -> None:
    temperatures = [0.0, 1e-320, 0.5, 1.0, 2.0, 1e300, math.inf, -1e300, -2.0, -0.5, -1e-320]
    heats = [heat(temperature) for temperature in temperatures]
    assert heats == sorted(heats)
    assert (heats[0], heat(math.inf), heats[-1]) == (0.0, 0.5, 1.0)
    assert heat(-math.inf) == 0.5


@pytest.mark.parametrize(
    ("base", "text"),
    [
        ({}, "T 1"),
        (
            {"temperature": 0.8, "top_p": 0.9, "top_k": 5, "presence_penalty": 0.5},
            "T 0.8, top_p 0.9, top_k 5, presence_penalty 0.5",
        ),
        (
            {
                "temperature": "-inf",
                "support": {"min_p": 0.02, "top_k": 9},
                "vocabulary": {"include": ["english", "digits"], "exclude": ["special"]},
            },
            "T -inf on min_p 0.02 and top_k 9, only english and digits, without special",
        ),
        (
            {"track": [{"until": 8, "temperature": 3, "min_p": 0.1}, {"support": {"top_k": 2}}]},
            "T 3, min_p 0.1 until 8; T 1 on top_k 2",
        ),
        (
            {"anneal": {"from": "inf", "to": -1, "over": 64}, "top_p": 0.9},
            "T from inf to -1 over 64, linear, top_p 0.9",
        ),
        (
            {"adaptive": {"kind": "edt", "t0": 1.2}, "support": {"min_p": 0.1}},
            "T = 1.2·0.8^(1/H), H the step's entropy in nats on min_p 0.1",
        ),
        (
            {"adaptive": {"kind": "dynatemp", "low": 0.2, "high": 2}},
            "T from 0.2 to 2 with (H/H_max)^1, H the entropy",
        ),
    ],
    ids=str,
)
def test_a_base_is_put_in_words(base: dict[str, Any], text: str) -> None:
    assert describe_base(read({"base": base}).base) == text


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"when": {"every": 24, "start": 8, "jitter": 4}}, "every 24 + 0…4, from 8"),
        ({"when": {"every": 3, "stop": 9, "max": 2}}, "every 3, before 9, 2 at most"),
        (
            {"when": {"rate": 0.02, "burst": 3, "cooldown": 5}},
            "with probability 0.02, 3 at a time, then 5 left alone",
        ),
        ({"when": {"at": [0, 5]}}, "at 0, 5"),
        ({"when": {"at": list(range(99))}}, "at 0, 1, 2, 3, 4, 5, 6, 7, …"),
        ({"when": {"entropy": {"above": 2.5}}}, "where entropy > 2.5 nats"),
        ({"when": {"entropy": {"below": 0.5}}}, "where entropy < 0.5 nats"),
        ({"when": {"margin": {"below": 0.1}}}, "where p₁ − p₂ < 0.1"),
        ({"when": {"after": "word"}}, "after a word"),
        ({"when": {"after": "\x1b</think>\n"}}, "after '\\x1b</think>\\n'"),
    ],
    ids=str,
)
def test_a_when_is_put_in_words(rule: dict[str, Any], text: str) -> None:
    (config,) = read({"inject": [rule | {"temperature": -1}]}).inject
    assert describe_rule(config) == f"{text}: T -1 on min_p 0.05, without special"


def test_a_draw_is_put_in_words() -> None:
    rule = {
        "when": {"rate": 1},
        "temperature": "inf",
        "support": "all",
        "vocabulary": {"include": ["regex:\x1b"]},
        "guard": ["digits", "eos"],
        "draw": "distinct",
    }
    (config,) = read({"inject": [rule]}).inject
    assert describe_rule(config) == (
        "with probability 1: T inf on all tokens, only 'regex:\\x1b', "
        "not in place of digits and eos, distinct among siblings"
    )


@pytest.mark.parametrize(
    ("base", "decided_by", "temperatures"),
    [
        ({"temperature": 0.8}, "position", None),
        ({"temperature": -5}, "position", None),
        ({"anneal": {"from": 2, "to": 2, "over": 3}}, "position", None),
        ({"adaptive": {"kind": "edt", "t0": 1}}, "logits", None),
        ({"anneal": {"from": 1, "to": -1, "over": 2}}, "position", [1, "inf", -1, -1]),
        ({"track": [{"until": 9, "temperature": 2}, {}]}, "position", None),
        ({"track": [{"until": 3, "temperature": 2}, {}]}, "position", [2, 2, 2, 1]),
    ],
    ids=str,
)
def test_temperatures_are_given_by_position_where_positions_move_them(
    base: dict[str, Any], decided_by: str, temperatures: list[float | str] | None
) -> None:
    described = describe_schedule(read({"base": base}), length=4)["base"]
    assert described["decided_by"] == decided_by
    assert described["temperatures"] == temperatures


def test_a_constant_schedule_is_drawn_in_words_alone() -> None:
    described = describe_schedule(read({"base": {"temperature": 0.8}}), 50)
    assert list(draw_schedule("control", described, 50, 80)) == ["control", "  base     T 0.8"]


def test_rows_are_labelled_by_their_end_and_stand_over_one_scale() -> None:
    rows = [("a" * 60 + "/0", [[0], None]), ("b/1", [[7]]), ("c/0", [None])]
    lines = list(draw_firings(rows, length=8, width=60))
    assert lines == [
        "…aaaaaaaaaaaaaaaa/0 rule 0 ▲·······",
        "b/1                        ·······▲",
        "                           0",
    ]
    assert list(draw_firings(rows[2:], length=8, width=60)) == []
