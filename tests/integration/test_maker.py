"""Rows of a shard on a real engine: attempts, siblings and twins."""

import asyncio
import os
import threading

import numpy as np
import pytest

from negtemp_data.engine.questions import question_params
from negtemp_data.engine.tokens import PromptEncoder
from negtemp_data.errors import JudgeError
from negtemp_data.jobspec import build_job
from negtemp_data.judging import Judgement, Sample, functions
from negtemp_data.judging.pairwise import PairwiseJudge
from negtemp_data.pipeline.judges import LocalEngine, job_judge
from negtemp_data.pipeline.maker import GENERATION_COLUMNS, Earlier, ShardMaker
from negtemp_data.prompts import row_seed
from negtemp_data.prompts.records import Prompt
from negtemp_data.storage import ATTEMPT_COLUMNS, STATUSES, rows_to_table

SEED = 5
PROMPTS = [
    Prompt(f"p{i}", f"Tell me about the number {i}.", messages=None, source=None, error=None)
    for i in range(6)
]


def make_job(samples=None, **verify):
    return build_job(
        {
            "version": 1,
            "name": "maker",
            "seed": SEED,
            "prompts": {"source": "unused.jsonl"},
            "generate": {
                "model": "unused",
                "max_tokens": 12,
                "samples": samples or {"negative": 2, "control": 2},
            },
            "schedules": {
                "control": {"base": {"temperature": 0.8}},
                "greedy": {"base": {"temperature": 0}},
                "negative": {
                    "base": {"temperature": 0.8},
                    "inject": [{"when": {"every": 4}, "temperature": -1.0}],
                },
            },
            "verify": verify,
            "output": {"path": "unused"},
        },
        "job",
    )


class Listener:
    """Keeps the ids of rows in the order in which they are told of."""

    def __init__(self):
        self.generated, self.done = [], []

    def on_generated(self, row):
        assert row["completion"] is not None and "status" not in row
        self.generated.append(row["id"])

    def on_done(self, row):
        assert row["status"] in STATUSES
        self.done.append(row["id"])


def make_rows(engine, job, judge=None, made=None):
    """Rows by id; all of them were told of once, and fit the schema."""
    listener = Listener()
    earlier = Earlier(generated=made or {})
    rows = ShardMaker(job, engine, judge).make(PROMPTS, listener, earlier)
    assert sorted(listener.done) == sorted(row["id"] for row in rows)
    arms = job.generate.samples
    assert [row["id"] for row in rows] == [
        f"{prompt.id}/{arm}/{i}" for prompt in PROMPTS for arm in arms for i in range(arms[arm])
    ]
    assert rows_to_table(rows).num_rows == len(rows)
    return {row["id"]: row for row in rows}


def test_a_rejected_sample_is_generated_again_with_the_seed_of_the_next_attempt(tiny_engine):
    never = [{"kind": "length", "min_tokens": 99}]
    rows = make_rows(tiny_engine, make_job(checks=never, attempts=3))
    once = make_rows(tiny_engine, make_job(checks=never))
    for row_id, row in rows.items():
        made = [*row["attempts"], row]
        assert [each["attempt"] for each in made] == [0, 1, 2]
        assert [each["seed"] for each in made] == [
            row_seed(SEED, row["prompt_id"], row["sample"], attempt) for attempt in range(3)
        ]
        assert all(each["status"] == "rejected" for each in made)
        assert len({tuple(each["token_ids"]) for each in made}) == 3
        assert all(each.keys() == set(ATTEMPT_COLUMNS) for each in row["attempts"])
        # The first attempt is what a job without a second one makes.
        assert row["attempts"][0]["token_ids"] == once[row_id]["token_ids"]
        assert once[row_id]["attempts"] == []


