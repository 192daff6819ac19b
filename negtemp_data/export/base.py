"""What a format of training data is: rows of one prompt in, records of the trainer out.

Formats know neither files nor splits; `run` hands them the rows and writes what they make.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import pyarrow as pa

from negtemp_data.jobspec import Job

Row = Mapping[str, Any]
"""A row of the data set, with the columns that its format reads."""

IDENTITY_COLUMNS = ("id", "prompt_id", "arm", "sample", "prompt", "messages", "status", "score")
"""Columns that every format reads."""


class Record(NamedTuple):
    """One row of the export."""

    kind: str
    """What the card counts it as: an arm, or a kind of pair."""
    values: Mapping[str, Any]
    """By column of the format's schema."""


class Format(ABC):
    """One format. Subclasses are frozen dataclasses whose fields, `job` apart, are its options."""

    job: Job
    """The job that made the data set."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns that it reads beside `IDENTITY_COLUMNS`."""
    suffix: ClassVar[Literal["parquet", "jsonl"]] = "parquet"
    """Kind of its files."""
    trainer: ClassVar[str] = ""
    """Who takes it, for the card."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Columns of a record."""

    @abstractmethod
    def convert(self, siblings: Sequence[Row]) -> Iterator[Record]:
        """Records from the committed rows of one prompt, which are in the plan's order.

        Raises:
            ExportError: A row can't be exported.
        """


def choose_accepted(
    siblings: Sequence[Row], min_score: float | None, best_only: bool
) -> Sequence[Row]:
    """Accepted rows of a prompt with at least `min_score`; of equal scores the first is best."""
    chosen = [
        row
        for row in siblings
        if row["status"] == "accepted"
        and (min_score is None or (row["score"] is not None and row["score"] >= min_score))
    ]
    return [max(chosen, key=_score)] if best_only and chosen else chosen


def _score(row: Row) -> float:
    return float("-inf") if row["score"] is None else float(row["score"])
