"""`unlikelihood`: what to learn and which tokens to unlearn, for `UnlikelihoodTrainer`.

Accepted rows give the likelihood, as in `sft-tokens`. Of a rejected row nothing is learnt but that
its injected tokens should not have been drawn where they were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pyarrow as pa

from negtemp_data.export.base import Format, Record, Row
from negtemp_data.export.prompt_tokens import PromptTokens
from negtemp_data.export.sft_tokens import IGNORED, label_completion
from negtemp_data.jobspec import Job


@dataclass(frozen=True)
class UnlikelihoodFormat(Format):
    """Columns input_ids, labels, negative_ids (a list for each position)."""

    job: Job

    columns: ClassVar[tuple[str, ...]] = ("token_ids", "injections", "prompt_tokens")
    trainer: ClassVar[str] = "negtemp_data.export.trainer.UnlikelihoodTrainer"

    @cached_property
    def _prompts(self) -> PromptTokens:
        return PromptTokens(self.job)

    @property
    def schema(self) -> pa.Schema:
        """See `Format`."""
        ids = pa.list_(pa.int32())
        return pa.schema({"input_ids": ids, "labels": ids, "negative_ids": pa.list_(ids)})

    def convert(self, siblings: Sequence[Row]) -> Iterator[Record]:
        """See `Format`."""
        for row in siblings:
            is_accepted = row["status"] == "accepted"
            # A rejected row without injections has nothing to say here.
            if row["status"] == "failed" or not (is_accepted or row["injections"]):
                continue
            prompt_ids = self._prompts.encode(row)
            input_ids = prompt_ids + row["token_ids"]
            labels = [IGNORED] * len(input_ids)
            # One list for all positions without any: a list each takes most of an export's time.
            negative_ids: list[list[int]] = [[]] * len(input_ids)
            if is_accepted:
                labels[len(prompt_ids) :] = label_completion(row)
            else:
                for injection in row["injections"]:
                    negative_ids[len(prompt_ids) + injection["position"]] = [injection["token_id"]]
            values = {"input_ids": input_ids, "labels": labels, "negative_ids": negative_ids}
            yield Record(f"{row['arm']}, {row['status']}", values)
