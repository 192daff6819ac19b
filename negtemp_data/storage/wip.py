"""Rows of shards that are not finished: written every few seconds, read on resume.

Each write is a file of its own, named by the digest of its bytes: it can't be mistaken for whole
when it is not, writers can't get in each other's way, and a store that can't append will do. The
shard's commit makes them superfluous.
"""

import hashlib
import threading
from contextlib import suppress
from typing import Any, NamedTuple

import pyarrow as pa

from negtemp_data.errors import StorageError
from negtemp_data.storage.output import Output
from negtemp_data.storage.schema import ROW_SCHEMA, rows_to_table
from negtemp_data.storage.shards import encode_shard
from negtemp_data.storage.store import Store

_SUFFIX = ".arrow"


class WipRows(NamedTuple):
    """What is known of the rows of an unfinished shard, by row id."""

    done: dict[str, dict[str, Any]]
    """Rows that have their verdict."""
    generated: dict[str, dict[str, Any]]
    """Rows that are generated and not yet verified; status and all that a verdict says is None."""
    damaged: list[str]
    """Files that are not what was written; their rows are made again."""


class WipWriter:
    """Keeps the rows of one shard; safe to use from several threads."""

    def __init__(self, output: Output, shard: int) -> None:
        """Writes nothing yet."""
        self._output = output
        self._shard = shard
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._rows: dict[str, dict[str, Any]] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Takes a row that is generated, or one that is done."""
        with self._lock:
            self._rows[row["id"]] = dict(row)  # who made it goes on writing to it

    def flush(self) -> int:
        """Writes what was added since the last time; returns the number of rows.

        Raises:
            StorageError: The disk refused, or a row does not fit the schema.
        """
        with self._writing:
            with self._lock:
                rows, self._rows = self._rows, {}
            try:
                if rows:
                    self._write(rows)
            except StorageError:
                with self._lock:  # for the next time, unless they have changed
                    self._rows = rows | self._rows
                raise
        return len(rows)

    def _write(self, rows: dict[str, dict[str, Any]]) -> None:
        blank = dict.fromkeys(ROW_SCHEMA.names)
        table = rows_to_table((blank | row for row in rows.values()), may_lack_verdict=True)
        data = encode_shard(table)
        folder = _folder(self._output, self._shard)
        folder.make()
        folder.create(f"{_digest(data)}{_SUFFIX}", data)

    def discard(self) -> None:
        """Forgets what is not written, and removes the rest: the shard is committed."""
        with self._writing:  # or a file that is just being written would outlive it
            with self._lock:
                self._rows = {}
            remove_wip(self._output, self._shard)


def read_wip(output: Output, shard: int) -> WipRows:
    """The rows of a shard that were kept, each in its latest state."""
    found = WipRows({}, {}, [])
    folder = _folder(output, shard)
    names = [name for name in folder.entries() if name.endswith(_SUFFIX)]
    files = folder.read_many(names)
    for name in names:
        data = files.get(name, b"")
        if _digest(data) != name.removesuffix(_SUFFIX):
            found.damaged.append(name)
            continue
        for row in pa.ipc.open_stream(data).read_all().to_pylist():
            _keep_latest(found.generated if row["status"] is None else found.done, row)
    for row_id in found.done.keys() & found.generated.keys():
        # A row with a verdict is the last of its attempts.
        del found.generated[row_id]
    return found


def remove_wip(output: Output, shard: int) -> None:
    """Removes what was kept of a shard, as far as that is possible; it does no harm."""
    with suppress(StorageError):
        output.wip.remove_tree(f"{shard:05d}")


def wip_shards(output: Output) -> list[int]:
    """Shards of which rows are kept."""
    return sorted(int(name) for name in output.wip.entries() if name.isdecimal())


def _keep_latest(rows: dict[str, dict[str, Any]], row: dict[str, Any]) -> None:
    known = rows.setdefault(row["id"], row)
    if row["attempt"] > known["attempt"]:
        rows[row["id"]] = row


def _folder(output: Output, shard: int) -> Store:
    return output.wip.at(f"{shard:05d}")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
