"""Calibration: a small, real run of a job, from which the whole is told.

The run has its output beside the job's own, so that a cluster sees it where it sees that, and
removes it when it is done.
"""

import heapq
import json
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from negtemp_data.errors import RequestError, RunError, StorageError
from negtemp_data.jobspec import Job
from negtemp_data.pipeline.estimate import Calibration, Estimate, estimate
from negtemp_data.pipeline.monitor import Reporter
from negtemp_data.pipeline.reasons import count_reasons
from negtemp_data.pipeline.run import RunRequest, RunResult, run_job
from negtemp_data.prompts import Prompt, read_prompts
from negtemp_data.storage import Output, generated_tokens, read_rows

_COLUMN = "negtemp_prompt"
_ID = "negtemp_id"


@dataclass(frozen=True)
class ChosenPrompts:
    """Some prompts of a source."""

    prompts: list[Prompt]
    n_usable: int
    """Prompts that these were chosen from."""


def calibrate(job: Job, n_prompts: int, address: str | None, reporter: Reporter) -> Estimate:
    """Runs `n_prompts` prompts of a job on one replica, and tells from them what the job takes.

    Args:
        job: The job.
        n_prompts: Prompts to run, chosen by a hash of their ids; all of them where there are less.
        address: See `RunRequest`.
        reporter: Told of progress.

    Raises:
        RequestError: See `run_job`; or no prompt can be used.
        RunError: See `run_job`; what the calibration has written stays, its logs included.
    """
    reporter.note("choosing prompts")
    chosen = choose_prompts(job, n_prompts)
    if not chosen.prompts:
        raise RequestError(f"prompts.source {job.prompts.source}: no prompt in it can be used.")
    with tempfile.TemporaryDirectory(prefix="negtemp-") as folder:
        small = cut_job(job, chosen.prompts, Path(folder) / "prompts.jsonl")
        output = Output(small.output.path)
        begun = time.monotonic()
        result = run_job(RunRequest(small, output, address, fresh=True), reporter)
        seconds = time.monotonic() - begun
    if not result.steps.steps:
        reasons = "; ".join(count_reasons(read_rows(output)))
        raise RunError(f"no row of the {len(chosen.prompts)} chosen prompts was made: {reasons}.")
    calibration = _read(output, result, seconds)
    with suppress(StorageError):
        output.store.remove_tree()
    return estimate(calibration, chosen.n_usable, job.generate.replica_range.max)


def choose_prompts(job: Job, n_prompts: int) -> ChosenPrompts:
    """Prompts with the smallest hashes of their ids, in one pass and in the order of the source."""
    n_usable = 0
    largest_first: list[tuple[int, int, Prompt]] = []
    for number, prompt in enumerate(read_prompts(job.prompts)):
        if prompt.error is not None:
            continue
        n_usable += 1
        key = int.from_bytes(blake2b(prompt.id.encode(), digest_size=8).digest(), "big")
        entry = (-key, number, prompt)
        if len(largest_first) < n_prompts:
            heapq.heappush(largest_first, entry)
        else:
            heapq.heappushpop(largest_first, entry)
    in_order = sorted(largest_first, key=lambda entry: entry[1])
    return ChosenPrompts([prompt for *_, prompt in in_order], n_usable)


def cut_job(job: Job, prompts: list[Prompt], path: Path) -> Job:
    """The job over these prompts alone, which are written to `path`, on one replica."""
    with path.open("w", encoding="utf-8") as file:
        for prompt in prompts:
            file.write(json.dumps(_as_row(prompt)) + "\n")
    column = "text" if prompts[0].messages is None else "messages"
    source = job.prompts.model_copy(
        update={
            **dict.fromkeys(("text", "messages", "template", "limit")),
            "source": str(path),
            "id": _ID,
            column: _COLUMN,
        }
    )
    return job.model_copy(
        update={
            "prompts": source,
            "generate": job.generate.model_copy(update={"replicas": 1}),
            "output": job.output.model_copy(
                update={"path": f"{job.output.path.rstrip('/')}.calibration", "keep": "all"}
            ),
        }
    )


def _as_row(prompt: Prompt) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(prompt.source) if prompt.source else {}
    messages = prompt.messages
    chat = None if messages is None else [message._asdict() for message in messages]
    return row | {_ID: prompt.id, _COLUMN: prompt.text if chat is None else chat}


def _read(output: Output, result: RunResult, seconds: float) -> Calibration:
    tokens: Counter[str] = Counter()
    row_steps = []
    for row in read_rows(output):
        n_tokens = generated_tokens(row)
        tokens[row["prompt_id"]] += n_tokens
        row_steps.append(n_tokens)
    return Calibration(
        prompt_tokens=list(tokens.values()),
        accepted_rows=result.totals.overall.accepted,
        row_steps=row_steps,
        steps=result.steps,
        work_s=result.seconds,
        other_s=seconds - result.seconds,
    )
