"""Job files: what is wrong is named by path, value and nearest key; what is right comes back."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from negtemp_data.errors import JobError
from negtemp_data.jobspec import (
    Job,
    SupportConfig,
    apply_overrides,
    build_job,
    load_job,
    read_yaml,
    write_job,
)
from negtemp_data.jobspec.fingerprint import differences, fingerprint_job
from negtemp_data.jobspec.schema import is_fresh, job_schema

REPOSITORY = Path(__file__).parents[2]

JOB = """\
version: 1
name: try
seed: 7
prompts: {source: prompts.jsonl, id: id, text: prompt}
generate:
  model: smollm2-135m-instruct
  max_tokens: 128
  samples: {control: 2, negative: 2}
schedules:
  control:
    base: {temperature: 0.8}
  negative:
    inject:
      - when: {every: 24, start: 8, jitter: 4}
        temperature: -1.0
        support: {min_p: 0.05}
verify:
  checks:
    - {kind: length, min_tokens: 16}
  judge:
    criteria: {coherence: {weight: 2}, relevance: {}}
    accept_at: 2.5
output: {path: out}
"""

RULE = "schedules.negative.inject.0"
RULE_PATH = "schedules.negative.inject[0]"


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    return path


def error_of(job_file: Path, *overrides: str) -> str:
    """The message of the error, without the file's name."""
    with pytest.raises(JobError) as caught:
        load_job(job_file, overrides)
    return str(caught.value).removeprefix(f"{job_file}: ")


@pytest.mark.parametrize(
    ("override", "path", "near"),
    [
        ("verson=1", "verson", "version"),
        ("prompts.sorce=a", "prompts.sorce", "source"),
        ("generate.sample={}", "generate.sample", "samples"),
        ("output.shard_row=3", "output.shard_row", "shard_rows"),
        ("schedules.control.bas={}", "schedules.control.bas", "base"),
        (
            "schedules.control.base.temprature=1",
            "schedules.control.base.temprature",
            "temperature",
        ),
        (f"{RULE}.tempature=1", f"{RULE_PATH}.tempature", "temperature"),
        (f"{RULE}.when.evry=3", f"{RULE_PATH}.when.evry", "every"),
        (f"{RULE}.when={{rate: 0.1, strat: 2}}", f"{RULE_PATH}.when.strat", "start"),
        (f"{RULE}.support.minp=0.1", f"{RULE_PATH}.support.minp", "min_p"),
        (f"{RULE}.vocabulary={{excludes: []}}", f"{RULE_PATH}.vocabulary.excludes", "exclude"),
        ("verify.check=[]", "verify.check", "checks"),
        ("verify.checks.0.min_token=3", "verify.checks[0].min_token", "min_tokens"),
        (
            "verify.judge.criteria.coherence.wieght=2",
            "verify.judge.criteria.coherence.wieght",
            "weight",
        ),
        ("verify.judge.acceptat=3", "verify.judge.acceptat", "accept_at"),
    ],
)
def test_an_unknown_key_is_named_by_its_path_with_the_nearest_one(
    job_file: Path, override: str, path: str, near: str
) -> None:
    assert error_of(job_file, override) == f"{path}: unknown key; did you mean {near!r}?"


def test_an_unknown_key_like_no_other_lists_the_keys_of_its_place(job_file: Path) -> None:
    message = error_of(job_file, f"{RULE}.support={{zzzz: 1}}")
    assert message == (
        f"{RULE_PATH}.support.zzzz: unknown key; "
        "known keys: epsilon, min_p, top_k, top_n_sigma, top_p, xtc."
    )


def test_the_keys_of_another_alternative_are_not_proposed(job_file: Path) -> None:
    message = error_of(job_file, f"{RULE}.when={{rate: 0.1, jitter: 2}}")
    assert message == (
        f"{RULE_PATH}.when.jitter: unknown key; "
        "known keys: burst, cooldown, max, rate, start, stop."
    )


