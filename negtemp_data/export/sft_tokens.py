"""`sft-tokens`: the tokens themselves, injected ones masked, for TRL's SFTTrainer.

What the model was given and what it drew, token by token, so that nothing is encoded anew. A
completion that was cut at `max_tokens` does not end with an end of text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pyarrow as pa

from negtemp_data.export.base import Format, Record, Row, choose_accepted
from negtemp_data.export.prompt_tokens import PromptTokens
from negtemp_data.jobspec import Job

IGNORED = -100
"""A label that takes no part in the loss. Source: torch 2.13, `cross_entropy`, ignore_index."""


@dataclass(frozen=True)
class SftTokensFormat(Format):
    """Columns input_ids, attention_mask, labels."""

    job: Job
    min_score: float | None = None
    """Lowest score of a row; None: whatever was accepted."""
    best_only: bool = True
    """The best row of each prompt only."""

    columns: ClassVar[tuple[str, ...]] = ("token_ids", "injections", "prompt_tokens")
    trainer: ClassVar[str] = "trl.SFTTrainer"

    @cached_property
    def _prompts(self) -> PromptTokens:
        return PromptTokens(self.job)

    @property
    def schema(self) -> pa.Schema:
        """See `Format`."""
        return pa.schema(
            {
                "input_ids": pa.list_(pa.int32()),
                "attention_mask": pa.list_(pa.int8()),
                "labels": pa.list_(pa.int32()),
            }
        )

    def convert(self, siblings: Sequence[Row]) -> Iterator[Record]:
        """See `Format`."""
        for row in choose_accepted(siblings, self.min_score, self.best_only):
            prompt_ids = self._prompts.encode(row)
            input_ids = prompt_ids + row["token_ids"]
            values = {
                "input_ids": input_ids,
                "attention_mask": [1] * len(input_ids),
                "labels": [IGNORED] * len(prompt_ids) + label_completion(row),
            }
            yield Record(row["arm"], values)


def label_completion(row: Row) -> list[int]:
    """A label for each token of the completion: itself, or `IGNORED` where it was injected."""
    labels = list(row["token_ids"])
    for injection in row["injections"] or ():
        labels[injection["position"]] = IGNORED
    return labels
