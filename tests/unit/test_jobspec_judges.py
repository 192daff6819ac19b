"""Judges in the job file: what is accepted, and what is refused with its reason."""

from typing import Any

import pytest

from negtemp_data.errors import JobError
from negtemp_data.jobspec import (
    CombinedJudgeConfig,
    Job,
    RubricJudgeConfig,
    build_job,
    load_job,
    needs_twin,
    single_judges,
    write_job,
)
from negtemp_data.jobspec.fingerprint import Fingerprint, fingerprint_job

RUBRIC = {"criteria": {"coherence": {}}, "accept_at": 3}
TEXT = {"kind": "likelihood", "model": "org/other", "accept_at": -3}


def make_job(judge: Any, **samples: int) -> Job:
    data = {
        "version": 1,
        "name": "judged",
        "prompts": {"source": "prompts.jsonl"},
        "generate": {"model": "org/model", "samples": samples or {"control": 1, "negative": 1}},
        "schedules": {
            "control": {},
            "negative": {"inject": [{"when": {"every": 8}, "temperature": -1}]},
        },
        "verify": {"judge": judge},
        "output": {"path": "out"},
    }
    return build_job(data, "job.yaml")


ACCEPTED = [
    RUBRIC,
    RUBRIC | {"model": "org/judge", "replicas": 2, "engine": {"max_model_len": 512}},
    RUBRIC | {"rationale_tokens": 64, "examples": [{"request": "q", "answer": "a", "rating": 5}]},
    TEXT,
    TEXT | {"measure": "twin"},
    TEXT | {"measure": "request", "model": "same"},
    TEXT | {"measure": "end", "model": "org/model"},
    {"kind": "pairwise"},
    {"kind": "reward", "model": "org/reward", "accept_at": 0},
    {"kind": "python", "function": "my.module:score", "accept_at": 0.5},
    RUBRIC | {"kind": "endpoint", "url": "http://localhost:8000/v1", "model": "m"},
    {"combine": "any", "judges": {"a": RUBRIC, "b": {"kind": "pairwise"}}},
    {"combine": "mean", "judges": {"a": RUBRIC, "b": TEXT}, "accept_at": 1, "weights": {"a": 2}},
]


@pytest.mark.parametrize("judge", ACCEPTED, ids=lambda judge: judge.get("kind", "rubric"))
def test_a_job_with_this_judge_reads_back_as_it_was(judge: dict[str, Any], tmp_path: Any) -> None:
    job = make_job(judge)
    path = tmp_path / "job.yaml"
    path.write_text(write_job(job))
    assert load_job(path) == job


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"kind": "rubik"}, "`kind` must be one of rubric, likelihood, pairwise"),
        (RUBRIC | {"accept_at": 9}, "lies outside the scale"),
        (RUBRIC | {"engine": {"dtype": "float32"}}, "engine is of no effect with model: same"),
        (RUBRIC | {"replicas": 2}, "replicas is of no effect with model: same"),
        (RUBRIC | {"examples": [{"request": "q", "answer": "a", "rating": 6}]}, "rating"),
        (RUBRIC | {"criteria": {"wit": {}}}, "'wit' needs a text"),
        (TEXT | {"model": "same"}, "only shows that an injection happened"),
        (TEXT | {"model": "org/model"}, "only shows that an injection happened"),
        ({"kind": "reward", "accept_at": 0}, "needs a model of its own"),
        ({"kind": "python", "function": "no colon", "accept_at": 0}, "function"),
        (RUBRIC | {"kind": "endpoint", "url": "ftp://x", "model": "m"}, "url"),
        ({"combine": "all", "judges": {"a": RUBRIC}}, "judges"),
        ({"combine": "mean", "judges": {"a": RUBRIC, "b": TEXT}}, "mean needs accept_at"),
        ({"combine": "all", "judges": {"a": RUBRIC, "b": TEXT}, "accept_at": 1}, "accept_at"),
        (
            {"combine": "all", "judges": {"a": RUBRIC, "b": TEXT}, "weights": {"c": 1}},
            "no judge has this name; there are a, b",
        ),
        (
            {"combine": "all", "judges": {"a": RUBRIC, "b": TEXT | {"model": "same"}}},
            "judges.b",
        ),
    ],
)
def test_what_can_not_work_is_refused(judge: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        make_job(judge)
    assert message in str(caught.value)
    assert "verify.judge" in str(caught.value)


@pytest.mark.parametrize("kind", ["rubric", "pairwise"])
def test_labels_are_not_asked_of_an_engine_that_drafts(kind: str) -> None:
    judge = RUBRIC if kind == "rubric" else {"kind": "pairwise"}
    drafts = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}
    with pytest.raises(JobError, match="does not give on an engine with a speculative_config"):
        make_job(judge | {"model": "org/other", "engine": drafts})


def test_a_judge_of_twins_needs_a_control_for_each_sample() -> None:
    with pytest.raises(JobError, match="no arm without injections"):
        make_job({"kind": "pairwise"}, negative=2)
    with pytest.raises(JobError, match="'control' needs as many samples as the largest arm, 3"):
        make_job({"kind": "pairwise"}, control=2, negative=3)
    assert make_job({"kind": "pairwise"}, negative=2, control=2).control_arm == "control"


def test_a_judge_without_a_kind_is_a_rubric() -> None:
    assert isinstance(make_job(RUBRIC).verify.judge, RubricJudgeConfig)


def test_single_judges_have_their_paths() -> None:
    combined = make_job({"combine": "any", "judges": {"a": RUBRIC, "b": {"kind": "pairwise"}}})
    assert isinstance(combined.verify.judge, CombinedJudgeConfig)
    found = dict(single_judges(combined.verify.judge))
    assert list(found) == ["verify.judge.judges.a", "verify.judge.judges.b"]
    assert [needs_twin(judge) for judge in found.values()] == [False, True]
    assert [path for path, _ in single_judges(make_job(RUBRIC).verify.judge)] == ["verify.judge"]
    assert not list(single_judges(None))


def test_where_a_judge_runs_is_not_in_the_fingerprint() -> None:
    def fingerprint(judge: dict[str, Any]) -> Fingerprint:
        return fingerprint_job(make_job(judge), "prompts", "model")

    other = RUBRIC | {"model": "org/judge"}
    assert fingerprint(other) == fingerprint(other | {"replicas": 3, "gpus_per_replica": 2})
    assert fingerprint(other) != fingerprint(RUBRIC)
    assert fingerprint(RUBRIC) != fingerprint(RUBRIC | {"accept_at": 4})
    both = {"combine": "any", "judges": {"a": other, "b": TEXT}}
    wide = {"combine": "any", "judges": {"a": other | {"replicas": 3}, "b": TEXT}}
    assert fingerprint(both) == fingerprint(wide)