@pytest.mark.parametrize("key", ["a\nb", "\x1b[31m", "\u202e", "x" * 5000])
def test_an_unknown_key_is_shown_on_one_short_line_without_control_characters(
    job_file: Path, key: str
) -> None:
    data = read_yaml(JOB, "text")
    data["output"][key] = 1
    with pytest.raises(JobError) as caught:
        build_job(data, "text")
    message = str(caught.value)
    assert message.startswith("text: output.'")
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    ("override", "path", "found"),
    [
        ("version=2", "version", "2"),
        ("seed=true", "seed", "True"),
        ("seed='7'", "seed", "'7'"),
        ("seed=1.5", "seed", "1.5"),
        ("seed=-1", "seed", "-1"),
        ("seed=9223372036854775808", "seed", "9223372036854775808"),
        ("name=null", "name", "None"),
        ("name=a b", "name", "'a b'"),
        ("name=../up", "name", "'../up'"),
        ("prompts.limit=0", "prompts.limit", "0"),
        ("prompts.source=''", "prompts.source", "''"),
        ("generate.max_tokens=many", "generate.max_tokens", "'many'"),
        ("generate.samples={}", "generate.samples", "{}"),
        ("generate.samples.control=0", "generate.samples.control", "0"),
        ("generate.stop=.", "generate.stop", "'.'"),
        ("generate.replicas=0", "generate.replicas", "0"),
        ("generate.gpus_per_replica=some", "generate.gpus_per_replica", "'some'"),
        ("output.keep=good", "output.keep", "'good'"),
        ("schedules=[]", "schedules", "[]"),
        ("schedules.control.base.temperature=hot", "schedules.control.base.temperature", "'hot'"),
        ("schedules.control.base=0.8", "schedules.control.base", "0.8"),
        ("schedules.control.base.top_p=0", "schedules.control.base.top_p", "0"),
        (f"{RULE}.temperature=hot", f"{RULE_PATH}.temperature", "'hot'"),
        (f"{RULE}.temperature=nan", f"{RULE_PATH}.temperature", "'nan'"),
        (f"{RULE}.defer=-1", f"{RULE_PATH}.defer", "-1"),
        (f"{RULE}.when.every=-3", f"{RULE_PATH}.when.every", "-3"),
        (f"{RULE}.when.every=2.5", f"{RULE_PATH}.when.every", "2.5"),
        (f"{RULE}.when={{rate: 0}}", f"{RULE_PATH}.when.rate", "0"),
        (f"{RULE}.when={{rate: 1.1}}", f"{RULE_PATH}.when.rate", "1.1"),
        (f"{RULE}.when={{}}", f"{RULE_PATH}.when", "{}"),
        (
            f"{RULE}.when={{every: 3, rate: 0.1}}",
            f"{RULE_PATH}.when",
            "{'every': 3, 'rate': 0.1}",
        ),
        (f"{RULE}.when=often", f"{RULE_PATH}.when", "'often'"),
        (f"{RULE}.support=none", f"{RULE_PATH}.support", "'none'"),
        (f"{RULE}.support=[]", f"{RULE_PATH}.support", "[]"),
        (f"{RULE}.support.top_k=1", f"{RULE_PATH}.support.top_k", "1"),
        (f"{RULE}.support.top_p=1", f"{RULE_PATH}.support.top_p", "1"),
        (f"{RULE}.support.epsilon=0.9", f"{RULE_PATH}.support.epsilon", "0.9"),
        (f"{RULE}.vocabulary.include=digits", f"{RULE_PATH}.vocabulary.include", "'digits'"),
        (f"{RULE}.draw=same", f"{RULE_PATH}.draw", "'same'"),
        ("generate.structured=[a]", "generate.structured", "['a']"),
        ("generate.structured={choice: []}", "generate.structured.choice", "[]"),
        ("generate.structured={choice: ['']}", "generate.structured.choice[0]", "''"),
        ("generate.structured={json: text}", "generate.structured.json", "'text'"),
        ("generate.structured={regex: ''}", "generate.structured.regex", "''"),
        ("generate.lora=''", "generate.lora", "''"),
        ("verify.checks.0={kind: len}", "verify.checks[0]", "{'kind': 'len'}"),
        ("verify.checks.0={kind: [1]}", "verify.checks[0]", "{'kind': [1]}"),
        ("verify.checks.0=length", "verify.checks[0]", "'length'"),
        ("verify.checks.0={kind: perplexity, max: 1}", "verify.checks[0].max", "1"),
        ("verify.judge.criteria={}", "verify.judge.criteria", "{}"),
        ("verify.judge.scale=[1]", "verify.judge.scale", "[1]"),
    ],
)
def test_a_wrong_value_is_quoted_with_its_path(
    job_file: Path, override: str, path: str, found: str
) -> None:
    for line in error_of(job_file, override).split("\n"):
        assert line.strip().startswith(f"{path}: ")
        assert line.endswith(f"; found {found}.")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            f"{RULE}.temperature=.nan",
            f"{RULE_PATH}.temperature: must be a number or inf or -inf, not nan.",
        ),
        (
            f"{RULE}.when.jitter=24",
            f"{RULE_PATH}.when: jitter (24) must be less than every (24).",
        ),
        (f"{RULE}.when.stop=8", f"{RULE_PATH}.when: stop (8) must be greater than start (8)."),
        (
            f"{RULE}.support={{}}",
            f"{RULE_PATH}.support: needs at least one limit; write `support: all` for no limit.",
        ),
        (
            f"{RULE}.vocabulary={{include: [special], exclude: [special]}}",
            f"{RULE_PATH}.vocabulary: every included class is excluded too: no token is left.",
        ),
        (
            "generate.samples={contrl: 2}",
            "job: generate.samples names the arm 'contrl', but schedules has only control, "
            "negative; did you mean 'control'?",
        ),
        *[
            (
                f"generate.structured={{{given}}}",
                "generate.structured: needs exactly one of the keys 'choice', 'regex', 'json', "
                "'grammar'.",
            )
            for given in ["", "regex: a, choice: [a]", "json: null"]
        ],
        ("generate.min_tokens=129", "generate: min_tokens (129) is above max_tokens (128)."),
        (
            "prompts.messages=chat",
            "prompts: text and messages exclude each other: a prompt has one shape.",
        ),
        (
            "verify.checks.0.max_tokens=3",
            "verify.checks[0]: max_tokens (3) is below min_tokens (16).",
        ),
        (
            "verify.checks.0={kind: regex, pattern: '('}",
            "verify.checks[0].pattern: '(' is no regular expression: missing ) at position 1.",
        ),
        (
            "verify.judge.scale=[5, 1]",
            "verify.judge: scale must rise, within 0 to 100; found [5, 1].",
        ),
        (
            "verify.judge.accept_at=9",
            "verify.judge: accept_at (9.0) lies outside the scale [1, 5].",
        ),
        (
            "verify.judge.criteria={fun: {}}",
            "verify.judge: criterion 'fun' needs a text; built in are coherence, relevance, "
            "helpfulness, correctness, creativity.",
        ),
        ("prompts={}", "prompts.source: missing; it has to be given."),
        (
            "verify.checks.0={kind: repetition}",
            "verify.checks[0].max_ratio: missing; it has to be given.",
        ),
    ],
)
def test_an_impossible_combination_says_what_is_possible(
    job_file: Path, override: str, message: str
) -> None:
    assert error_of(job_file, override) == message


