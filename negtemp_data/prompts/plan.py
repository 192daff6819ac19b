"""The plan of a run: its prompts, cut into shards, as files of the run.

`prompts.arrow` holds the prompts, one record batch a shard; `plan.json` is written after it and
says that the plan is complete. Both are a pure function of prompts, samples and `shard_rows`. Knows
nothing of what a run makes of its rows.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, Protocol

from negtemp_data.errors import StorageError
from negtemp_data.jobspec import Job
from negtemp_data.prompts.readers import read_prompts
from negtemp_data.prompts.records import Prompt

PLAN_FILE = "plan.json"
"""Name of the file that says that a plan is complete."""
PROMPTS_FILE = "prompts.arrow"
"""Name of the file with the prompts of all shards."""


class Files(Protocol):
    """Where the files of a plan are: what it needs of a `negtemp_data.storage.store.Store`."""

    def where(self, name: str) -> str:
        """Path or URI of a file."""

    def make(self) -> None:
        """Makes the folder, where folders are made at all."""

    def read(self, name: str) -> bytes:
        """A file's bytes."""

    def open(self, name: str) -> Any:
        """An Arrow file to read at any place."""

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write, which takes the place of `name` when the block ends well."""

    def replace(self, name: str, data: bytes) -> None:
        """Writes a file, whole or not at all."""

    def remove(self, names: Iterable[str]) -> None:
        """Removes files, as far as they are there."""


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


def write_plan(job: Job, files: Files, on_progress: Callable[[int], None] | None = None) -> Plan:
    """Reads all prompts once and writes the plan, one shard in memory at a time.

    A plan that is there already is replaced. Until the new one is complete there is no plan.json.

    Args:
        job: The job to plan.
        files: Where the plan's files go; its folder is made if missing.
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
    files.make()
    # First of all, so that an old plan.json never stands beside new prompts.
    files.remove([PLAN_FILE])
    with files.writing(PROMPTS_FILE) as file, open_writer(file) as writer:
        while shard := list(islice(prompts, per_shard)):
            writer.write_batch(to_batch(shard))
            n_shards += 1
            n_prompts += len(shard)
            n_bad += sum(prompt.error is not None for prompt in shard)
            if on_progress is not None:
                on_progress(n_prompts)
    plan = Plan(n_prompts, n_bad, n_shards, per_shard, dict(job.generate.samples))
    files.replace(PLAN_FILE, plan.to_json().encode())
    return plan


def load_plan(files: Files) -> Plan | None:
    """The plan in a folder; None: it has none, or not yet.

    Raises:
        StorageError: plan.json can't be read or is damaged.
    """
    try:
        return Plan.from_json(files.read(PLAN_FILE).decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(
            f"{files.where(PLAN_FILE)}: is damaged ({error}); delete it, then `negtemp resume` on "
            "this output plans again from the same prompts."
        ) from error


def read_shard(files: Files, shard: int) -> list[Prompt]:
    """The prompts of one shard; the others are not read.

    Raises:
        IndexError: There is no such shard.
        StorageError: prompts.arrow can't be read or is damaged.
    """
    from pyarrow import ArrowException  # noqa: PLC0415

    from negtemp_data.prompts.batches import read_batch  # noqa: PLC0415

    where = files.where(PROMPTS_FILE)
    try:
        with files.open(PROMPTS_FILE) as file:
            return read_batch(file, shard)
    except IndexError as error:
        raise IndexError(f"{where} has {error}") from error
    except (OSError, ArrowException) as error:
        raise StorageError(
            f"{where}: shard {shard} can't be read ({error}); delete {files.where(PLAN_FILE)}, "
            "then `negtemp resume` on this output plans again from the same prompts."
        ) from error
