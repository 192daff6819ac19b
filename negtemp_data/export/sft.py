"""`sft`: prompts and accepted completions, for TRL's SFTTrainer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import pyarrow as pa

from negtemp_data.export.base import Format, Record, Row, choose_accepted
from negtemp_data.export.turns import MESSAGES, Turns
from negtemp_data.jobspec import Job


@dataclass(frozen=True)
class SftFormat(Format):
    """Columns prompt and completion, or one column messages."""

    job: Job
    shape: Literal["chat", "text", "messages"] = "chat"
    """As `Shape`; messages: prompt and completion as one chat."""
    min_score: float | None = None
    """Lowest score of a row; None: whatever was accepted."""
    best_only: bool = True
    """The best row of each prompt only."""

    columns: ClassVar[tuple[str, ...]] = ("completion",)
    trainer: ClassVar[str] = "trl.SFTTrainer"

    @cached_property
    def _turns(self) -> Turns:
        return Turns(self.job, "text" if self.shape == "text" else "chat")

    @property
    def schema(self) -> pa.Schema:
        """See `Format`."""
        if self.shape == "messages":
            return pa.schema({"messages": MESSAGES, **self._turns.template_fields})
        kind = self._turns.type
        return pa.schema({"prompt": kind, "completion": kind, **self._turns.template_fields})

    def convert(self, siblings: Sequence[Row]) -> Iterator[Record]:
        """See `Format`."""
        for row in choose_accepted(siblings, self.min_score, self.best_only):
            yield Record(row["arm"], self._values(row) | self._turns.template_values())

    def _values(self, row: Row) -> dict[str, Any]:
        prompt, completion = self._turns.prompt(row), self._turns.completion(row)
        if self.shape == "messages":
            return {"messages": [*prompt, *completion]}
        return {"prompt": prompt, "completion": completion}