def test_all_errors_of_a_job_are_named_at_once(job_file: Path) -> None:
    lines = error_of(job_file, "seed=x", "verson=1", f"{RULE}.defer=-1").split("\n  ")
    assert {line.split(":")[0] for line in lines} == {"seed", "verson", f"{RULE_PATH}.defer"}


def test_a_long_value_is_cut_in_the_message(job_file: Path) -> None:
    assert len(error_of(job_file, f"seed={'x' * 10_000}")) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": is empty; a job file is a mapping that starts with `version: 1`."),
        ("# nothing\n", ": is empty; a job file is a mapping that starts with `version: 1`."),
        ("- a\n", ": holds a list; a job file is a mapping that starts with `version: 1`."),
        ("a: 1\nb: [\n", ", line 3, column 1: not valid YAML: expected the node content"),
        ("a: 1\n\tb: 2\n", ", line 2, column 1: not valid YAML: found character"),
        ("a: 1\nb: 2\na: 3\n", ', line 3, column 1: not valid YAML: found duplicate key "a"'),
        ("a: 1\n---\nb: 2\n", ", line 2, column 1: not valid YAML: but found another document"),
        ("a: *b\n", ", line 1, column 4: not valid YAML: found undefined alias"),
        ("a: !!python/object:os.system b\n", ", line 1, column 4: not valid YAML: could not"),
        ("a: 2024-13-45\n", ": not valid YAML: month must be in 1..12."),
        ("a: \x07\n", ": not valid YAML: unacceptable character #x0007"),
        ("a: " + "[" * 1000, ": is nested too deeply."),
        ("a: &a [*a]\n", ": is nested too deeply, or an anchor holds itself."),
    ],
)
def test_a_file_that_is_no_mapping_of_yaml_says_where(
    job_file: Path, text: str, message: str
) -> None:
    job_file.write_text(text, encoding="utf-8")
    with pytest.raises(JobError) as caught:
        load_job(job_file)
    assert str(caught.value).startswith(f"{job_file}{message}")