def test_an_accepted_sample_is_not_generated_again(tiny_engine):
    # About half of the first attempts pass.
    sometimes = [{"kind": "regex", "pattern": "[a-m]$"}]
    job = make_job(checks=sometimes, attempts=8)
    rows = make_rows(tiny_engine, job)
    once = make_rows(tiny_engine, make_job(checks=sometimes))
    at_once = [row_id for row_id, row in once.items() if row["status"] == "accepted"]
    assert 0 < len(at_once) < len(rows)
    for row_id, row in rows.items():
        assert (not row["attempts"]) == (row_id in at_once)
        assert len(row["attempts"]) == row["attempt"]
        assert all(attempt["status"] == "rejected" for attempt in row["attempts"])
    assert sum(row["status"] == "accepted" for row in rows.values()) > len(at_once)


def test_a_failed_row_is_not_tried_again(tiny_engine):
    class BrokenJudge:
        async def judge(self, sample):
            raise JudgeError("nothing to say")

    rows = make_rows(tiny_engine, make_job(attempts=3), BrokenJudge())
    for row in rows.values():
        assert (row["status"], row["error"], row["attempts"]) == ("failed", "nothing to say", [])
        assert row["completion"] is not None


never = threading.Event()


def wait_for_ever(sample):
    if "number 3" in sample.request:
        never.wait()
    return 1


def test_a_function_that_never_returns_fails_its_rows_alone(tiny_engine, monkeypatch):
    monkeypatch.setattr(functions, "LIMIT_S", 2.0)
    judge = {"kind": "python", "function": "test_maker:wait_for_ever", "accept_at": 0}
    job = make_job(judge=judge)
    rows = make_rows(tiny_engine, job, job_judge(job, tiny_engine, {}))
    for row in rows.values():
        is_stuck = row["prompt_id"] == "p3"
        assert row["status"] == ("failed" if is_stuck else "accepted")
        reason = "test_maker:wait_for_ever: took longer than 2 s"
        assert row["error"] == (reason if is_stuck else None)
        assert row["completion"] is not None
    never.set()


