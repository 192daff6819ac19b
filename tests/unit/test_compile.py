"""Job schedules become the sampler's records, and travel to it as text without a loss."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negtemp_data.engine.compile import (
    KEY,
    SCHEDULE,
    SIBLINGS,
    ArmParameters,
    compile_schedule,
    parse_schedule,
)
from negtemp_data.jobspec import TOKEN_CLASSES, GenerateConfig, ScheduleConfig
from negtemp_data.sampling import (
    AnnealedTemperature,
    BernoulliTrigger,
    DynamicTemperature,
    EntropyTemperature,
    EntropyTrigger,
    MarginTrigger,
    PeriodicTrigger,
    Piece,
    PositionTrigger,
    Rule,
    Schedule,
    Siblings,
    Support,
    TextTrigger,
    Trigger,
    Vocabulary,
)

WITHOUT_SPECIAL = Vocabulary(exclude=("special",))


def read(data: Any) -> ScheduleConfig:
    """A schedule as a job file has it."""
    return ScheduleConfig.model_validate_json(json.dumps(data))


def parameters(schedule: Any, **generate: Any) -> ArmParameters:
    """Parameters of an arm with this schedule."""
    text = json.dumps({"model": "m", "max_tokens": 9, "samples": {"a": 1}} | generate)
    return ArmParameters(GenerateConfig.model_validate_json(text), read(schedule))


@pytest.mark.parametrize(
    ("when", "trigger"),
    [
        ({"every": 24, "jitter": 4}, PeriodicTrigger(24, 4)),
        ({"rate": 0.25}, BernoulliTrigger(0.25)),
        ({"at": [0, 7]}, PositionTrigger((0, 7))),
        ({"entropy": {"above": 2.5}}, EntropyTrigger(above=2.5)),
        ({"entropy": {"below": 0.5}}, EntropyTrigger(below=0.5)),
        ({"margin": {"below": 0.1}}, MarginTrigger(0.1)),
        ({"after": "sentence"}, TextTrigger("sentence")),
        ({"after": "line"}, TextTrigger("line")),
        ({"after": "word"}, TextTrigger("word")),
        ({"after": "words"}, TextTrigger("literal", "words")),
        ({"after": "</think>"}, TextTrigger("literal", "</think>")),
    ],
    ids=str,
)
def test_a_when_becomes_its_trigger(when: dict[str, Any], trigger: Trigger) -> None:
    config = read({"inject": [{"when": when, "temperature": -1}]})
    assert compile_schedule(config) == Schedule(
        (Rule(trigger, -1.0, Support(min_p=0.05), WITHOUT_SPECIAL),)
    )


def test_a_rule_is_compiled_field_by_field() -> None:
    when = {"at": [9], "start": 8, "stop": 90, "cooldown": 2, "burst": 3, "max": 7}
    limits = {
        "min_p": 0.1,
        "top_p": 0.9,
        "top_k": 5,
        "top_n_sigma": 2.0,
        "epsilon": 0.01,
        "xtc": 0.2,
    }
    rule = {
        "when": when,
        "temperature": "-inf",
        "support": limits,
        "vocabulary": {"include": ["word_start", "script:Latin"], "exclude": ["regex:^x"]},
        "guard": ["digits", "eos"],
        "defer": 1,
        "draw": "distinct",
    }
    assert compile_schedule(read({"inject": [rule]})) == Schedule(
        (
            Rule(
                PositionTrigger((9,)),
                temperature=-math.inf,
                support=Support(0.1, 0.9, 5, 2.0, 0.01, 0.2),
                vocabulary=Vocabulary(("word_start", "script:Latin"), ("regex:^x",)),
                guard=("digits", "eos"),
                is_distinct=True,
                start=8,
                stop=90,
                cooldown=2,
                burst=3,
                max_injections=7,
                defer=1,
            ),
        )
    )


def test_a_rule_may_draw_from_everything() -> None:
    rule = {"when": {"every": 1}, "temperature": 0, "support": "all", "vocabulary": {}}
    assert compile_schedule(read({"inject": [rule]})).rules == (Rule(PeriodicTrigger(1), 0.0),)


@pytest.mark.parametrize(
    "base",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.01, "top_p": 0.5, "top_k": 3, "min_p": 0.1},
        {"temperature": 2, "presence_penalty": 1, "support": "all", "vocabulary": {}},
    ],
    ids=str,
)
def test_what_vllm_can_do_is_left_to_it(base: dict[str, Any]) -> None:
    assert compile_schedule(read({"base": base})) == Schedule()


@pytest.mark.parametrize(
    ("base", "pieces"),
    [
        ({"temperature": 2.1}, (Piece(2.1),)),
        ({"temperature": 0.009}, (Piece(0.009),)),
        ({"temperature": -1}, (Piece(-1.0),)),
        ({"temperature": "inf", "top_k": 4}, (Piece(math.inf, top_k=4),)),
        (
            {"temperature": 0.8, "support": {"top_n_sigma": 1}, "top_p": 0.9, "min_p": 0.1},
            (Piece(0.8, support=Support(top_n_sigma=1.0), top_p=0.9, min_p=0.1),),
        ),
        ({"support": {"top_k": 5}}, (Piece(1.0, support=Support(top_k=5)),)),
        (
            {"vocabulary": {"exclude": ["digits"]}},
            (Piece(1.0, vocabulary=Vocabulary(exclude=("digits",))),),
        ),
        ({"track": [{"temperature": 0.5}]}, (Piece(0.5),)),
        (
            {"track": [{"until": 8, "temperature": 3, "support": {"min_p": 0.05}}, {"top_k": 3}]},
            (Piece(3.0, until=8, support=Support(min_p=0.05)), Piece(1.0, top_k=3)),
        ),
        (
            {"anneal": {"from": 1.5, "to": 0.6, "over": 64, "shape": "cosine"}, "top_p": 0.9},
            (Piece(AnnealedTemperature(1.5, 0.6, 64, "cosine"), top_p=0.9),),
        ),
        (
            {"anneal": {"from": "inf", "to": -1, "over": 3}, "support": {"xtc": None, "top_k": 2}},
            (Piece(AnnealedTemperature(math.inf, -1.0, 3, "linear"), support=Support(top_k=2)),),
        ),
        (
            {"adaptive": {"kind": "edt", "t0": 1.2}, "min_p": 0.1},
            (Piece(EntropyTemperature(1.2, 0.8, 1.0), min_p=0.1),),
        ),
        (
            {"adaptive": {"kind": "dynatemp", "low": 0, "high": 2, "exponent": 0.5}},
            (Piece(DynamicTemperature(0.0, 2.0, 0.5)),),
        ),
    ],
    ids=str,
)
def test_any_other_base_becomes_pieces(base: dict[str, Any], pieces: tuple[Piece, ...]) -> None:
    assert compile_schedule(read({"base": base})) == Schedule(base=pieces)


@pytest.mark.parametrize(
    ("vocabulary", "compiled"),
    [
        ({"include": ["english"]}, Vocabulary(("english", "eos"))),
        ({"include": ["eos", "english"]}, Vocabulary(("eos", "english"))),
        (
            {"include": ["english"], "exclude": ["digits"]},
            Vocabulary(("english", "eos"), ("digits",)),
        ),
        ({"include": ["english"], "exclude": ["eos"]}, Vocabulary(("english",), ("eos",))),
        ({"include": ["english"], "exclude": ["special"]}, Vocabulary(("english",), ("special",))),
        ({"exclude": ["digits"]}, Vocabulary((), ("digits",))),
    ],
    ids=str,
)
def test_a_base_that_includes_classes_can_end_unless_it_says_otherwise(
    vocabulary: dict[str, Any], compiled: Vocabulary
) -> None:
    (constant,) = compile_schedule(read({"base": {"vocabulary": vocabulary}})).base
    track = {"track": [{"until": 3}, {"vocabulary": vocabulary}]}
    _, last = compile_schedule(read({"base": track})).base
    assert constant.vocabulary == last.vocabulary == compiled
    rule = {"when": {"every": 1}, "temperature": 1, "vocabulary": vocabulary}
    (injected,) = compile_schedule(read({"inject": [rule]})).rules
    assert injected.vocabulary == Vocabulary(
        tuple(vocabulary.get("include", ())), tuple(vocabulary.get("exclude", ()))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "schedule: invalid JSON: EOF while parsing a value at line 1 column 0; found ''."),
        ("[]", "schedule: input should be an object; found []."),
        ('{"injects": []}', "injects: unknown key; did you mean 'inject'?"),
        (
            '{"inject": [{"when": {"every": 0}, "temperature": -1, "defr": 1}]}',
            "inject[0].when.every: input should be greater than or equal to 1; found 0. "
            "inject[0].defr: unknown key; did you mean 'defer'?",
        ),
        (
            '{"base": {"temperature": 0.8}}',
            "base: vLLM itself samples this; leave it out and set temperature, top_p, … of the "
            "request",
        ),
        (None, "must be a schedule as JSON text; found None"),
        ({"inject": []}, "must be a schedule as JSON text; found {'inject': []}"),
    ],
    ids=str,
)
def test_a_text_that_is_no_schedule_says_where_on_one_line(text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        parse_schedule(text)
    assert str(caught.value) == message


def test_hostile_text_gives_a_short_printable_message() -> None:
    key, value = "\x1b[31m\n" + "k" * 9999, "\u202e" * 9999
    for text in (json.dumps({key: 1}), json.dumps({"inject": value}), value, "[" * 9999):
        with pytest.raises(ValueError, match=r"^.+$") as caught:
            parse_schedule(text)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


def test_a_text_is_compiled_once() -> None:
    text = '{"inject": [{"when": {"at": [3]}, "temperature": -1}]}'
    assert parse_schedule(text) is parse_schedule(text)


def test_a_schedule_spelled_out_with_the_default_base_leaves_the_base_to_vllm() -> None:
    config = read({"inject": [{"when": {"every": 3}, "temperature": -1}]})
    assert parse_schedule(config.model_dump_json()) == compile_schedule(config)


def test_only_a_schedule_that_does_something_travels() -> None:
    assert parameters({"base": {"temperature": 0.7}}).extra_args("k") is None
    rule = {"when": {"every": 3}, "temperature": -1}
    arguments = parameters({"base": {"temperature": 0.7}, "inject": [rule]}).extra_args("k")
    assert arguments is not None
    assert arguments.keys() == {KEY, SCHEDULE}
    assert arguments[KEY] == "k"
    assert json.loads(arguments[SCHEDULE]) == {"inject": [rule]}


def test_siblings_travel_with_a_distinct_rule_alone() -> None:
    rule = {"when": {"every": 3}, "temperature": -1}
    for draw, travels in (("independent", False), ("distinct", True)):
        arm = parameters({"inject": [rule, rule | {"draw": draw}]})
        arguments = arm.extra_args("k", Siblings(2**63 - 1, 4))
        assert arguments is not None
        assert arguments.get(SIBLINGS) == ([2**63 - 1, 4] if travels else None)
        assert SIBLINGS not in (arm.extra_args("k") or {})


def spread(*numbers: Any) -> st.SearchStrategy[Any]:
    """One of a few values, which is enough for what is only passed on."""
    return st.sampled_from(numbers)


def some_of(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A mapping with all of `required` and any of `optional`."""
    return st.fixed_dictionaries(required, optional=optional)


