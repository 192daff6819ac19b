"""An export from start to end: committed rows, format, splits, files, card, place.

One prompt's rows are in memory at a time, and one row group of each split. The same output and
options give the same bytes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import groupby
from pathlib import Path

from negtemp_data.errors import ExportError
from negtemp_data.export.base import IDENTITY_COLUMNS, Row
from negtemp_data.export.card import write_card
from negtemp_data.export.files import JsonlWriter, ParquetWriter, SplitWriter
from negtemp_data.export.request import ExportRequest, ExportResult
from negtemp_data.export.staging import check_destination, staged_folder
from negtemp_data.prompts import load_plan
from negtemp_data.storage import ROW_SCHEMA, ShardEntry, read_batches, read_ledger, summarise


def export_output(
    request: ExportRequest, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> ExportResult:
    """Exports the rows that are committed now.

    Args:
        request: What and where.
        on_progress: Told after each shard: rows read, and rows in all shards.

    Raises:
        ExportError: Nothing to export, or it can't be in this form or place; nothing was left.
        StorageError: A shard is damaged, or the disk refused; nothing was left.
    """
    output = request.output
    check_destination(request.dest)
    _check_arms(request)
    plan, entries = load_plan(output.run), read_ledger(output)
    if not entries:
        raise ExportError(
            f"{output.root}: no shard is committed yet; `negtemp resume {output.root}` makes them."
        )
    with staged_folder(request.dest) as folder:
        counts, n_files = _write_data(request, folder, entries, on_progress)
        _check_counts(request, counts, sum(entry.rows for entry in entries.values()))
        result = ExportResult(
            rows={name: counter.total() for name, counter in counts.items()},
            kinds={
                kind: {name: counts[name][kind] for name in counts}
                for kind in sorted(set().union(*counts.values()))
            },
            files=n_files,
            committed_shards=len(entries),
            planned_shards=plan.n_shards if plan else None,
        )
        write_card(folder, request, result, summarise(entries))
    return result


def _write_data(
    request: ExportRequest,
    folder: Path,
    entries: Mapping[int, ShardEntry],
    on_progress: Callable[[int, int], None],
) -> tuple[dict[str, Counter[str]], int]:
    """Writes all records; their number by split and kind, and the number of files."""
    data = folder / "data"
    data.mkdir()
    counts = {name: Counter[str]() for name in request.split.names}
    total, done = sum(entry.rows for entry in entries.values()), 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(closing(_open_writer(request, data, name)))
            for name in request.split.names
        }
        for index, entry in entries.items():
            for siblings in _read_prompts(request, index):
                split = request.split.assign(siblings[0])
                for record in request.format.convert(siblings):
                    writers[split].write(record.values)
                    counts[split][record.kind] += 1
            done += entry.rows
            on_progress(done, total)
    return counts, sum(writer.n_files for writer in writers.values())


def _check_arms(request: ExportRequest) -> None:
    known = list(request.format.job.generate.samples)
    for arm in request.arms:
        if arm not in known:
            raise ExportError(f"--arm {arm}: the job has no such arm; it has {', '.join(known)}.")


def _open_writer(request: ExportRequest, folder: Path, split: str) -> SplitWriter:
    if request.format.suffix == "jsonl":
        return JsonlWriter(folder, split)
    return ParquetWriter(folder, split, request.format.schema)


def _read_prompts(request: ExportRequest, shard: int) -> Iterator[Sequence[Row]]:
    """Rows of one prompt after the other; a shard holds whole prompts, in the plan's order."""
    needed = {*IDENTITY_COLUMNS, *request.format.columns}
    columns = [name for name in ROW_SCHEMA.names if name in needed]
    batches = read_batches(request.output, shard)
    rows = (row for batch in batches for row in batch.select(columns).to_pylist())
    wanted = (row for row in rows if not request.arms or row["arm"] in request.arms)
    for _, siblings in groupby(wanted, key=lambda row: row["prompt_id"]):
        yield list(siblings)


def _check_counts(request: ExportRequest, counts: dict[str, Counter[str]], total: int) -> None:
    if not any(counts.values()):
        raise ExportError(
            f"{request.output.root}: none of the {total} committed rows gives a row of "
            f"{request.format_name}; `negtemp status {request.output.root}` shows how many were "
            "accepted."
        )
    for name, counter in counts.items():
        # `datasets` can't load a split without rows.
        if not counter:
            raise ExportError(
                f"--split: no row fell into {name!r}; give it a larger share, or leave it out."
            )