class IdleEngine:
    """Knows all that an engine knows, and refuses to generate."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def submit(self, *arguments, **options):
        raise AssertionError("generated again")


def test_rows_from_before_are_judged_anew_and_not_generated_again(tiny_engine):
    never = [{"kind": "length", "min_tokens": 99}]
    old = make_rows(tiny_engine, make_job(checks=never, attempts=2))
    # As they come out of a shard.
    made = {row["id"]: row for row in rows_to_table(old.values()).to_pylist()}
    rows = make_rows(IdleEngine(tiny_engine), make_job(), RecordingJudge(), made)
    for row_id, row in rows.items():
        assert (row["status"], row["score"], row["checks"]) == ("accepted", 1.0, [])
        assert row["attempts"] == made[row_id]["attempts"] and row["attempt"] == 1
        for column in (*GENERATION_COLUMNS, "seed", "prompt_tokens"):
            assert row[column] == made[row_id][column], column


def test_attempts_go_on_where_the_old_ones_ended(tiny_engine):
    never = [{"kind": "length", "min_tokens": 99}]
    old = make_rows(tiny_engine, make_job(checks=never, attempts=2))
    made = {row["id"]: row for row in rows_to_table(old.values()).to_pylist()}
    more = make_job(checks=never, attempts=4)
    rows, expected = make_rows(tiny_engine, more, made=made), make_rows(tiny_engine, more)
    for row_id, row in rows.items():
        assert [each["token_ids"] for each in [*row["attempts"], row]] == [
            each["token_ids"] for each in [*expected[row_id]["attempts"], expected[row_id]]
        ]


class RecordingJudge:
    """Accepts everything, and keeps what it has seen."""

    def __init__(self):
        self.samples: list[Sample] = []

    async def judge(self, sample):
        self.samples.append(sample)
        return Judgement((), 1.0, accepted=True)


def test_a_sample_is_compared_with_the_control_of_its_prompt_and_index(tiny_engine):
    # The judge's kind makes the maker look for twins, whatever judge it is then given.
    job = make_job(judge={"kind": "pairwise"})
    judge = RecordingJudge()
    rows = make_rows(tiny_engine, job, judge)
    twins = {(sample.request, sample.completion): sample.twin for sample in judge.samples}
    for row in rows.values():
        control = rows[f"{row['prompt_id']}/control/{row['sample']}"]
        expected = None if row is control else control["completion"]
        assert twins[row["prompt"], row["completion"]] == expected


def test_the_pairwise_judge_asks_in_both_orders_and_leaves_controls_alone(tiny_engine):
    job = make_job(judge={"kind": "pairwise"})
    rows = make_rows(tiny_engine, job, job_judge(job, tiny_engine, {}))
    for row in rows.values():
        if row["arm"] == "control":
            assert (row["status"], row["score"], row["scores"]) == ("accepted", None, [])
            continue
        first, second, agreement = (score["score"] for score in row["scores"])
        assert row["score"] == pytest.approx((first + second) / 2)
        assert row["status"] == ("accepted" if row["score"] >= 0.5 else "rejected")
        assert agreement == ((first > 0.5) == (second > 0.5))


def test_a_pair_of_equal_texts_is_a_draw(tiny_engine):
    asked = LocalEngine(tiny_engine)
    encoder = PromptEncoder(asked.tokenizer, asked.max_model_len - 1)
    judge = PairwiseJudge(make_job(judge={"kind": "pairwise"}).verify.judge, asked, encoder)
    same = Sample("Why?", "Because.", [1], np.zeros(1, np.float32), [], twin="Because.")
    assert asyncio.run(judge.judge(same)).score == pytest.approx(0.5)


def test_siblings_that_repeat_an_accepted_one_are_rejected(tiny_engine):
    job = make_job({"greedy": 3, "control": 1}, checks=[{"kind": "near_duplicate"}])
    rows = make_rows(tiny_engine, job)
    for prompt in PROMPTS:
        statuses = [rows[f"{prompt.id}/greedy/{i}"]["status"] for i in range(3)]
        assert statuses == ["accepted", "rejected", "rejected"]


def test_the_rubric_judge_writes_its_reasons_first_where_it_is_asked_to(tiny_engine):
    rubric = {"criteria": {"coherence": {}, "relevance": {}}, "accept_at": 3, "rationale_tokens": 9}
    job = make_job({"control": 1}, judge=rubric)
    for row in make_rows(tiny_engine, job, job_judge(job, tiny_engine, {})).values():
        first, second = row["rationale"].split("\n\nrelevance: ")
        assert first.startswith("coherence: ") and second
        assert all(1 <= score["score"] <= 5 and 0 < score["mass"] < 1 for score in row["scores"])


def test_whoever_no_longer_waits_does_no_harm_to_the_engine(tiny_engine):
    ids = tiny_engine.tokenizer.encode("The sun rises in the east.")
    left, kept = (tiny_engine.submit(ids, question_params("likelihood")) for _ in range(2))
    left.cancel()  # as the end of an event loop does to all that it waits for
    assert len(kept.result().prompt_logprobs) == len(ids)


def test_the_likelihood_of_a_prompt_is_that_of_its_tokens(tiny_engine, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    ids = tiny_engine.tokenizer.encode("The sun rises in the east, and sets in the west.")
    answer = tiny_engine.submit(ids, question_params("likelihood")).result()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)
    expected = logprobs.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)
    assert np.isnan(answer.prompt_logprobs[0])
    assert answer.prompt_logprobs[1:] == pytest.approx(expected.numpy(), abs=1e-3)


def test_the_engines_thread_gets_its_cores_back_from_a_library(tiny_engine, monkeypatch):
    import torch

    seen, step = [], tiny_engine._step

    def spy():
        seen.append(torch.get_num_threads())
        outputs = step()
        torch._C.set_num_threads(1)  # as the first parallel loop of vLLM's AMX kernels does
        return outputs

    monkeypatch.setattr(tiny_engine, "_step", spy)
    job = make_job(samples={"control": 1})
    rows = ShardMaker(job, tiny_engine, None).make(PROMPTS, Listener(), Earlier({}, {}))
    assert len(rows) == len(PROMPTS)
    assert len(seen) > 3
    assert set(seen) == {len(os.sched_getaffinity(0))}
