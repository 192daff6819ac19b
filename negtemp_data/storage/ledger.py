"""The ledger: one small JSON file per committed shard, so that counts need no reading of shards.

A cache of the shard files and nothing more: what is missing in it is read from them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa

from negtemp_data.storage.account import ShardAccount, read_account
from negtemp_data.storage.output import Output, shard_name
from negtemp_data.storage.shards import load_shard, read_batches, read_schema, unreadable_shard


@dataclass(frozen=True)
class ShardEntry(ShardAccount):
    """A shard's account, and its file."""

    checksum: str
    """BLAKE2b (16 bytes, hex) of the file."""
    size_bytes: int
    """Size of the file."""


def describe_shard(output: Output, index: int, data: pa.Buffer | None = None) -> ShardEntry:
    """The entry of a committed shard, from its file; `data` saves loading it again.

    Raises:
        StorageError: The file is missing, damaged, or not the shard of this index.
    """
    data = data or load_shard(output, index)
    schema = read_schema(output, index, data)
    account = read_account(schema, output.store.where(shard_name(index)))
    rows = sum(batch.num_rows for batch in read_batches(output, index, data))
    if (account.shard, account.rows) != (index, rows):
        raise unreadable_shard(
            output,
            index,
            f"it holds {rows} rows and the account of {account.rows} of shard {account.shard}",
        )
    digest = hashlib.blake2b(data, digest_size=16)
    return ShardEntry(**asdict(account), checksum=digest.hexdigest(), size_bytes=data.size)


def write_entry(output: Output, entry: ShardEntry) -> None:
    """Puts a shard into the ledger.

    Raises:
        StorageError: The disk refused.
    """
    output.shards.replace_json(entry_name(entry.shard), asdict(entry))


def read_entry(output: Output, index: int) -> ShardEntry | None:
    """A shard as the ledger has it; None where it has no readable entry."""
    return read_entries(output, [index]).get(index)


def read_entries(output: Output, indices: Iterable[int]) -> dict[int, ShardEntry]:
    """Shards as the ledger has them, without those that have no readable entry."""
    files = output.shards.read_many(map(entry_name, indices))
    entries = (_decode(name, data) for name, data in files.items())
    return {entry.shard: entry for entry in entries if entry is not None}


def _decode(name: str, data: bytes) -> ShardEntry | None:
    try:
        entry = ShardEntry(**json.loads(data))
    except (ValueError, TypeError, AttributeError):
        return None
    return entry if entry_name(entry.shard) == name else None


def read_ledger(output: Output) -> dict[int, ShardEntry]:
    """Every committed shard, in order, read from its file where the ledger does not know it.

    Writes nothing, so it serves readers of a run in progress.

    Raises:
        StorageError: A shard that has to be read is damaged.
    """
    return _complete(output, read_entries(output, ledger_shards(output)))


def rebuild_ledger(output: Output) -> dict[int, ShardEntry]:
    """Makes the ledger match the shard files, and returns it. Call it with the lock held.

    Raises:
        StorageError: A shard that has to be read is damaged, or the disk refused.
    """
    listed = ledger_shards(output)
    known = read_entries(output, listed)
    entries = _complete(output, known)
    for index, entry in entries.items():
        if known.get(index) != entry:
            write_entry(output, entry)
    output.shards.remove(entry_name(index) for index in listed if index not in entries)
    return entries


def _complete(output: Output, known: Mapping[int, ShardEntry]) -> dict[int, ShardEntry]:
    """Every committed shard, in order; those of `known` are read again if their size differs."""
    entries = {}
    for index, size_bytes in output.shard_sizes().items():
        entry = known.get(index)
        if entry is None or entry.size_bytes != size_bytes:
            entry = describe_shard(output, index)
        entries[index] = entry
    return entries


def ledger_shards(output: Output) -> list[int]:
    """Indices of the shards that the ledger has a file for, in order."""
    names = (name.removesuffix(".json") for name in output.shards.entries())
    return sorted(int(name) for name in names if name.isdecimal())


def entry_name(index: int) -> str:
    """The ledger's file for a shard, in its folder."""
    return f"{index:05d}.json"
