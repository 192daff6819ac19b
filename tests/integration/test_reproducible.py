"""A float32 run is confirmed from outside, token by token, and repeats itself exactly."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch

from negtemp_data.jobspec import load_job
from negtemp_data.prompts import row_seed
from negtemp_data.sampling import Siblings, fires
from reference_sampler import ReferenceRow
from reference_supports import ReferenceTokens

JOB = """
version: 1
name: replay
seed: 11
prompts: {{source: {prompts}, id: id}}
generate:
  model: {model}
  max_tokens: 36
  samples: {{control: 2, negative: 3, reading: 2, distinct: 3}}
  engine: {{dtype: float32, max_model_len: 512}}
schedules:
  control: {{base: {{temperature: 0.8}}}}
  negative:
    base: {{temperature: 0.8}}
    inject:
      - when: {{every: 12, start: 4, jitter: 5}}
        temperature: -0.5
        support: {{min_p: 0.02}}
      - when: {{rate: 0.05, cooldown: 2, burst: 2}}
        temperature: -inf
        support: {{top_p: 0.9, top_k: 30, epsilon: 0.001}}
        defer: 2
  reading:
    base: {{temperature: 0.8}}
    inject:
      - when: {{after: sentence}}
        temperature: inf
        support: {{top_k: 8}}
        vocabulary: {{include: [word_start]}}
      - when: {{entropy: {{above: 2.5}}, cooldown: 4, max: 5}}
        temperature: -1.0
        support: {{min_p: 0.05}}
        guard: [digits]
      - when: {{after: ", "}}
        temperature: -1.0
        support: {{top_n_sigma: 1.0}}
  distinct:
    base: {{track: [{{until: 6, temperature: 3.0, support: {{min_p: 0.1}}}}, {{temperature: 0.7}}]}}
    inject:
      - when: {{at: [0], burst: 2}}
        temperature: inf
        support: {{min_p: 0.01}}
        draw: distinct
output: {{path: {out}, shard_rows: 10}}
"""

TIE = 1e-3
"""A candidate this close to a limit, relative, counts as a tie."""


@pytest.fixture(scope="module")
def runs(negtemp, smol_model, tmp_path_factory):
    """Rows by id of a job, and those of its last prompt in batches of another size."""
    folder = tmp_path_factory.mktemp("replay")
    texts = ["Why does it rain?", "Tell me about foxes.", "Plan a picnic.", "What is a comet?"]
    lines = [json.dumps({"id": f"p{i}", "prompt": t}) + "\n" for i, t in enumerate(texts)]
    rows = []
    for name, first, extra in (("a", 0, []), ("b", 3, ["--set", "generate.engine.max_num_seqs=3"])):
        out = folder / name
        prompts = folder / f"{name}.jsonl"
        prompts.write_text("".join(lines[first:]))
        job = folder / f"{name}.yaml"
        job.write_text(JOB.format(prompts=prompts, model=smol_model, out=out))
        done = negtemp("run", str(job), *extra)
        assert done.returncode == 0, done.stderr
        rows.append({row["id"]: row for row in load(out)})
    return load_job(folder / "a.yaml"), *rows


def load(out):
    import datasets

    return datasets.load_from_disk(str(out))


def test_the_same_job_gives_the_same_tokens_and_injections_at_any_batch_size(runs):
    _, first, second = runs
    assert len(first) == 40 and len(second) == 10
    for row_id, other in second.items():
        row = first[row_id]
        assert row["token_ids"] == other["token_ids"], row_id
        discrete = ("position", "token_id", "displaced_id", "support_size", "rank", "rule")
        assert [[i[k] for k in discrete] for i in row["injections"]] == [
            [i[k] for k in discrete] for i in other["injections"]
        ]


def test_twins_are_equal_up_to_the_first_injection(runs):
    _, rows, _ = runs
    n_compared = 0
    for row in rows.values():
        twin = rows.get(f"{row['prompt_id']}/control/{row['sample']}")
        if row["arm"] == "negative" and twin is not None and row["injections"]:
            first = row["injections"][0]["position"]
            assert row["token_ids"][:first] == twin["token_ids"][:first]
            n_compared += 1
    assert n_compared >= 6


@pytest.fixture(scope="module")
def replayed(smol_model):
    """Gives (row, logits before each of its tokens) of an independent forward pass."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smol_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smol_model)

    # Engines of other tests have left this thread one; theirs need none any more.
    torch._C.set_num_threads(len(os.sched_getaffinity(0)))
    logits_of = {}

    def replay(rows):
        for row in rows:
            if row["id"] not in logits_of:
                chat = [{"role": "user", "content": row["prompt"]}]
                prompt = tokenizer.apply_chat_template(
                    chat, add_generation_prompt=True, return_dict=False
                )
                with torch.no_grad():
                    logits = model(torch.tensor([prompt + row["token_ids"]])).logits[0]
                logits_of[row["id"]] = logits[len(prompt) - 1 : -1].numpy().copy()
            yield row, logits_of[row["id"]]

    return replay