TEMPERATURES = st.one_of(spread("inf", "-inf", 0, -1), st.floats(-1e5, 1e5))
ENDS = spread("inf", "-inf", 0.1, -3)
VOCABULARIES = some_of(
    {},
    {
        "include": st.lists(spread("english", "script:Han"), max_size=2),
        "exclude": st.lists(spread(*TOKEN_CLASSES, "regex:^\n\"'"), max_size=3),
    },
).filter(lambda v: not v.get("include") or not set(v["include"]) <= set(v.get("exclude", ())))
LIMITS = {
    "min_p": st.floats(0.01, 0.9),
    "top_p": spread(0.5),
    "top_k": st.integers(2, 9),
    "top_n_sigma": spread(1, 2.5),
    "epsilon": spread(0.5),
}
SUPPORTS = spread("all") | some_of({}, LIMITS).filter(bool)
RULE_SUPPORTS = spread("all") | some_of({}, LIMITS | {"xtc": spread(0.1)}).filter(bool)
CANDIDATES = {
    "support": SUPPORTS,
    "vocabulary": VOCABULARIES,
    "top_p": spread(0.9, 1),
    "top_k": spread(0, 5),
    "min_p": spread(0, 0.1),
}
PIECES = st.lists(some_of({}, CANDIDATES | {"temperature": TEMPERATURES}), min_size=1, max_size=3)
TRACKS = PIECES.map(
    lambda track: [p | {"until": 3 * i + 1} for i, p in enumerate(track[:-1])] + track[-1:]
)
WAYS = some_of({"from": ENDS, "to": ENDS, "over": st.integers(1, 99)}, {"shape": spread("linear")})
ADAPTIVE = some_of(
    {"kind": spread("edt"), "t0": spread(1.2)}, {"n": spread(0.5), "theta": spread(2)}
) | some_of(
    {"kind": spread("dynatemp"), "low": spread(0.1), "high": spread(2)}, {"exponent": spread(2)}
)
BASES = st.one_of(
    some_of({}, CANDIDATES | {"temperature": TEMPERATURES}),
    some_of({"track": TRACKS}, {}),
    some_of({"anneal": WAYS}, CANDIDATES),
    some_of({"adaptive": ADAPTIVE}, CANDIDATES),
)
KINDS = st.one_of(
    some_of({"every": st.integers(3, 9)}, {"jitter": st.integers(0, 2)}),
    some_of({"rate": st.floats(0.01, 1)}, {}),
    some_of({"at": st.lists(st.integers(0, 40), min_size=1, unique=True).map(sorted)}, {}),
    some_of({"entropy": spread({"above": 2.5}, {"below": 1})}, {}),
    some_of({"margin": spread({"below": 0.1})}, {}),
    some_of({"after": spread("sentence", "line", "word") | st.text(min_size=1)}, {}),
)
WHENS = st.builds(
    lambda kind, more: kind | more,
    KINDS,
    some_of({}, {"burst": spread(2), "cooldown": spread(3), "max": spread(4)}),
)
RULES = some_of(
    {"when": WHENS, "temperature": TEMPERATURES},
    {
        "support": RULE_SUPPORTS,
        "vocabulary": VOCABULARIES,
        "guard": st.lists(spread("digits", "eos"), max_size=2),
        "defer": st.integers(0, 5),
        "draw": spread("independent", "distinct"),
    },
)


