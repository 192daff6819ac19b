"""A shard's account: what became of its planned rows.

It travels in the schema metadata of the shard's own file: rows that `keep: accepted` leaves out
can't be counted again from the file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from negtemp_data.errors import StorageError
from negtemp_data.storage.schema import STATUSES, generated_tokens

_METADATA_KEY = b"negtemp"


@dataclass(frozen=True)
class ShardAccount:
    """What became of the planned rows of one shard.

    Raises:
        ValueError: The parts speak of different arms, or of other statuses than `STATUSES`.
    """

    shard: int
    """Index of the shard."""
    rows: int
    """Rows in the file."""
    planned: int
    """Rows that the plan gives to the shard, in the file or not."""
    counts: dict[str, dict[str, int]]
    """Planned rows by arm and status; every arm has all of `STATUSES`."""
    accepted_at_once: dict[str, int]
    """Rows that were accepted at their first attempt, by arm."""
    generated_tokens: int
    """Generated tokens of the planned rows, all attempts together."""
    injections: dict[str, int]
    """Injected tokens by arm."""
    score_sum: dict[str, float]
    """Sum of the scores by arm."""
    scored: dict[str, int]
    """Rows that have a score, by arm."""
    seconds: float
    """Time that the shard took."""

    def __post_init__(self) -> None:
        parts = (self.accepted_at_once, self.injections, self.score_sum, self.scored)
        if any(part.keys() != self.counts.keys() for part in parts):
            raise ValueError("the arms differ")
        if any(counts.keys() != set(STATUSES) for counts in self.counts.values()):
            raise ValueError(f"the statuses are not {', '.join(STATUSES)}")


def account_rows(
    shard: int, planned: Sequence[Mapping[str, Any]], rows: int, seconds: float
) -> ShardAccount:
    """Accounts for all planned rows of a shard, of which its file holds `rows`."""
    arms = dict.fromkeys(row["arm"] for row in planned)
    counts: dict[str, dict[str, int]] = {arm: dict.fromkeys(STATUSES, 0) for arm in arms}
    accepted_at_once = dict.fromkeys(arms, 0)
    injections = dict.fromkeys(arms, 0)
    score_sum = dict.fromkeys(arms, 0.0)
    scored = dict.fromkeys(arms, 0)
    for row in planned:
        arm = row["arm"]
        counts[arm][row["status"]] += 1
        accepted_at_once[arm] += row["status"] == "accepted" and not row["attempts"]
        injections[arm] += len(row["injections"] or ())
        if row["score"] is not None:
            score_sum[arm] += float(row["score"])
            scored[arm] += 1
    return ShardAccount(
        shard=shard,
        rows=rows,
        planned=len(planned),
        counts=counts,
        accepted_at_once=accepted_at_once,
        generated_tokens=sum(map(generated_tokens, planned)),
        injections=injections,
        score_sum=score_sum,
        scored=scored,
        seconds=seconds,
    )


def attach_account(table: pa.Table, account: ShardAccount) -> pa.Table:
    """`table` with `account` in its schema metadata."""
    return table.replace_schema_metadata({_METADATA_KEY: json.dumps(asdict(account))})


def read_account(schema: pa.Schema, where: object) -> ShardAccount:
    """The account in a schema's metadata; `where` names its file in errors.

    Raises:
        StorageError: There is none that makes sense.
    """
    try:
        return ShardAccount(**json.loads((schema.metadata or {})[_METADATA_KEY]))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{where}: has no sound account of its rows, so it is damaged or not negtemp's; move "
            "it away, then run `negtemp resume` on this output."
        ) from error
