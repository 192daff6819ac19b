"""The file of a plan's prompts: one Arrow record batch a shard, so that one is read alone.

Loaded when a plan is written or a shard is read. Knows nothing of jobs.
"""

import json
from typing import Any, BinaryIO

import pyarrow as pa

from negtemp_data.prompts.records import Message, Prompt

# large_string: the texts of a shard may exceed the 2 GiB that 32-bit offsets reach.
_TEXT = pa.large_string()
_SCHEMA = pa.schema(
    [
        pa.field("id", _TEXT, nullable=False),
        pa.field("text", _TEXT),
        pa.field("messages", _TEXT, metadata={"format": "JSON list of {role, content}"}),
        pa.field("source", _TEXT, metadata={"format": "JSON object"}),
        pa.field("error", _TEXT),
    ]
)


def open_writer(file: BinaryIO) -> Any:
    """An Arrow IPC file writer for batches of `to_batch`, to be used in a `with` statement."""
    return pa.ipc.new_file(file, _SCHEMA)


def to_batch(prompts: list[Prompt]) -> Any:
    """The record batch of one shard."""
    return pa.RecordBatch.from_pylist([_to_row(prompt) for prompt in prompts], schema=_SCHEMA)


def read_batch(file: Any, shard: int) -> list[Prompt]:
    """The prompts of one shard in an Arrow file; the others are not read.

    Raises:
        IndexError: There is no such shard.
    """
    reader = pa.ipc.open_file(file)
    if not 0 <= shard < reader.num_record_batches:
        raise IndexError(f"{reader.num_record_batches} shards, no shard {shard}")
    batch = reader.get_batch(shard)
    batch.validate(full=True)
    return [_to_prompt(row) for row in batch.to_pylist()]


def _to_row(prompt: Prompt) -> dict[str, str | None]:
    messages = None
    if prompt.messages is not None:
        chat = [message._asdict() for message in prompt.messages]
        messages = json.dumps(chat, ensure_ascii=False)
    return {
        "id": prompt.id,
        "text": prompt.text,
        "messages": messages,
        "source": prompt.source,
        "error": prompt.error,
    }


def _to_prompt(row: dict[str, Any]) -> Prompt:
    if row["messages"] is not None:
        row["messages"] = tuple(Message(**item) for item in json.loads(row["messages"]))
    return Prompt(**row)