def test_every_record_is_confirmed_by_an_independent_forward_pass(runs, replayed):
    _, rows, _ = runs
    n_injections = n_ties = 0
    seen = set()
    for row, logits in replayed(row for row in rows.values() if row["injections"]):
        for injection in row["injections"]:
            assert row["token_ids"][injection["position"]] == injection["token_id"]
            confirm(logits[injection["position"]], injection)
            if row["arm"] == "negative":
                n_injections += 1
                n_ties += is_tie(logits[injection["position"]], injection)
            seen.add((row["arm"], injection["rule"]))
    assert n_injections >= 40
    assert n_ties <= max(1, 0.001 * n_injections)
    assert {rule for arm, rule in seen if arm == "negative"} == {0, 1}


def test_the_injections_are_those_of_the_reference_on_independent_logits(
    runs, replayed, smol_model
):
    """All positions and all tokens, from the schedule and the stored tokens alone."""
    from transformers import AutoTokenizer

    from negtemp_data.engine.compile import compile_schedule
    from negtemp_data.engine.token_classes import token_table
    from negtemp_data.prompts import group_seed

    job, rows, _ = runs
    table = token_table(AutoTokenizer.from_pretrained(smol_model), smol_model)
    width = len(table.texts)
    classes = {
        name: frozenset(table.members(name, width).nonzero().squeeze(1).tolist())
        for name in ("word_start", "digits")
    }
    tokens = ReferenceTokens(tuple(table.texts), table.special_ids, classes, table.eos_ids)
    n_injections = n_ties = 0
    first = [row for row in rows.values() if row["sample"] == 0 and row["arm"] != "control"]
    for row, logits in replayed(first):
        # The base has no part in it: an injection is drawn from the logits as they came.
        schedule = dataclasses.replace(compile_schedule(job.schedules[row["arm"]]), base=())
        expected = ReferenceRow(
            schedule,
            row["seed"],
            tokens,
            Siblings(group_seed(job.seed, row["prompt_id"]), row["sample"]),
        )
        recorded = {injection["position"]: injection for injection in row["injections"]}
        for position, z in enumerate(logits.tolist()):
            outcome = expected.step(position, z, row["token_ids"][:position]).injection
            ours = recorded.get(position)
            n_injections += ours is not None
            if (outcome and outcome.best.token_id) != (ours and ours["token_id"]):
                # Two float32 passes differ in their last bits; from here on the states may differ.
                n_ties += 1
                break
    assert n_injections >= 30
    assert n_ties <= max(1, 0.001 * n_injections)


def test_distinct_siblings_begin_with_different_tokens(runs):
    _, rows, _ = runs
    for prompt in {row["prompt_id"] for row in rows.values()}:
        siblings = [rows[f"{prompt}/distinct/{sample}"] for sample in range(3)]
        size = siblings[0]["injections"][0]["support_size"]
        assert len({row["token_ids"][0] for row in siblings}) == min(3, size)


def confirm(z, injection):
    """Asserts that a record is true of logits `z`."""
    z = z.astype(np.float64)
    log_p = z - np.logaddexp.reduce(z)
    p = np.exp(log_p)
    token = injection["token_id"]
    assert injection["displaced_id"] == int(p.argmax())
    assert injection["logprob"] == pytest.approx(log_p[token], abs=2e-3)
    assert injection["entropy"] == pytest.approx(-(p * log_p).sum(), abs=5e-3)
    near = p[token] * (1 - TIE), p[token] * (1 + TIE)
    assert (p >= near[1]).sum() < injection["rank"] <= (p >= near[0]).sum() + 1


def is_tie(z, injection):
    """Asserts that an injection of the arm `negative` was inside its support; True for a tie."""
    z = z.astype(np.float64)
    p = np.exp(z - np.logaddexp.reduce(z))
    token = injection["token_id"]
    if injection["rule"] == 0:
        limit = 0.02 * p.max()
    else:
        ordered = np.sort(p)[::-1]
        completes = ordered[np.searchsorted(ordered.cumsum(), 0.9)]
        limit = max(completes, ordered[29], 0.001)
    ratio = p[token] / limit
    assert ratio >= 1 - TIE, f"{injection} is outside its support: {ratio}"
    expected = -math.inf if injection["rule"] else -0.5
    assert injection["temperature"] == pytest.approx(expected)
    return abs(ratio - 1) < TIE and not math.isclose(ratio, 1, rel_tol=1e-6)


def test_every_injection_is_where_the_plan_says_or_within_its_wait(runs):
    from negtemp_data.engine.compile import compile_schedule

    job, rows, _ = runs
    rules = compile_schedule(job.schedules["negative"]).rules
    positions = np.arange(job.generate.max_tokens)
    for row in rows.values():
        seed = row_seed(job.seed, row["prompt_id"], row["sample"])
        assert row["seed"] == seed
        if row["arm"] != "negative":
            continue
        for injection in row["injections"]:
            rule = rules[injection["rule"]]
            fired = positions[fires(seed, rule, injection["rule"], positions)]
            waits = injection["position"] - fired
            assert ((waits >= 0) & (waits <= rule.longest_wait)).any(), (row["id"], injection)
