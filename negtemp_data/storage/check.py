"""Integrity of an output: is every committed row there, once, unchanged and accounted for?

Reads shard by shard and writes nothing. A run that writes at the same time may be caught between
a commit and the files that list it.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from negtemp_data.errors import StorageError, quote
from negtemp_data.storage.layout import describes_columns
from negtemp_data.storage.ledger import (
    ShardEntry,
    describe_shard,
    entry_name,
    ledger_shards,
    read_entries,
)
from negtemp_data.storage.output import INFO_FILE, STATE_FILE, Output, shard_name
from negtemp_data.storage.schema import ROW_SCHEMA
from negtemp_data.storage.shards import load_shard, read_batches, read_schema, unreadable_shard
from negtemp_data.storage.summary import summarise

_DIGEST = np.dtype("<u8")
"""Two ids of a billion have the same one with a probability of 3%; then the ids themselves are
compared."""
_NAMED_IDS = 10
"""Most duplicate ids that are named; the rest is counted."""


@dataclass(frozen=True)
class CheckReport:
    """What a check found. planned = accepted + rejected + failed + not yet done."""

    shards: int
    """Committed shards that can be read."""
    rows: int
    """Rows in them."""
    planned: int
    """Rows of the plan, as far as it is known."""
    accepted: int
    """Planned rows that passed."""
    rejected: int
    """Planned rows that did not pass."""
    failed: int
    """Planned rows that could not be made or judged."""
    not_done: int | None
    """Planned rows of shards that are missing or unreadable; None where the plan is not known."""
    problems: list[str]
    """One line each: what is wrong, and how to mend it."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. An unfinished output is not wrong."""
        return not self.problems


def check_output(
    output: Output,
    plan_rows: Callable[[int], list[str]] | None = None,
    n_shards: int | None = None,
) -> CheckReport:
    """Checks all shards, and that ledger and layout agree with them.

    Memory: one shard, and a digest of 8 bytes a row to find ids that occur twice.

    Args:
        output: What to check.
        plan_rows: Gives the ids of a shard's planned rows, in order; None: ids are not compared.
        n_shards: Shards of the plan; None: not known.

    Raises:
        OutputError: The folder is no output.
    """
    keeps_all = output.read_fingerprint().job["output"]["keep"] == "all"
    committed = output.committed_shards()
    entries: dict[int, ShardEntry] = {}
    digests = bytearray()  # of all ids, one after the other
    problems: list[str] = []
    for index in committed:
        if n_shards is not None and index >= n_shards:
            problems.append(
                f"{shard_name(index)}: the plan has only {n_shards} shards; delete this file."
            )
            continue
        try:
            data = load_shard(output, index)
            entry = describe_shard(output, index, data)
            ids, counts = _read_rows(output, index, data)
        except StorageError as error:
            problems.append(str(error))
            continue
        entries[index] = entry
        for row_id in ids:
            digests += _digest(row_id)
        found = [*_compare_counts(entry, counts, keeps_all)]
        if plan_rows:
            found += _compare_plan(entry, ids, plan_rows(index), keeps_all)
        problems += [f"{shard_name(index)}: {what}; {_mend_shard(output)}." for what in found]
    problems += _compare_ledger(output, entries, committed)
    problems += _compare_layout(output, committed)
    problems += _name_duplicates(output, entries, _find_repeated(digests))
    return _report(entries, problems, _count_missing(entries, plan_rows, n_shards))


def _mend_shard(output: Output) -> str:
    return f"delete this file, then `negtemp resume {output.root}` makes its rows again"


def _read_rows(
    output: Output, index: int, data: pa.Buffer
) -> tuple[list[str], Counter[tuple[str, str]]]:
    """Ids of a shard's rows, and how many rows each arm and status has."""
    if not read_schema(output, index, data).equals(ROW_SCHEMA):
        raise unreadable_shard(output, index, "its columns are not those of this version")
    ids: list[str] = []
    counts: Counter[tuple[str, str]] = Counter()
    for batch in read_batches(output, index, data):
        try:
            batch.validate(full=True)
        except pa.ArrowException as error:
            raise unreadable_shard(output, index, error) from error
        keys = [batch[column] for column in ("id", "arm", "status")]
        if any(column.null_count for column in keys):
            raise unreadable_shard(output, index, "a row lacks its id, arm or status")
        ids += keys[0].to_pylist()
        counts.update(zip(keys[1].to_pylist(), keys[2].to_pylist(), strict=True))
    return ids, counts


def _compare_counts(
    entry: ShardEntry, counts: Counter[tuple[str, str]], keeps_all: bool
) -> Iterator[str]:
    """The account against itself, and against the rows in the file."""
    accounted = {
        (arm, status): count
        for arm, statuses in entry.counts.items()
        for status, count in statuses.items()
    }
    if sum(accounted.values()) != entry.planned:
        yield f"accounts for {sum(accounted.values())} of {entry.planned} planned rows"
    for arm, status in sorted(accounted.keys() | counts.keys()):
        is_kept = keeps_all or status == "accepted"
        expected = accounted.get((arm, status), 0) if is_kept else 0
        if counts[arm, status] != expected:
            yield (
                f"holds {counts[arm, status]} rows of arm {quote(arm)} with status "
                f"{quote(status)} instead of {expected}"
            )


