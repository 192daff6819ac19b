"""The committed rows of an output in the libraries that people train with, mapped, not copied."""

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from negtemp_data.errors import ExportError
from negtemp_data.storage import ROW_SCHEMA, Output, Store, shard_name
from negtemp_data.storage.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from negtemp_data.export.torch_rows import TorchRows


class CommittedRows:
    """The rows of the shards that were committed when the output was opened.

    Shards never change, so this view does not either, whatever a run adds meanwhile.
    """

    def __init__(self, store: Store, names: "Sequence[str]") -> None:
        """Takes the files of the shards, in order; opens none of them."""
        self._store = store
        self._names = list(names)

    def arrow(self) -> pa.Table:
        """A table whose buffers are the files' own pages, or copies of objects."""
        return self._table

    def hf(self) -> Any:
        """A `datasets.Dataset`, memory-mapped, or in memory where the shards are objects."""
        from datasets import Dataset, concatenate_datasets  # noqa: PLC0415

        if not isinstance(self._store, LocalStore):
            return Dataset(self._table)
        shards = [Dataset.from_file(self._store.where(name)) for name in self._names]
        return concatenate_datasets([shard for shard in shards if len(shard)] or shards[:1])

    def polars(self) -> "pl.DataFrame":
        """A polars frame in as many chunks as there are batches.

        Numbers and the bytes of texts stay where they are; polars makes its own offsets of texts
        and lists.
        """
        import polars as pl  # noqa: PLC0415

        frame = pl.from_arrow(self._table, rechunk=False)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def torch(self, columns: "Sequence[str] | None" = None, seed: int | None = None) -> "TorchRows":
        """An iterable torch data set whose position can be saved; lists of numbers are tensors.

        Args:
            columns: Columns of a row; None: all.
            seed: Shuffles the order of the shards and the rows within each, anew in every epoch;
                None: in order.

        Raises:
            ExportError: There is no such column.
        """
        from negtemp_data.export.torch_rows import TorchRows  # noqa: PLC0415

        chosen = list(columns or ROW_SCHEMA.names)
        for column in chosen:
            if column not in ROW_SCHEMA.names:
                raise ExportError(
                    f"column {column!r}: must be one of {', '.join(ROW_SCHEMA.names)}."
                )
        return TorchRows(self._store, self._names, chosen, seed)

    @cached_property
    def _table(self) -> pa.Table:
        shards = map(self._store.load, self._names)
        tables = [pa.ipc.open_stream(shard).read_all() for shard in shards]
        # Each shard's schema carries an account of its own.
        return pa.concat_tables(table.replace_schema_metadata() for table in tables)


def open_dataset(out: str | os.PathLike[str]) -> CommittedRows:
    """Opens the committed rows of the output `out`, a folder or a URI.

    Raises:
        OutputError: The folder is no output.
        ExportError: Nothing is committed there yet.
    """
    output = Output(out)
    output.read_fingerprint()
    shards = output.committed_shards()
    if not shards:
        raise ExportError(f"{output.root}: no shard is committed yet.")
    return CommittedRows(output.store, [shard_name(index) for index in shards])
