"""Schedules in a job file: every form is read, and what can't be says by its path what can."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from negtemp_data.jobspec import TOKEN_CLASSES, ScheduleConfig, explain_errors
from negtemp_data.jobspec.schema import job_schema

PENALTIES = (
    "vLLM's two runners apply penalties at different places, before or after the project applies "
    "such a base, so their strength would not be what the number says."
)
PIECE_KEYS = "min_p, support, temperature, top_k, top_p, until, vocabulary"


def read(data: Any) -> ScheduleConfig:
    """A schedule as a job file has it."""
    return ScheduleConfig.model_validate_json(json.dumps(data))


def rule_with(**changes: Any) -> dict[str, Any]:
    """A schedule with one rule."""
    return {"inject": [{"when": {"every": 4}, "temperature": -1.0} | changes]}


def errors_of(data: Any) -> list[str]:
    """What is wrong with a schedule."""
    with pytest.raises(ValidationError) as caught:
        read(data)
    return explain_errors(caught.value, ScheduleConfig, "schedule")


BASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 0, "presence_penalty": 1.5},
    {"temperature": 2, "frequency_penalty": -2, "repetition_penalty": 1.1},
    {"temperature": 100000, "support": {"min_p": 0.02}, "vocabulary": {"include": ["english"]}},
    {"temperature": "inf", "support": "all"},
    {"temperature": "-inf", "top_k": 1, "min_p": 1, "top_p": 1},
    {"temperature": -0.5, "support": {"top_n_sigma": 1}},
    {"track": [{"temperature": 0.5}]},
    {"track": [{"until": 8, "temperature": 3, "support": {"min_p": 0.05}}, {"temperature": 0.5}]},
    {"track": [{"until": 1}, {"until": 2, "top_p": 0.9, "top_k": 3, "min_p": 0.1}, {}]},
    {"anneal": {"from": 1.5, "to": 0.6, "over": 64, "shape": "cosine"}, "top_p": 0.9},
    {"anneal": {"from": "inf", "to": -1, "over": 1}},
    {"anneal": {"from": 1, "to": "-inf", "over": 1_000_000, "shape": "linear"}},
    {"anneal": {"from": -3, "to": -0.1, "over": 5, "shape": "exponential"}, "support": "all"},
    {"adaptive": {"kind": "edt", "t0": 1.2, "n": 0.8, "theta": 1}},
    {"adaptive": {"kind": "edt", "t0": 2}, "min_p": 0.1, "vocabulary": {"exclude": ["digits"]}},
    {"adaptive": {"kind": "dynatemp", "low": 0, "high": 2, "exponent": 0.5}, "top_k": 9},
]

WHENS: list[dict[str, Any]] = [
    {"every": 24, "start": 8, "jitter": 4},
    {"rate": 1},
    {"at": [0]},
    {"at": [0, 5, 6], "start": 5, "stop": 6},
    {"entropy": {"above": 0}},
    {"entropy": {"below": 0.1}, "start": 3, "stop": 9, "cooldown": 2, "burst": 2, "max": 4},
    {"margin": {"below": 1}, "max": 1},
    {"after": "sentence"},
    {"after": "line"},
    {"after": "word", "cooldown": 9},
    {"after": "</think>", "burst": 3},
    {"after": " \n"},
]

RULES: list[dict[str, Any]] = [
    *({"when": when} for when in WHENS),
    *({"temperature": value} for value in (0, 1e-6, -1e-6, 100000, "inf", "-inf")),
    {"support": "all", "vocabulary": {}, "defer": 0},
    {"support": {"min_p": 0.1, "top_p": 0.9, "top_k": 2, "top_n_sigma": 1, "epsilon": 0.5}},
    {"support": {"xtc": 0.5}, "defer": 0},
    {"vocabulary": {"include": ["word_start", "script:Latin"], "exclude": ["undertrained"]}},
    {"guard": ["digits", "code_fence", "json_punctuation", "eos"], "draw": "distinct"},
    {"vocabulary": {"exclude": list(TOKEN_CLASSES)}},
    {"vocabulary": {"include": ["regex:^ ?[A-Z]", "script:han", "script:Old_Italic"]}},
]

SCHEDULES = [*({"base": base} for base in BASES), *(rule_with(**rule) for rule in RULES)]


@pytest.mark.parametrize("data", SCHEDULES, ids=json.dumps)
def test_every_form_is_read_and_written_back(data: dict[str, Any]) -> None:
    schedule = read(data)
    assert ScheduleConfig.model_validate(schedule.model_dump()) == schedule
    for is_short in (False, True):
        text = schedule.model_dump_json(exclude_defaults=is_short)
        assert ScheduleConfig.model_validate_json(text) == schedule
    # The short form says what was said, and no more than that.
    written = schedule.model_dump(mode="json", exclude_defaults=True)
    assert read(written) == schedule
    assert set(written) <= set(data)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (0.8, "base: input should be an object; found 0.8."),
        (
            {"track": [{}], "anneal": {}},
            "base: needs at most one of the keys 'track', 'anneal' and 'adaptive'; found "
            "{'track': [{}], 'anneal': {}}.",
        ),
        ({"tempreature": 1}, "base.tempreature: unknown key; did you mean 'temperature'?"),
        (
            {"temperature": "hot"},
            "base.temperature: input should be a valid number; found 'hot'.",
        ),
        (
            {"temperature": float("nan")},
            "base.temperature: must be a number or inf or -inf, not nan.",
        ),
        ({"top_k": -1}, "base.top_k: input should be greater than or equal to 0; found -1."),
        (
            {"temperature": 2.1, "presence_penalty": 1},
            "base: presence_penalty can't stand beside `support`, `vocabulary` or a temperature "
            f"that is neither 0 nor from 0.01 to 2: {PENALTIES}",
        ),
        (
            {"support": {"min_p": 0.1}, "repetition_penalty": 1.1},
            "base: repetition_penalty can't stand beside `support`, `vocabulary` or a temperature "
            f"that is neither 0 nor from 0.01 to 2: {PENALTIES}",
        ),
        (
            {"vocabulary": {"exclude": ["digits"]}, "frequency_penalty": 1},
            "base: frequency_penalty can't stand beside `support`, `vocabulary` or a temperature "
            f"that is neither 0 nor from 0.01 to 2: {PENALTIES}",
        ),
        (
            {"anneal": {"from": 1, "to": 2, "over": 3}, "presence_penalty": 0},
            f"base: presence_penalty can't stand beside a moving base: {PENALTIES}",
        ),
        (
            {"track": [{"presence_penalty": 1}]},
            f"base.track[0]: presence_penalty can't stand beside a moving base: {PENALTIES}",
        ),
        (
            {"support": {"xtc": 0.1}},
            "base.support: xtc leaves steps without candidates, so it belongs to an injection "
            "rule, for example {when: {rate: 0.5}, temperature: 1, support: {xtc: 0.1}, defer: 0}.",
        ),
        (
            {"track": [{"support": {"xtc": 0.1, "min_p": 0.1}}]},
            "base.track[0].support: xtc leaves steps without candidates, so it belongs to an "
            "injection rule, for example {when: {rate: 0.5}, temperature: 1, support: {xtc: 0.1}, "
            "defer: 0}.",
        ),
        (
            {"support": {}},
            "base.support: needs at least one limit; write `support: all` for no limit.",
        ),
        (
            {"track": []},
            "base.track: list should have at least 1 item after validation, not 0; found [].",
        ),
        ({"track": [{}], "temperature": 1}, "base.temperature: unknown key; known keys: track."),
        (
            {"track": [{"zzz": 1}]},
            f"base.track[0].zzz: unknown key; known keys: {PIECE_KEYS}.",
        ),
        (
            {"track": [{"temperature": 3}, {"temperature": 1}]},
            "base: track[0] needs `until`: only the last piece has no end.",
        ),
        (
            {"track": [{"until": 8}, {"until": 8}, {}]},
            "base: track[1].until (8) must be greater than the one before it (8).",
        ),
        (
            {"track": [{"until": 8}]},
            "base: the last piece of a track must not have `until`: it has no end.",
        ),
        (
            {"track": [{"until": 0}, {}]},
            "base.track[0].until: input should be greater than or equal to 1; found 0.",
        ),
        ({"anneal": {"from": 1, "to": 2}}, "base.anneal.over: missing; it has to be given."),
        (
            {"anneal": {"from": 1, "to": 2, "over": 3, "frm": 1}},
            "base.anneal.frm: unknown key; did you mean 'from'?",
        ),
        (
            {"anneal": {"from": 1, "to": 0, "over": 3}},
            "base.anneal: from and to must not be 0; write for example 0.05.",
        ),
        (
            {"anneal": {"from": 1, "to": 2, "over": 1_000_001}},
            "base.anneal.over: input should be less than or equal to 1000000; found 1000001.",
        ),
        (
            {"anneal": {"from": 1, "to": 2, "over": 0}},
            "base.anneal.over: input should be greater than or equal to 1; found 0.",
        ),
        *(
            (
                {"anneal": {"from": first, "to": last, "over": 3, "shape": shape}},
                f"base.anneal: from ({first}) and to ({last}) must be finite and of one sign for "
                f"the shape {shape}; only linear passes through infinity.",
            )
            for shape in ("cosine", "exponential")
            for first, last in ((1, -2), ("inf", 1), (-1, "-inf"))
        ),
        (
            {"adaptive": {"kind": "dyn"}},
            "base.adaptive: `kind` must be edt or dynatemp; found {'kind': 'dyn'}.",
        ),
        ({"adaptive": {"kind": "edt"}}, "base.adaptive.t0: missing; it has to be given."),
        (
            {"adaptive": {"kind": "edt", "t0": 1, "low": 0}},
            "base.adaptive.low: unknown key; known keys: kind, n, t0, theta.",
        ),
        (
            {"adaptive": {"kind": "edt", "t0": 0}},
            "base.adaptive.t0: input should be greater than 0; found 0.",
        ),
        (
            {"adaptive": {"kind": "edt", "t0": 1, "n": 1}},
            "base.adaptive.n: input should be less than 1; found 1.",
        ),
        (
            {"adaptive": {"kind": "edt", "t0": 1, "theta": 0}},
            "base.adaptive.theta: input should be greater than 0; found 0.",
        ),
        (
            {"adaptive": {"kind": "dynatemp", "low": 2, "high": 1}},
            "base.adaptive: low (2) must be less than high (1).",
        ),
    ],
    ids=str,
)
def test_a_base_that_can_not_be_says_why(base: Any, message: str) -> None:
    assert errors_of({"base": base}) == [message]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        *(
            (
                {"when": when},
                "when: needs exactly one of the keys 'every', 'rate', 'at', 'entropy', "
                f"'margin' and 'after'; found {when!r}.",
            )
            for when in ({}, "often", {"evry": 3}, {"every": 3, "after": "line"})
        ),
        (
            {"when": {"at": []}},
            "when.at: list should have at least 1 item after validation, not 0; found [].",
        ),
        (
            {"when": {"at": [-1]}},
            "when.at[0]: input should be greater than or equal to 0; found -1.",
        ),
        ({"when": {"at": [3, 3]}}, "when: the positions of at must rise; found 3 after 3."),
        ({"when": {"at": [5, 3]}}, "when: the positions of at must rise; found 3 after 5."),
        ({"when": {"at": 3}}, "when.at: input should be a valid array; found 3."),
        *(
            ({"when": when}, "when: no position of at lies from start on and before stop.")
            for when in ({"at": [1, 3], "start": 4}, {"at": [3], "stop": 3})
        ),
        ({"when": {"entropy": 2.5}}, "when.entropy: input should be an object; found 2.5."),
        *(
            (
                {"when": {"entropy": bound}},
                "when.entropy: needs exactly one of the keys 'above' and 'below'.",
            )
            for bound in ({}, {"above": 1, "below": 2})
        ),
        (
            {"when": {"entropy": {"zzz": 1}}},
            "when.entropy.zzz: unknown key; known keys: above, below.",
        ),
        (
            {"when": {"entropy": {"below": 0}}},
            "when.entropy.below: input should be greater than 0; found 0.",
        ),
        (
            {"when": {"entropy": {"above": -1}}},
            "when.entropy.above: input should be greater than or equal to 0; found -1.",
        ),
        ({"when": {"margin": {}}}, "when.margin.below: missing; it has to be given."),
        (
            {"when": {"margin": {"below": 0}}},
            "when.margin.below: input should be greater than 0; found 0.",
        ),
        (
            {"when": {"margin": {"below": 1.1}}},
            "when.margin.below: input should be less than or equal to 1; found 1.1.",
        ),
        ({"when": {"after": ""}}, "when.after: string should have at least 1 character; found ''."),
        (
            {"when": {"after": "line", "stop": 3, "start": 3}},
            "when: stop (3) must be greater than start (3).",
        ),
        (
            {"when": {"after": "line", "jitter": 1}},
            "when.jitter: unknown key; known keys: after, burst, cooldown, max, start, stop.",
        ),
        (
            {"support": {"top_k": 1}},
            "support.top_k: input should be greater than or equal to 2; found 1.",
        ),
        (
            {"support": {"epsilon": 0.6}},
            "support.epsilon: input should be less than or equal to 0.5; found 0.6.",
        ),
        ({"support": {"xtc": 0}}, "support.xtc: input should be greater than 0; found 0."),
        (
            {"support": {"xtc": 0.51}},
            "support.xtc: input should be less than or equal to 0.5; found 0.51.",
        ),
        (
            {"support": "none"},
            "support: must be `all` or limits such as {min_p: 0.05}; found 'none'.",
        ),
        ({"guard": "digits"}, "guard: input should be a valid array; found 'digits'."),
        ({"guard": ["digts"]}, "guard[0]: 'digts' is no token class; did you mean 'digits'?"),
        ({"draw": "same"}, "draw: input should be 'independent' or 'distinct'; found 'same'."),
        ({"drawn": 1}, "drawn: unknown key; did you mean 'draw'?"),
    ],
    ids=str,
)
def test_a_rule_that_can_not_be_says_why(rule: dict[str, Any], message: str) -> None:
    assert errors_of(rule_with(**rule)) == [f"inject[0].{message}"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Digits", "'Digits' is no token class; did you mean 'digits'?"),
        ("latin", "'latin' is no token class; did you mean 'script:latin'?"),
        ("script:", "'' is no script of Unicode; write for example Latin."),
        ("script:Latinn", "'Latinn' is no script of Unicode; write for example Latin."),
        ("script:La}", "'La}' is no script of Unicode; write for example Latin."),
        ("regex:", "regex: needs a pattern behind it."),
        ("regex:(", "regex:'(' is no regular expression: missing ) at position 1."),
        ("regex:" + "(" * 5000, "regex:'" + "(" * 198 + "… is no regular expression: "),
        ("", "'' is no token class; known classes: "),
        (
            "zzz\x1b",
            "'zzz\\x1b' is no token class; known classes: special, eos, ",
        ),
        ("z" * 5000, f"'{'z' * 198}… is no token class; known classes: "),
    ],
    ids=lambda text: text[:30],
)
def test_an_unknown_token_class_is_named_with_the_nearest(name: str, message: str) -> None:
    (line,) = errors_of(rule_with(vocabulary={"exclude": [name]}))
    assert line.startswith(f"inject[0].vocabulary.exclude[0]: {message}")


def test_a_vocabulary_without_tokens_is_refused() -> None:
    vocabulary = {"include": ["digits", "ascii"], "exclude": ["ascii", "digits"]}
    assert errors_of({"base": {"vocabulary": vocabulary}}) == [
        "base.vocabulary: every included class is excluded too: no token is left."
    ]


def test_the_schema_offers_the_keys_of_each_form_and_the_token_classes() -> None:
    definitions = json.loads(job_schema())["$defs"]
    assert {"from", "to", "over", "shape"} == set(definitions["AnnealConfig"]["properties"])
    assert {"choice", "regex", "json", "grammar"} == set(
        definitions["StructuredConfig"]["properties"]
    )
    names = definitions["VocabularyConfig"]["properties"]["include"]["items"]["anyOf"]
    assert names[0] == {"enum": list(TOKEN_CLASSES)}
    base = definitions["ScheduleConfig"]["properties"]["base"]["oneOf"]
    assert [option["$ref"].rsplit("/", 1)[1] for option in base] == [
        "ConstantBaseConfig",
        "TrackBaseConfig",
        "AnnealBaseConfig",
        "AdaptiveBaseConfig",
    ]
