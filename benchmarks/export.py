"""Memory and speed of exports, at two sizes of the same data set: memory has to stay flat.

    negtemp run jobs/quickstart.yaml && python benchmarks/export.py out/quickstart [ROWS]

The rows of the output are repeated under other ids until there are 100,000 and ROWS
(1,000,000 by default), committed as shards, and exported by `negtemp export` in a process of its
own. Anonymous memory is what the process has taken for itself; pages of mapped shards are not in
it. Needs about 4 kB of disk a row, in a temporary folder (TMPDIR moves it).
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from negtemp_data.prompts.plan import Plan
from negtemp_data.storage import (
    ROW_SCHEMA,
    Output,
    ShardAccount,
    commit_shard,
    describe_shard,
    read_batches,
    write_entry,
)
from negtemp_data.storage.account import attach_account

COPIES_PER_SHARD = 40
FORMATS = {
    "sft": [],
    "sft-tokens": ["--all"],
    "dpo": [],
    "kto": [],
    "unlikelihood": [],
    "parquet": [],
    "jsonl": [],
}
WARM_UP = 0.2
"""Share of the time after which memory should not grow any more."""


def prefixed(table, prefix):
    """The table with other ids; the prompts stay, since their tokens are counted."""
    for column in ("id", "prompt_id"):
        texts = pc.binary_join_element_wise(prefix, table[column], "-")
        table = table.set_column(table.schema.get_field_index(column), column, texts)
    return table.cast(ROW_SCHEMA)


def add_up(entries, shard, n_rows):
    """The account of a shard that holds all rows of `entries`, repeated."""
    total = Counter()
    for entry in entries:
        total.update({"planned": entry.planned, "generated_tokens": entry.generated_tokens})
        for arm in entry.counts:
            for field in ("accepted_at_once", "injections", "score_sum", "scored"):
                total[field, arm] += getattr(entry, field)[arm]
            for status, n in entry.counts[arm].items():
                total["counts", arm, status] += n
    total = {key: n * COPIES_PER_SHARD for key, n in total.items()}
    arms = entries[0].counts
    parts = ("accepted_at_once", "injections", "score_sum", "scored")
    return ShardAccount(
        shard=shard,
        rows=n_rows,
        planned=total["planned"],
        counts={arm: {s: total["counts", arm, s] for s in arms[arm]} for arm in arms},
        generated_tokens=total["generated_tokens"],
        seconds=0.0,
        **{field: {arm: total[field, arm] for arm in arms} for field in parts},
    )


def repeat(source, folder, n_rows):
    """An output with about `n_rows` rows like those of `source`."""
    old = source.committed_shards()
    base = pa.Table.from_batches([b for i in old for b in read_batches(source, i)], ROW_SCHEMA)
    entries = [describe_shard(source, i) for i in old]
    output = Output(folder)
    output.create()
    output.write_job(source.read_job())
    output.write_fingerprint(source.read_fingerprint())
    n_shards = -(-n_rows // (base.num_rows * COPIES_PER_SHARD))
    for shard in range(n_shards):
        names = [str(shard * COPIES_PER_SHARD + copy) for copy in range(COPIES_PER_SHARD)]
        table = pa.concat_tables(prefixed(base, name) for name in names)
        account = add_up(entries, shard, table.num_rows)
        commit_shard(output, shard, attach_account(table, account))
        write_entry(output, describe_shard(output, shard))
    plan = Plan(1, 0, n_shards, 1, dict.fromkeys(entries[0].counts, 1))
    output.run.replace("plan.json", plan.to_json().encode())
    return output, base.num_rows * COPIES_PER_SHARD * n_shards


def anonymous_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(output, dest, name, options):
    """Rows written, seconds, and peak memory in the first fifth and in the rest of the time."""
    command = [sys.executable, "-m", "negtemp_data", "export", output.root, str(dest)]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--format", name, *options, "--json"], stdout=subprocess.PIPE
    )
    samples = []
    while process.poll() is None:
        samples.append((time.perf_counter() - start, anonymous_mib(process.pid)))
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    assert process.stdout is not None and process.returncode == 0
    written = sum(json.loads(process.stdout.read())["rows"].values())
    early = max(mib for at, mib in samples if at <= WARM_UP * seconds)
    late = max(mib for at, mib in samples if at > WARM_UP * seconds)
    return written, seconds, early, late


def main(folder, n_rows=1_000_000):
    source = Output(folder)
    print(
        "| format | rows read | rows written | seconds | rows read a second "
        "| peak MiB, first fifth | peak MiB, rest |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    for n in (100_000, n_rows):
        with tempfile.TemporaryDirectory() as scratch:
            output, read = repeat(source, Path(scratch, "out"), n)
            for name, options in FORMATS.items():
                dest = Path(scratch, name)
                written, seconds, early, late = measure(output, dest, name, options)
                print(
                    f"| {' '.join([name, *options])} | {read:,} | {written:,} | {seconds:.0f} "
                    f"| {read / seconds:,.0f} | {early:.0f} | {late:.0f} |",
                    flush=True,
                )
                shutil.rmtree(dest)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