def test_a_missing_file_points_to_init(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no such job file; `negtemp init` writes one"):
        load_job(tmp_path / "none.yaml")


def test_a_file_that_is_no_text_is_refused(job_file: Path) -> None:
    job_file.write_bytes(b"\xff\xfe\x00")
    assert error_of(job_file).startswith("can't be read: ")


@pytest.mark.parametrize(
    ("value", "temperature"),
    [
        ("inf", math.inf),
        ("-inf", -math.inf),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("1e-3", 0.001),
        ("-2", -2.0),
        ("0", 0.0),
    ],
)
def test_a_temperature_is_any_number_and_infinity(
    job_file: Path, value: str, temperature: float
) -> None:
    job = load_job(job_file, [f"{RULE}.temperature={value}"])
    assert job.schedules["negative"].inject[0].temperature == temperature
    job_file.write_text(write_job(job), encoding="utf-8")
    assert load_job(job_file) == job


def test_the_words_no_and_on_are_text(job_file: Path) -> None:
    job = load_job(job_file, ["name=no", "prompts.system=on"])
    assert (job.name, job.prompts.system) == ("no", "on")


def test_json_is_yaml(job_file: Path) -> None:
    job = load_job(job_file)
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    assert load_job(job_file) == job


def test_overrides_reach_lists_new_mappings_and_new_items() -> None:
    data: dict[str, Any] = {"a": {"list": [{"x": 1}]}, "none": None}
    apply_overrides(
        data,
        [
            "a.list.0.x=2",
            "a.list[1].y=[1, {z: null}]",
            "b.c.d=1e-3",
            "none.e=text",
            "f=a=b",
            "g=",
            "a.list.0.x=3",
        ],
    )
    assert data == {
        "a": {"list": [{"x": 3}, {"y": [1, {"z": None}]}]},
        "none": {"e": "text"},
        "b": {"c": {"d": 0.001}},
        "f": "a=b",
        "g": None,
    }


def test_an_override_reaches_names_with_dots() -> None:
    data: dict[str, Any] = {"judges": {"qwen2.5": {"model": "a"}, "qwen2": {"model": "b"}}}
    apply_overrides(data, ["judges.qwen2.5.model=c", "judges.qwen2.model=d", "judges.new.x=1"])
    assert data == {"judges": {"qwen2.5": {"model": "c"}, "qwen2": {"model": "d"}, "new": {"x": 1}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("generate.gpus_per_replica=1.5", "must be a share of one GPU, up to 1, or a whole number"),
        ("generate.structured={json: {type: 3}}", "is no JSON Schema that can be used"),
    ],
)
def test_what_ray_or_vllm_would_refuse_later_is_refused(
    job_file: Path, change: str, message: str
) -> None:
    with pytest.raises(JobError, match=message):
        load_job(job_file, [change])
    assert load_job(job_file, ["generate.gpus_per_replica=0.5"]).generate.gpus_per_replica == 0.5


def test_an_override_of_an_anchor_changes_its_own_place_alone() -> None:
    data = read_yaml("a: &a {x: {y: 1}, l: [{z: 1}]}\nb: *a\n", "text")
    apply_overrides(data, ["b.x.y=2", "b.l.0.z=2"])
    assert data == {"a": {"x": {"y": 1}, "l": [{"z": 1}]}, "b": {"x": {"y": 2}, "l": [{"z": 2}]}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set 'seed': write it as path=value"),
        ("=3", "--set '=3': write it as path=value"),
        ("[].=3", "--set '[].=3': write it as path=value"),
        ("seed.x=3", "--set 'seed.x=3': seed is int, so it has no item 'x'."),
        (
            f"{RULE[:-1]}5.temperature=1",
            "schedules.negative.inject is a list of 1, so it has no item '5'.",
        ),
        (f"{RULE[:-1]}first=1", "is a list of 1, so it has no item 'first'."),
        (f"{RULE[:-1]}²=1", "is a list of 1, so it has no item '²'."),
        (f"{RULE[:-1]}-1.defer=1", "is a list of 1, so it has no item '-1'."),
        ("prompts.source=[", "--set prompts.source, line 1, column 2: not valid YAML"),
        ("seed=!!int x", "--set seed: not valid YAML"),
    ],
)
def test_a_wrong_override_is_quoted(job_file: Path, override: str, message: str) -> None:
    assert message in error_of(job_file, override)


