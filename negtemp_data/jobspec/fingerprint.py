"""What makes two runs the same: a fingerprint of everything that can change a row.

Two fingerprints are compared part by part, so that a refusal names what differs.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from negtemp_data.jobspec.job import Job

NOT_IN_A_ROW = (
    ("generate", "replicas"),
    ("generate", "gpus_per_replica"),
    ("output", "path"),
    ("prompts", "source"),
)
"""Fields that can't change a row: where and how wide it runs, and the prompts' name (their bytes
are in the fingerprint). The job's own name is left out too."""


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a data set under construction."""

    job: dict[str, Any]
    """The resolved job without its name and the fields of `NOT_IN_A_ROW`."""
    prompts: str
    """Digest of the prompt source's bytes."""
    model: str
    """Revision of the generator's files."""
    adapter: str | None = None
    """Revision of the LoRA adapter's files; None: the generator has none."""
    judges: dict[str, str] = field(default_factory=dict)
    """Revisions of the models of judges that have their own, by the judge's path in the job."""


_NOT_IN_A_VERDICT = ("replicas", "gpus_per_replica", "api_key_env", "concurrency")
"""Fields of a judge that can't change what it says."""


def fingerprint_job(
    job: Job,
    prompts: str,
    model: str,
    adapter: str | None = None,
    judges: Mapping[str, str] | None = None,
) -> Fingerprint:
    """Fingerprint of `job` on prompts and models with these digests."""
    data = job.model_dump(mode="json")
    for section, key in NOT_IN_A_ROW:
        del data[section][key]
    del data["name"]
    judge = data["verify"]["judge"] or {}
    for single in [judge, *judge.get("judges", {}).values()]:
        for key in _NOT_IN_A_VERDICT:
            single.pop(key, None)
    return Fingerprint(
        job=data, prompts=prompts, model=model, adapter=adapter, judges=dict(judges or {})
    )


def differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """What differs, one line each: `path: old → new`."""
    lines = [
        f"{path}: {json.dumps(before)} → {json.dumps(after)}"
        for path, before, after in _walk(old.job, new.job, "")
    ]
    if old.prompts != new.prompts:
        lines.append("prompts.source: the prompts themselves have changed")
    if old.model != new.model:
        lines.append(f"generate.model: its files have changed ({old.model} → {new.model})")
    # A job that has one and a job that has none differ in generate.lora, which stands above.
    if old.adapter and new.adapter and old.adapter != new.adapter:
        lines.append(f"generate.lora: its files have changed ({old.adapter} → {new.adapter})")
    lines += [
        f"{path}.model: its files have changed ({old.judges[path]} → {revision})"
        for path, revision in new.judges.items()
        if old.judges.get(path, revision) != revision
    ]
    return lines


def _walk(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _walk(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _walk(before, after, f"{path}[{index}]")
    elif old != new:
        yield path, old, new
