"""Reading rows back, for people and tools that look at a few of them."""

from collections.abc import Iterator
from typing import Any

from negtemp_data.storage.output import Output
from negtemp_data.storage.shards import read_batches


def read_rows(
    output: Output,
    *,
    arm: str | None = None,
    status: str | None = None,
    prompt_id: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Committed rows in order, one batch in memory at a time; None selects everything.

    Raises:
        StorageError: A shard is damaged.
    """
    wanted = {
        column: value
        for column, value in (("arm", arm), ("status", status), ("prompt_id", prompt_id))
        if value is not None
    }
    for shard in output.committed_shards():
        for batch in read_batches(output, shard):
            for row in batch.to_pylist():
                if all(row[column] == value for column, value in wanted.items()):
                    yield row
