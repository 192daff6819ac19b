"""Reads the rows of parquet and Arrow files; loaded when the first of them is met.

Knows nothing of what a prompt is.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from negtemp_data.errors import quote
from negtemp_data.prompts.records import RawRow

_ROWS_AT_ONCE = 256
_FILE_MAGIC = b"ARROW1"


def read_columnar(handle: BinaryIO, file_format: str) -> Iterator[RawRow]:
    """Streams the rows of a `parquet` or `arrow` file (Arrow IPC, stream or file format).

    Raises:
        ValueError: The file is damaged, not of this format, or has two columns of one name.
    """
    number = 0
    try:
        batches = _read_parquet(handle) if file_format == "parquet" else _read_arrow(handle)
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                for row in _to_rows(batch.slice(start, _ROWS_AT_ONCE)):
                    number += 1
                    if isinstance(row, str):
                        yield RawRow(number, None, row)
                    else:
                        yield RawRow(number, row)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _read_parquet(handle: BinaryIO) -> Iterator[Any]:
    file = pq.ParquetFile(handle)
    _check_names(file.schema_arrow)
    yield from file.iter_batches(batch_size=_ROWS_AT_ONCE)


def _read_arrow(handle: BinaryIO) -> Iterator[Any]:
    is_file = handle.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    handle.seek(0)
    reader = pa.ipc.open_file(handle) if is_file else pa.ipc.open_stream(handle)
    _check_names(reader.schema)
    if is_file:
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        yield from reader


def _check_names(schema: Any) -> None:
    if len(set(schema.names)) < len(schema.names):
        raise ValueError(f"it has two columns of one name: {quote(schema.names)}")


def _to_rows(batch: Any) -> list[dict[str, Any] | str]:
    """Columns of each row, or the reason why it can't be read."""
    try:
        # Neither reader looks at offsets and UTF-8; converting unchecked ones may crash.
        batch.validate(full=True)
        return list(batch.to_pylist())
    except (ValueError, OverflowError) as error:  # ArrowInvalid is a ValueError.
        if batch.num_rows == 1:
            return [f"the row can't be read: {' '.join(str(error).split())}"]
        return [row for i in range(batch.num_rows) for row in _to_rows(batch.slice(i, 1))]
