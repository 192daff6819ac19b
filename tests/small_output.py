"""Outputs of a run, built by hand: real shards and ledger, rows as a test wants them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from negtemp_data.jobspec import Job, build_job, write_job
from negtemp_data.jobspec.fingerprint import Fingerprint
from negtemp_data.prompts.plan import PLAN_FILE, Plan
from negtemp_data.storage import (
    Output,
    build_shard,
    commit_shard,
    describe_shard,
    shard_name,
    write_entry,
)

CHAT_ROW = {
    "sample": 0,
    "seed": 1,
    "messages": None,
    "source": None,
    "logprobs": [],
    "ranks": [],
    "deferred": 0,
    "finish_reason": "stop",
    "scores": [],
    "checks": [],
    "rationale": None,
    "error": None,
    "attempt": 0,
    "attempts": [],
}


def make_job(model: str = "smollm2-135m-instruct", **sections: Any) -> Job:
    """A job with a control arm and one with injections."""
    data: dict[str, Any] = {
        "version": 1,
        "name": "small",
        "prompts": {"source": "prompts.jsonl"},
        "generate": {"model": model, "max_tokens": 64, "samples": {"control": 2, "negative": 2}},
        "schedules": {
            "control": {"base": {"temperature": 0.8}},
            "negative": {
                "inject": [{"when": {"every": 4}, "temperature": -1.0, "support": {"min_p": 0.1}}]
            },
        },
        "output": {"path": "out"},
    }
    for name, fields in sections.items():
        data[name] = data.get(name, {}) | fields
    return build_job(data, "job")


def make_sample(
    prompt_id: str,
    arm: str = "control",
    sample: int = 0,
    *,
    status: str = "accepted",
    score: float | None = 3.0,
    positions: Iterable[int] = (),
    token_ids: Iterable[int] = (11, 12, 13, 14),
    **fields: Any,
) -> dict[str, Any]:
    """A row; `positions` are those of its injected tokens."""
    ids = list(token_ids)
    row = CHAT_ROW | {
        "id": f"{prompt_id}/{arm}/{sample}",
        "prompt_id": prompt_id,
        "arm": arm,
        "sample": sample,
        "prompt": f"Tell me of {prompt_id}.",
        "completion": f"{prompt_id} {arm} {sample} is wide.",
        "token_ids": ids,
        "injections": [make_injection(position, ids[position]) for position in positions],
        "prompt_tokens": 3,
        "completion_tokens": len(ids),
        "status": status,
        "score": score,
    }
    return row | fields


def make_injection(position: int, token_id: int) -> dict[str, Any]:
    """The record of an injected token."""
    return {
        "position": position,
        "token_id": token_id,
        "displaced_id": 7,
        "temperature": -1.0,
        "support_size": 5,
        "logprob": -2.5,
        "rank": 4,
        "entropy": 1.5,
        "rule": 0,
    }


def make_siblings(n_prompts: int) -> list[dict[str, Any]]:
    """Of each prompt an accepted row of the control arm, and a rejected one of the other."""
    return [
        make_sample(f"p{number}", arm, status=status, score=score)
        for number in range(n_prompts)
        for arm, status, score in (("control", "accepted", 3.0), ("negative", "rejected", 2.0))
    ]


def write_output(
    folder: Path | str,
    shards: Iterable[list[Mapping[str, Any]]],
    job: Job | None = None,
    n_planned: int | None = None,
) -> Output:
    """Commits `shards`, as a run of `job` does; `n_planned` shards make up its plan."""
    output = Output(folder)
    output.create()
    job = job or make_job()
    output.write_job(write_job(job))
    output.write_fingerprint(
        Fingerprint({"output": {"keep": job.output.keep}}, "prompts", "revision-1")
    )
    n_shards = 0
    for index, rows in enumerate(shards):
        commit_shard(output, index, build_shard(index, list(rows), job.output.keep, 1.0))
        write_entry(output, describe_shard(output, index))
        n_shards += 1
    n_shards = n_planned or n_shards
    plan = Plan(n_shards, 0, n_shards, 1, dict(job.generate.samples))
    output.run.replace(PLAN_FILE, plan.to_json().encode())
    return output


def file_of(output: Output, name: str) -> Path:
    """A file of an output in a folder."""
    return Path(output.store.where(name))


def shard_file(output: Output, index: int) -> Path:
    """The file of a shard of an output in a folder."""
    return file_of(output, shard_name(index))
