"""`kto`: every judged completion with its verdict, for TRL's KTOTrainer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pyarrow as pa

from negtemp_data.export.base import Format, Record, Row
from negtemp_data.export.turns import Shape, Turns
from negtemp_data.jobspec import Job


@dataclass(frozen=True)
class KtoFormat(Format):
    """Columns prompt, completion, label; label says whether the row was accepted."""

    job: Job
    shape: Shape = "chat"
    """How prompts and completions are written."""

    columns: ClassVar[tuple[str, ...]] = ("completion",)
    trainer: ClassVar[str] = "trl.KTOTrainer"

    @cached_property
    def _turns(self) -> Turns:
        return Turns(self.job, self.shape)

    @property
    def schema(self) -> pa.Schema:
        """See `Format`."""
        kind = self._turns.type
        fields = {"prompt": kind, "completion": kind, "label": pa.bool_()}
        return pa.schema(fields | self._turns.template_fields)

    def convert(self, siblings: Sequence[Row]) -> Iterator[Record]:
        """See `Format`."""
        for row in siblings:
            if row["status"] == "failed":
                continue
            values = {
                "prompt": self._turns.prompt(row),
                "completion": self._turns.completion(row),
                "label": row["status"] == "accepted",
            }
            yield Record(f"{row['arm']}, {row['status']}", values | self._turns.template_values())