def test_a_resolved_job_is_read_back_unchanged_whatever_its_text(job_file: Path) -> None:
    texts = [
        "1e-3",
        "no",
        "null",
        "~",
        "0x10",
        "2024-01-01",
        "a: b # c",
        "é\n\tü",
        "",
        "'\"",
        "inf",
    ]
    data = load_job(job_file).model_dump()
    data["generate"]["chat_template_kwargs"] = {text: text for text in texts}
    data["generate"]["engine"] = {"list": [1, 0.5, True, None, {"a": []}]}
    data["generate"]["stop"] = ["\n\n", " "]
    data["generate"]["structured"] = {"json": {"enum": [*texts, None]}}
    data["prompts"]["system"] = "Two\nlines: yes.\n"
    data["schedules"]["1e3"] = {}
    job = Job.model_validate(data)
    text = write_job(job)
    job_file.write_text(text, encoding="utf-8")
    assert load_job(job_file) == job
    assert write_job(load_job(job_file)) == text


def test_defaults_are_those_of_the_documentation(job_file: Path) -> None:
    rule = load_job(job_file, [f"{RULE}={{when: {{rate: 0.1}}, temperature: -1}}"])
    inject = rule.schedules["negative"].inject[0]
    assert inject.support == SupportConfig(min_p=0.05)
    assert inject.vocabulary.exclude == ["special"]
    assert inject.guard == []
    assert inject.defer == 4
    assert inject.draw == "independent"
    assert rule.output.keep == "all"
    assert rule.samples_per_prompt == 4


