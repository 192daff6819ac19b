"""Labelled samples, as outputs whose rows a run can judge.

An arm of such an output is a kind of sample: the clean ones, those of the job's own schedules,
those with unrestricted injections, and the clean ones spoilt in each way of `damage`.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from negtemp_data.engine.catalogue import resolve_model
from negtemp_data.errors import PromptSourceError, RequestError, quote
from negtemp_data.jobspec import Job, build_job, write_job
from negtemp_data.jobspec.fingerprint import fingerprint_job
from negtemp_data.lab.damage import DAMAGES, is_usable, whole_sentences
from negtemp_data.prompts import planned_ids, read_shard, source_digest, write_plan
from negtemp_data.storage import Output, build_shard, commit_shard, read_rows

Row = dict[str, Any]

CLEAN = "clean"
GIVEN = "given"
"""Arm of samples that the user has labelled."""

_UNRESTRICTED = {
    "unrestricted-light": {"every": 32, "start": 8, "jitter": 4},
    "unrestricted": {"every": 8, "start": 8, "jitter": 4},
}


def generation_job(job: Job, n_prompts: int, path: Path) -> Job:
    """Generates one sample of each kind that a model writes, for the job's first prompts.

    Raises:
        RequestError: The job has no arm without injections.
    """
    if job.control_arm is None:
        raise RequestError(
            "generate.samples has no arm without injections, whose samples would be the clean ones."
        )
    data = job.model_dump(mode="json")
    control = data["schedules"][job.control_arm]
    schedules = {CLEAN: control}
    for arm in job.generate.samples:
        if job.schedules[arm].inject:
            schedules[f"arm-{arm}"] = data["schedules"][arm]
    for arm, when in _UNRESTRICTED.items():
        rule = {"when": when, "temperature": -1.0, "support": "all"}
        schedules[arm] = {"base": control["base"], "inject": [rule]}
    data["schedules"] = schedules
    data["generate"]["samples"] = dict.fromkeys(schedules, 1)
    data["prompts"]["limit"] = n_prompts
    data["verify"] = {}
    data["output"] = {"path": str(path)}
    return build_job(data, "the lab's job")


def labelled_job(generated: Job, prompts: Path, path: Path) -> Job:
    """The job of the labelled samples, those that are spoilt included."""
    data = generated.model_dump(mode="json")
    base = data["schedules"][CLEAN]
    data["schedules"] |= {damage.name: base for damage in DAMAGES}
    data["generate"]["samples"] = dict.fromkeys(data["schedules"], 1)
    is_chat = generated.prompts.messages is not None
    shape = {"messages": "messages"} if is_chat else {"text": "prompt"}
    system = generated.prompts.system
    data["prompts"] = {"source": str(prompts), "id": "id", "system": system, **shape}
    data["output"] = {"path": str(path)}
    return build_job(data, "the lab's job")


def given_job(job: Job, prompts: Path, path: Path) -> Job:
    """The job of samples that the user has labelled."""
    data = job.model_dump(mode="json")
    data["schedules"] = {GIVEN: {}}
    data["generate"]["samples"] = {GIVEN: 1}
    data["prompts"] = {"source": str(prompts), "id": "id", "text": "prompt"}
    data["verify"] = {}
    data["output"] = {"path": str(path)}
    return build_job(data, "the lab's job")


def spoil(generated: Output, tokenizer: Any, seed: int) -> dict[str, dict[str, Row]]:
    """All samples by prompt id and kind; prompts whose clean answer is too short are left out.

    One prompt alone is none: there is no other whose answer could be taken.
    """
    by_prompt: dict[str, dict[str, Row]] = {}
    for row in read_rows(generated):
        if row["completion"] is not None:
            kinds = by_prompt.setdefault(row["prompt_id"], {})
            kinds[row["arm"]] = _trimmed(row, tokenizer)
    usable = {
        prompt_id: kinds
        for prompt_id, kinds in by_prompt.items()
        if CLEAN in kinds and is_usable(kinds[CLEAN]["completion"])
    }
    if len(usable) < 2:  # the answer to another prompt is one of the damages
        return {}
    answers = [kinds[CLEAN]["completion"] for kinds in usable.values()]
    for index, kinds in enumerate(usable.values()):
        for damage in DAMAGES:
            generator = random.Random(f"{seed}/{index}/{damage.name}")
            text = damage.apply(answers, index, generator)
            kinds[damage.name] = written_row(kinds[CLEAN], text, tokenizer)
    return usable


def _trimmed(row: Row, tokenizer: Any) -> Row:
    """A row whose text ends with a sentence, so that length limits don't tell kinds apart."""
    text = whole_sentences(row["completion"])
    if text == row["completion"]:
        return row
    low, high = 0, len(row["token_ids"])
    while low < high:
        middle = (low + high) // 2
        decoded = tokenizer.decode(row["token_ids"][:middle], skip_special_tokens=True)
        low, high = (middle + 1, high) if len(decoded) < len(text) else (low, middle)
    kept = [i for i in row["injections"] if i["position"] < high]
    columns = {name: row[name][:high] for name in ("token_ids", "logprobs", "ranks")}
    return row | columns | {"completion": text, "completion_tokens": high, "injections": kept}


def written_row(row: Row, text: str, tokenizer: Any) -> Row:
    """`row` with a text that no model has generated; it has no log-probabilities."""
    token_ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return row | {
        "completion": text,
        "token_ids": token_ids,
        "logprobs": [float("nan")] * len(token_ids),
        "ranks": [0] * len(token_ids),
        "injections": [],
        "finish_reason": "stop",
        "completion_tokens": len(token_ids),
    }


def write_prompts(path: Path, rows: Sequence[Row]) -> None:
    """The prompts of rows, as JSON lines with id and prompt or messages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            shape = "prompt" if row["messages"] is None else "messages"
            file.write(json.dumps({"id": row["prompt_id"], shape: row[shape]}) + "\n")


def write_output(job: Job, output: Output, samples: Mapping[str, Mapping[str, Row]]) -> None:
    """Writes rows by prompt id and kind as the output of `job`."""
    output.create()
    output.reset()
    output.create()
    plan = write_plan(job, output.run)
    for shard in range(plan.n_shards):
        rows = [
            samples[prompt.id][planned.arm]
            | {"id": planned.id, "prompt_id": prompt.id, "arm": planned.arm, "sample": 0}
            for prompt in read_shard(output.run, shard)
            for planned in planned_ids(prompt.id, job.generate.samples)
        ]
        commit_shard(output, shard, build_shard(shard, rows, "all", 0.0))
    output.write_job(write_job(job))
    revision = resolve_model(job.generate.model).revision
    output.write_fingerprint(fingerprint_job(job, source_digest(job.prompts), revision))


def read_given(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Prompt, completion and label of each line of the user's file.

    Raises:
        PromptSourceError: The file can't be read, or a line lacks one of them.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                row = json.loads(line)
                fits = isinstance(row, dict) and isinstance(row.get("good"), bool)
                texts = [row.get("prompt"), row.get("completion")] if fits else [None]
                if not all(isinstance(text, str) for text in texts):
                    raise PromptSourceError(
                        f"{path}, line {number}: must be an object with prompt and completion "
                        f"(text) and good (true or false); found {quote(row)}."
                    )
                yield row["prompt"], row["completion"], row["good"]
    except (OSError, ValueError) as error:
        raise PromptSourceError(f"{path}: can't be read as JSON lines: {error}.") from error
