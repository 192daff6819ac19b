"""The files of an export: records in, Parquet or JSON lines out, never much of it in memory.

Cut by size alone, so the same records give the same bytes.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

FILE_BYTES = 256 << 20
"""A file that has reached this size in memory (Parquet) or on disk (JSON lines) is closed."""
GROUP_BYTES = 16 << 20
"""Size in memory of a row group, which is all that a writer holds."""
_BATCH_ROWS = 64


class SplitWriter(ABC):
    """Writes the files of one split: `data/train-00000.parquet` and so on."""

    suffix: str

    def __init__(self, folder: Path, split: str) -> None:
        """Writes into `folder`, which exists; the first record makes the first file."""
        self._folder, self._split = folder, split
        self.n_files = 0
        self._file: BinaryIO | None = None

    @abstractmethod
    def write(self, values: Mapping[str, Any]) -> None:
        """Takes one record."""

    @abstractmethod
    def close(self) -> None:
        """Writes what is left."""

    def _open(self) -> BinaryIO:
        path = self._folder / f"{self._split}-{self.n_files:05d}.{self.suffix}"
        self.n_files += 1
        self._file = path.open("xb")
        return self._file

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class ParquetWriter(SplitWriter):
    """Parquet, in row groups of `GROUP_BYTES`."""

    suffix = "parquet"

    def __init__(self, folder: Path, split: str, schema: pa.Schema) -> None:
        """See `SplitWriter`; every record has the columns of `schema`."""
        super().__init__(folder, split)
        self._schema = schema
        self._rows: list[Mapping[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        self._group_bytes = self._file_bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, values: Mapping[str, Any]) -> None:
        """See `SplitWriter`."""
        self._rows.append(values)
        if len(self._rows) == _BATCH_ROWS:
            self._end_batch()
            if self._group_bytes >= GROUP_BYTES:
                self._end_group()

    def close(self) -> None:
        """See `SplitWriter`."""
        try:
            self._end_batch()
            self._end_group()
        finally:
            self._end_file()

    def _end_batch(self) -> None:
        if self._rows:
            batch = pa.RecordBatch.from_pylist(self._rows, schema=self._schema)
            self._batches.append(batch)
            self._group_bytes += batch.nbytes
            self._rows = []

    def _end_group(self) -> None:
        if not self._batches:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._open(), self._schema, compression="zstd")
        table = pa.Table.from_batches(self._batches)
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._file_bytes += self._group_bytes
        self._batches, self._group_bytes = [], 0
        if self._file_bytes >= FILE_BYTES:
            self._end_file()

    def _end_file(self) -> None:
        writer, self._writer, self._file_bytes = self._writer, None, 0
        try:
            if writer is not None:
                writer.close()
        finally:
            self._close_file()


class JsonlWriter(SplitWriter):
    """One JSON object a line."""

    suffix = "jsonl"

    def write(self, values: Mapping[str, Any]) -> None:
        """See `SplitWriter`."""
        file = self._file or self._open()
        file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
        if file.tell() >= FILE_BYTES:
            self._close_file()

    def close(self) -> None:
        """See `SplitWriter`."""
        self._close_file()
