"""The plan of a run: its prompts, cut into shards, as files of the run's folder.

`prompts.arrow` holds the prompts, one record batch a shard; `plan.json` is written after it and
says that the plan is complete. Both are a pure function of prompts, samples and `shard_rows`. Knows
nothing of what a run makes of its rows.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from negtemp_data.errors import StorageError
from negtemp_data.jobspec import Job
from negtemp_data.prompts.readers import read_prompts
from negtemp_data.prompts.records import Prompt

PLAN_FILE = "plan.json"
"""Name of the file that says that a plan is complete."""
PROMPTS_FILE = "prompts.arrow"
"""Name of the file with the prompts of all shards."""


@dataclass(frozen=True)
class Plan:
    """How many rows a run makes, and how they fall into shards."""

    n_prompts: int
    """All prompts, those that can't be used included."""
    n_bad: int
    """Prompts that can't be used; their rows are failed ones."""
    n_shards: int
    """Shards, the last one included."""
    prompts_per_shard: int
    """Prompts of every shard but the last, which may have fewer."""
    samples: dict[str, int]
    """Samples per prompt, by arm."""

    @property
    def n_rows(self) -> int:
        """Planned rows of all shards."""
        return self.n_prompts * sum(self.samples.values())

    def rows_of(self, shard: int) -> int:
        """Planned rows of one shard.

        Raises:
            IndexError: There is no such shard.
        """
        if not 0 <= shard < self.n_shards:
            raise IndexError(f"the plan has {self.n_shards} shards, no shard {shard}")
        n_before = shard * self.prompts_per_shard
        n_prompts = min(self.prompts_per_shard, self.n_prompts - n_before)
        return n_prompts * sum(self.samples.values())

    def to_json(self) -> str:
        """The text of plan.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: `text` is not JSON.
            TypeError: It is not that of a plan.
        """
        return cls(**json.loads(text))


class PlannedRow(NamedTuple):
    """One sample that the plan asks for."""

    id: str
    """prompt id/arm/sample."""
    arm: str
    sample: int
    """Index within prompt and arm, from 0."""


def row_seed(job_seed: int, prompt_id: str, sample: int, attempt: int = 0) -> int:
    """Seed of one row, 63 bits. It does not depend on the arm: twins share it."""
    key = json.dumps([job_seed, prompt_id, sample, attempt])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def planned_ids(prompt_id: str, samples: Mapping[str, int]) -> Iterator[PlannedRow]:
    """The rows of one prompt, arms in the order of `samples`."""
    for arm, n_samples in samples.items():
        for sample in range(n_samples):
            yield PlannedRow(f"{prompt_id}/{arm}/{sample}", arm, sample)


def prompts_per_shard(job: Job) -> int:
    """Prompts of a full shard: as many as fit `shard_rows` with all their samples, at least one."""
    return max(1, job.output.shard_rows // job.samples_per_prompt)


def write_plan(job: Job, directory: Path, on_progress: Callable[[int], None] | None = None) -> Plan:
    """Reads all prompts once and writes the plan, one shard in memory at a time.

    A plan that is there already is replaced. Until the new one is complete there is no plan.json.

    Args:
        job: The job to plan.
        directory: Folder for the plan's files, made if missing.
        on_progress: Called after each shard with the number of prompts so far.

    Raises:
        PromptSourceError: See `read_prompts`.
        JobError: See `read_prompts`.
        StorageError: The plan can't be written.
    """
    from negtemp_data.prompts.batches import open_writer, to_batch  # noqa: PLC0415

    per_shard = prompts_per_shard(job)
    prompts = read_prompts(job.prompts)
    n_prompts = n_bad = n_shards = 0
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # First of all, so that an old plan.json never stands beside new prompts.
        (directory / PLAN_FILE).unlink(missing_ok=True)
        with _replace_file(directory / PROMPTS_FILE) as file, open_writer(file) as writer:
            while shard := list(islice(prompts, per_shard)):
                writer.write_batch(to_batch(shard))
                n_shards += 1
                n_prompts += len(shard)
                n_bad += sum(prompt.error is not None for prompt in shard)
                if on_progress is not None:
                    on_progress(n_prompts)
        plan = Plan(n_prompts, n_bad, n_shards, per_shard, dict(job.generate.samples))
        with _replace_file(directory / PLAN_FILE) as file:
            file.write(plan.to_json().encode())
    except OSError as error:
        raise StorageError(f"{directory}: the plan can't be written: {error}.") from error
    return plan


def load_plan(directory: Path) -> Plan | None:
    """The plan in a folder; None: it has none, or not yet.

    Raises:
        StorageError: plan.json can't be read or is damaged.
    """
    path = directory / PLAN_FILE
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(
            f"{path}: is damaged ({error}); delete it, then `negtemp resume {directory.parent}` "
            "plans again from the same prompts."
        ) from error


def read_shard(directory: Path, shard: int) -> list[Prompt]:
    """The prompts of one shard; the others are not read.

    Raises:
        IndexError: There is no such shard.
        StorageError: prompts.arrow can't be read or is damaged.
    """
    from negtemp_data.prompts.batches import read_batch  # noqa: PLC0415

    return read_batch(directory / PROMPTS_FILE, shard)


@contextmanager
def _replace_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path`, synced, when the block ends well."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