def _compare_plan(
    entry: ShardEntry, ids: list[str], planned: list[str], keeps_all: bool
) -> Iterator[str]:
    if entry.planned != len(planned):
        yield f"accounts for {entry.planned} planned rows, but its plan has {len(planned)}"
    held = set(ids)
    unplanned = sorted(held - set(planned))
    missing = sorted(set(planned) - held) if keeps_all else []
    if unplanned:
        yield f"holds {len(unplanned)} rows that are not in its plan, as {quote(unplanned[0])}"
    if missing:
        yield f"lacks {len(missing)} planned rows, as {quote(missing[0])}"
    if not unplanned and not missing and ids != [row_id for row_id in planned if row_id in held]:
        yield "its rows are not once each in the plan's order"


def _compare_ledger(
    output: Output, entries: Mapping[int, ShardEntry], committed: Iterable[int]
) -> Iterator[str]:
    """What the ledger remembers, against the files; what it lacks is no problem."""
    listed = ledger_shards(output)
    remembered = read_entries(output, listed)
    for index, entry in entries.items():
        known = remembered.get(index)
        if known and known.checksum != entry.checksum:
            yield (
                f"{shard_name(index)}: its checksum is {entry.checksum}, but was {known.checksum} "
                f"when it was committed; {_mend_shard(output)}."
            )
        elif known and known != entry:
            yield (
                f"{shard_name(index)}: its ledger entry disagrees with it; delete "
                f"{output.shards.where(entry_name(index))}, which is made again from the shard."
            )
    for index in sorted(set(listed) - set(committed)):
        yield (
            f"{shard_name(index)}: is in the ledger, but the file is gone; put it back, or "
            f"`negtemp resume {output.root}` makes its rows again."
        )


def _compare_layout(output: Output, committed: list[int]) -> Iterator[str]:
    """Whether `load_from_disk` would see exactly the committed shards."""
    listed: list[str] = []
    try:
        state = json.loads(output.store.read(STATE_FILE))
        listed = [file["filename"] for file in state["_data_files"]]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"state.json: can't be read ({error}); `negtemp resume {output.root}` rewrites it."
        return
    if listed != [shard_name(index) for index in committed]:
        yield (
            f"state.json: lists {len(listed)} files, which are not the {len(committed)} committed "
            f"shards in order; `negtemp resume {output.root}` rewrites it."
        )
    if listed and not describes_columns(output):
        yield (f"{INFO_FILE}: is missing or damaged; `negtemp resume {output.root}` rewrites it.")


def _digest(row_id: str) -> bytes:
    return hashlib.blake2b(row_id.encode(), digest_size=_DIGEST.itemsize).digest()


def _find_repeated(digests: bytearray) -> set[bytes]:
    """Digests that occur more than once; those that are given lose their order."""
    ordered = np.frombuffer(digests, _DIGEST)
    ordered.sort()  # in place: any index or table would take more than the digests do
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return {digest.tobytes() for digest in repeated}


def _name_duplicates(output: Output, shards: Iterable[int], repeated: set[bytes]) -> Iterator[str]:
    """Reads the ids once more, since only digests were kept, to say which they are and where."""
    if not repeated:
        return
    named = set(sorted(repeated)[:_NAMED_IDS])
    places: dict[str, list[str]] = defaultdict(list)
    for index in shards:
        for batch in read_batches(output, index):
            for row_id in batch["id"].to_pylist():
                if _digest(row_id) in named:
                    places[row_id].append(shard_name(index))
    for row_id, names in places.items():
        if len(names) == 1:
            continue
        yield (
            f"{', '.join(names)}: the id {quote(row_id)} occurs {len(names)} times; delete the "
            f"shard that should not have it, then run `negtemp resume {output.root}`."
        )
    if len(repeated) > _NAMED_IDS:
        yield f"{len(repeated) - _NAMED_IDS} more ids occur several times; mend them likewise."


def _count_missing(
    entries: Mapping[int, ShardEntry],
    plan_rows: Callable[[int], list[str]] | None,
    n_shards: int | None,
) -> int | None:
    if plan_rows is None or n_shards is None:
        return None
    return sum(len(plan_rows(index)) for index in range(n_shards) if index not in entries)


def _report(
    entries: Mapping[int, ShardEntry], problems: list[str], not_done: int | None
) -> CheckReport:
    totals = summarise(entries).overall
    return CheckReport(
        shards=len(entries),
        rows=sum(entry.rows for entry in entries.values()),
        planned=totals.planned + (not_done or 0),
        accepted=totals.accepted,
        rejected=totals.rejected,
        failed=totals.failed,
        not_done=not_done,
        problems=problems,
    )
