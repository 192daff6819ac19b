"""The ledger: one small JSON file per committed shard, so that counts need no reading of shards.

A cache of the shard files and nothing more: what is missing in it is read from them.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from negtemp_data.storage.account import ShardAccount, read_account
from negtemp_data.storage.output import Output
from negtemp_data.storage.shards import read_batches, read_schema, unreadable_shard


@dataclass(frozen=True)
class ShardEntry(ShardAccount):
    """A shard's account, and its file."""

    checksum: str
    """BLAKE2b (16 bytes, hex) of the file."""
    size_bytes: int
    """Size of the file."""


def describe_shard(output: Output, index: int) -> ShardEntry:
    """The entry of a committed shard, from its file.

    Raises:
        StorageError: The file is missing, damaged, or not the shard of this index.
    """
    path = output.shard_path(index)
    account = read_account(read_schema(output, index), path)
    rows = sum(batch.num_rows for batch in read_batches(output, index))
    if (account.shard, account.rows) != (index, rows):
        raise unreadable_shard(
            output,
            index,
            f"it holds {rows} rows and the account of {account.rows} of shard {account.shard}",
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        size_bytes = file.tell()
    return ShardEntry(**asdict(account), checksum=digest.hexdigest(), size_bytes=size_bytes)


def write_entry(output: Output, entry: ShardEntry) -> None:
    """Puts a shard into the ledger.

    Raises:
        StorageError: The disk refused.
    """
    output.write_json(entry_path(output, entry.shard), asdict(entry))


def read_entry(output: Output, index: int) -> ShardEntry | None:
    """A shard as the ledger has it; None where it has no readable entry."""
    try:
        data = json.loads(entry_path(output, index).read_bytes())
        entry = ShardEntry(**data)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return entry if entry.shard == index else None


def read_ledger(output: Output) -> dict[int, ShardEntry]:
    """Every committed shard, in order, read from its file where the ledger does not know it.

    Writes nothing, so it serves readers of a run in progress.

    Raises:
        StorageError: A shard that has to be read is damaged.
    """
    entries = {}
    for index in output.committed_shards():
        entry = read_entry(output, index)
        if entry is None or entry.size_bytes != output.shard_path(index).stat().st_size:
            entry = describe_shard(output, index)
        entries[index] = entry
    return entries


def rebuild_ledger(output: Output) -> dict[int, ShardEntry]:
    """Makes the ledger match the shard files, and returns it. Call it with the lock held.

    Raises:
        StorageError: A shard that has to be read is damaged, or the disk refused.
    """
    entries = read_ledger(output)
    for index, entry in entries.items():
        if read_entry(output, index) != entry:
            write_entry(output, entry)
    for index in ledger_shards(output):
        if index not in entries:
            entry_path(output, index).unlink()
    return entries


def ledger_shards(output: Output) -> list[int]:
    """Indices of the shards that the ledger has a file for, in order."""
    stems = (path.stem for path in output.shards.glob("*.json"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def entry_path(output: Output, index: int) -> Path:
    """The ledger's file for a shard."""
    return output.shards / f"{index:05d}.json"