@settings(derandomize=True, max_examples=300)
@given(some_of({}, {"base": BASES, "inject": st.lists(RULES, max_size=2)}))
def test_what_travels_is_compiled_to_the_same_schedule(data: dict[str, Any]) -> None:
    arm = parameters(data)
    assert arm.schedule == compile_schedule(read(data))
    arguments = arm.extra_args("k")
    if arguments is None:
        assert arm.schedule == Schedule()
    else:
        assert parse_schedule(arguments[SCHEDULE]) == arm.schedule
        json.loads(arguments[SCHEDULE], parse_constant=pytest.fail)


@pytest.mark.filterwarnings("default")  # of vllm, as it is imported
def test_vllms_parameters_hold_the_base_or_are_neutral() -> None:
    base = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.5}
    arm = parameters({"base": base}, min_tokens=3, stop=["x"])
    params = arm.sampling_params("k", seed=11, room=4)
    assert {name: getattr(params, name) for name in base} == base
    assert (params.seed, params.max_tokens, params.min_tokens, params.stop) == (11, 4, 3, ["x"])
    assert params.structured_outputs is None
    assert params.extra_args is None
    arm = parameters({"base": {"anneal": {"from": "inf", "to": 1, "over": 3}, "top_p": 0.9}})
    params = arm.sampling_params("k", seed=11, room=4)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1, 0, 0)
    assert params.extra_args == arm.extra_args("k")


@pytest.mark.filterwarnings("default")  # of vllm, as it is imported
@pytest.mark.parametrize(
    "form",
    [
        {"choice": ["yes", "no"]},
        {"regex": r"\d+"},
        {"json": {"type": "object", "properties": {"a": {"const": None}}}},
        {"grammar": 'root ::= "a"'},
    ],
    ids=str,
)
def test_structured_outputs_are_those_of_the_job(form: dict[str, Any]) -> None:
    arm = parameters({}, structured=form)
    first = arm.sampling_params("k", seed=0, room=9).structured_outputs
    assert first is not arm.sampling_params("l", seed=0, room=9).structured_outputs
    given = {name: getattr(first, name) for name in ("choice", "regex", "json", "grammar")}
    assert {name: value for name, value in given.items() if value is not None} == form
