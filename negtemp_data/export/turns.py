"""Prompts and completions as TRL's trainers read them: as a chat, or as plain text.

As a chat the trainer applies the model's template, as the engine did. Source: trl 1.16,
data_utils.py, `is_conversational` and `apply_chat_template`.
"""

from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from negtemp_data.errors import ExportError, quote
from negtemp_data.export.base import Row
from negtemp_data.jobspec import Job

Shape = Literal["chat", "text"]
"""chat: lists of {role, content}; text: bare strings, for models without a chat template."""

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


class Turns:
    """Turns the prompts and completions of one job into the parts of a record."""

    def __init__(self, job: Job, shape: Shape) -> None:
        """Checks that the job's prompts can have this shape.

        Raises:
            ExportError: The job has a system message, which bare text has no place for.
        """
        if shape == "text" and job.prompts.system is not None:
            raise ExportError(
                "--shape text: the job puts a system message before every prompt, and plain text "
                "has no place for it; use --shape chat."
            )
        self._job = job
        self._is_chat = shape == "chat"

    @property
    def type(self) -> pa.DataType:
        """Arrow type of a prompt and of a completion."""
        return MESSAGES if self._is_chat else pa.string()

    @cached_property
    def template_fields(self) -> dict[str, pa.DataType]:
        """A column for the arguments of the chat template, where the job has some."""
        kwargs = self._job.generate.chat_template_kwargs
        if not kwargs or not self._is_chat:
            return {}
        try:
            column = pa.array([kwargs])
            pq.write_table(pa.table({"kwargs": column}), pa.BufferOutputStream())
        except pa.ArrowException:
            column = None
        # Objects of different keys in one list would each get the others' keys, as nulls.
        if column is None or column.to_pylist() != [kwargs]:
            raise ExportError(
                "generate.chat_template_kwargs can't be a column, whose values have one type each "
                "(no empty objects, no lists of different ones); --format sft-tokens needs none."
            )
        return {"chat_template_kwargs": column.type}

    def template_values(self) -> dict[str, Any]:
        """Values of `template_fields`."""
        return dict.fromkeys(self.template_fields, self._job.generate.chat_template_kwargs)

    def prompt(self, row: Row) -> str | list[dict[str, str]]:
        """All that the model was given.

        Raises:
            ExportError: The prompt is a chat, and text is wanted.
        """
        if not self._is_chat:
            if row["prompt"] is None:
                raise ExportError(
                    f"--shape text: the prompt of row {quote(row['id'])} is a chat; use --shape "
                    "chat."
                )
            return str(row["prompt"])
        chat = row["messages"] or [{"role": "user", "content": row["prompt"]}]
        system = self._job.prompts.system
        return [*([{"role": "system", "content": system}] if system is not None else []), *chat]

    def completion(self, row: Row) -> str | list[dict[str, str]]:
        """What the model answered."""
        text = str(row["completion"])
        return [{"role": "assistant", "content": text}] if self._is_chat else text