@pytest.mark.parametrize(
    "override",
    ["generate.replicas=3", "generate.gpus_per_replica=2", "output.path=x", "prompts.source=y.txt"],
)
def test_what_can_not_change_a_row_leaves_the_fingerprint_alone(
    job_file: Path, override: str
) -> None:
    old = fingerprint_job(load_job(job_file), "prompts", "model")
    new = fingerprint_job(load_job(job_file, [override]), "prompts", "model")
    assert differences(old, new) == []
    assert old == new


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=8", "seed: 7 → 8"),
        ("generate.max_tokens=9", "generate.max_tokens: 128 → 9"),
        ("generate.samples.control=3", "generate.samples.control: 2 → 3"),
        ("generate.engine.dtype=float32", 'generate.engine.dtype: null → "float32"'),
        ("generate.structured={json: {type: object}}", 'generate.structured: null → {"choice": '),
        ("generate.lora=org/adapter", 'generate.lora: null → "org/adapter"'),
        (
            "schedules.control.base.temperature=-inf",
            'schedules.control.base.temperature: 0.8 → "-i',
        ),
        ("prompts.limit=5", "prompts.limit: null → 5"),
        (f"{RULE}.temperature=-inf", f'{RULE_PATH}.temperature: -1.0 → "-inf"'),
        (f"{RULE}.support=all", f'{RULE_PATH}.support: {{"min_p": 0.05, "top_p": null, '),
        ("verify.judge.accept_at=3", "verify.judge.accept_at: 2.5 → 3.0"),
        ("verify.checks=[]", "verify.checks: [{"),
        ("output.keep=accepted", 'output.keep: "all" → "accepted"'),
    ],
)
def test_what_can_change_a_row_is_named_with_both_values(
    job_file: Path, override: str, line: str
) -> None:
    old = fingerprint_job(load_job(job_file), "prompts", "model")
    new = fingerprint_job(load_job(job_file, [override]), "prompts", "model")
    (found,) = differences(old, new)
    assert found.startswith(line)
    assert old != new


def test_changed_prompts_and_models_are_named(job_file: Path) -> None:
    job = load_job(job_file)
    old = fingerprint_job(job, "p1", "m1", "a1")
    new = fingerprint_job(job, "p2", "m2", "a2")
    assert differences(old, new) == [
        "prompts.source: the prompts themselves have changed",
        "generate.model: its files have changed (m1 → m2)",
        "generate.lora: its files have changed (a1 → a2)",
    ]
    assert old != new != fingerprint_job(job, "p1", "m1") != old


def test_infinity_is_spelled_inf_in_the_fingerprint_and_in_the_resolved_job(
    job_file: Path,
) -> None:
    base = "{anneal: {from: inf, to: -.inf, over: 9}}"
    job = load_job(job_file, [f"schedules.control.base={base}", f"{RULE}.temperature=.inf"])
    data = fingerprint_job(job, "p", "m").job["schedules"]
    json.dumps(data, allow_nan=False)
    assert data["control"]["base"]["anneal"]["from"] == "inf"
    assert data["control"]["base"]["anneal"]["to"] == "-inf"
    assert data["negative"]["inject"][0]["temperature"] == "inf"
    job_file.write_text(write_job(job), encoding="utf-8")
    assert load_job(job_file) == job


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("jobs/**/*.yaml")), ids=lambda p: p.name)
def test_every_job_file_loads_and_names_its_schema(path: Path) -> None:
    load_job(path)
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first_line.partition("=")[2]).is_file()


def test_the_checked_in_schema_is_fresh_and_another_is_not(tmp_path: Path) -> None:
    assert is_fresh(REPOSITORY / "schemas" / "job.schema.json")
    stale = tmp_path / "stale.json"
    assert not is_fresh(stale)
    stale.write_text(job_schema().replace("seed", "sead"), encoding="utf-8")
    assert not is_fresh(stale)
