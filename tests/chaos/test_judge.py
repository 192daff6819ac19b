"""A judge with an engine of its own: both engines work at a time, and its death costs no row."""

import json
import os
import random
import re
import shutil
import signal
import time
from contextlib import suppress

import pytest
from runs import Command, digests, wait_until

JOB = """
version: 1
name: judged
seed: 3
prompts: {{source: {prompts}, id: id}}
generate:
  model: {model}
  max_tokens: 60
  min_tokens: 60
  samples: {{control: 2, negative: 2}}
  engine: {{dtype: float32, max_model_len: 1024, max_num_seqs: 16}}
schedules:
  control: {{base: {{temperature: 0.8}}}}
  negative:
    inject: [{{when: {{every: 8}}, temperature: -1.0}}]
verify:
  judge:
    combine: any
    judges:
      rating:
        model: {judge}
        engine: {engine}
        criteria: {{coherence: {{}}, relevance: {{}}}}
        accept_at: 3
      better: {{kind: pairwise, model: {judge}, engine: {engine}}}
      reads: {{kind: likelihood, measure: twin, model: {judge}, engine: {engine}, accept_at: 0}}
output: {{path: {out}, shard_rows: 8}}
"""

N_PROMPTS = 24
N_KILLS = 3  # a row may see so many deaths
# The same for all three judges, who therefore share one engine.
ENGINE = "{dtype: float32, max_model_len: 1024, max_num_seqs: 8}"


@pytest.fixture
def other_model(tiny_model, tmp_path):
    """The tiny model with other weights."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "other"
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.lm_head.weight, std=2.5 / 64**0.5)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def job(tiny_model, other_model, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = ({"id": f"p{i}", "prompt": f"Tell me about the number {i}."} for i in range(N_PROMPTS))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "job.yaml"
    path.write_text(
        JOB.format(
            prompts=prompts,
            model=tiny_model,
            judge=other_model,
            engine=ENGINE,
            out=tmp_path / "out",
        )
    )
    return path


def judge_pids(out):
    """Processes that were replicas of the judge, from the names of their logs."""
    names = (path.name for path in (out / "_run" / "logs").glob("judge-*.log"))
    return [int(re.search(r"-(\d+)\.log$", name)[1]) for name in names]


@pytest.mark.slow
def test_a_judge_killed_at_random_moments_costs_no_row(job, negtemp, tmp_path):
    import datasets

    rng = random.Random(1)
    out = tmp_path / "out"
    process = Command("run", job)
    for n_kills in range(1, N_KILLS + 1):
        # A replica is named by its log a moment before its engine starts.
        wait_until(lambda n=n_kills: digests(out) and len(judge_pids(out)) == n, process)
        time.sleep(rng.uniform(0, 3))
        for pid in judge_pids(out):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    stderr = process.end(300)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr
    assert len(judge_pids(out)) == N_KILLS + 1, "a replica was not replaced"
    rows = datasets.load_from_disk(str(out))
    assert len(set(rows["id"])) == len(rows) == N_PROMPTS * 4
    assert "failed" not in rows["status"]
    for arm, scores in zip(rows["arm"], rows["scores"], strict=True):
        parts = {score["criterion"]: score["score"] for score in scores}
        ratings = {"rating/coherence", "rating/relevance"}
        of_twins = {f"better/{p}" for p in ("placed first", "placed second", "agreement")}
        of_twins.add("reads/twin")
        assert parts.keys() == (ratings if arm == "control" else ratings | of_twins)
        assert all(1 <= parts[rating] <= 5 for rating in ratings)
    assert negtemp("check", str(out)).returncode == 0
