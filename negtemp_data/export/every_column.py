"""`parquet` and `jsonl`: every row with every column, failed rows included."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa

from negtemp_data.export.base import Format, Record, Row
from negtemp_data.jobspec import Job
from negtemp_data.storage import ROW_SCHEMA


@dataclass(frozen=True)
class ParquetFormat(Format):
    """All columns of the data set, as Parquet."""

    job: Job

    columns: ClassVar[tuple[str, ...]] = tuple(ROW_SCHEMA.names)

    @property
    def schema(self) -> pa.Schema:
        """See `Format`."""
        return ROW_SCHEMA

    def convert(self, siblings: Sequence[Row]) -> Iterator[Record]:
        """See `Format`."""
        for row in siblings:
            yield Record(f"{row['arm']}, {row['status']}", row)


@dataclass(frozen=True)
class JsonlFormat(ParquetFormat):
    """All columns of the data set, one JSON object a line.

    An infinite temperature is written as `Infinity`, which JSON does not have but its readers in
    Python, Arrow and `datasets` know.
    """

    suffix: ClassVar[Literal["parquet", "jsonl"]] = "jsonl"
