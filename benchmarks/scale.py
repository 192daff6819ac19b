"""Runs of many rows on engines that only sleep: what orchestration costs, and how memory grows.

    python benchmarks/scale.py                                   # everything: two hours, two cores
    python benchmarks/scale.py run FOLDER --rows 1000000 --shard-rows 1000 --until 0.5
    python benchmarks/scale.py run FOLDER --rows 1000000 --shard-rows 1000     # goes on
    python benchmarks/scale.py check FOLDER --rows 1000000 --shard-rows 1000
    python benchmarks/scale.py board                             # 1,000 workers' reports
    python benchmarks/scale.py draw FOLDER                       # tables, and results/scale.svg

Everything but the engine is the product: plan, Ray, four workers with prompts that are encoded,
vLLM's request parameters, rows that are kept and committed, ledger, layout and card. A request to
the engine is answered by 16 tokens, one of them injected, at the end of a sleep of 50 ms that all
requests share. With `--canned` rows are not even encoded, requested, decoded and checked, so that
shards come as fast as Ray and the disk take them. One sample a prompt. Memory is what processes
have taken for themselves (RssAnon), read every half second; that of workers is the largest of four.
"""

import argparse
import asyncio
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np
import psutil

from negtemp_data import api
from negtemp_data.engine.engine import Generation
from negtemp_data.engine.steps import StepLog
from negtemp_data.jobspec import load_job
from negtemp_data.judging import Verdict
from negtemp_data.pipeline import actors, pool
from negtemp_data.pipeline.board import Board
from negtemp_data.pipeline.maker import (
    ShardMaker,
    _blank_row,
    _generation_columns,
    _verdict_columns,
)
from negtemp_data.pipeline.progress import RowCounts, Work
from negtemp_data.prompts import row_seed
from negtemp_data.sampling import Injection, Trace
from negtemp_data.storage import Output

SIZES = (10_000, 100_000, 1_000_000)
SHARD_ROWS, DEFAULT_SHARD_ROWS = 1000, 256
WORKERS = 4
STEP_S, TOKENS = 0.05, 16
LOOK_EVERY_S = 0.5
RESULTS = Path(__file__).parent / "results"

JOB = """
version: 1
name: scale
seed: 3
prompts: {{source: {prompts}, id: id}}
generate:
  model: smollm2-135m-instruct
  max_tokens: {tokens}
  samples: {{negative: 1}}
  replicas: {workers}
schedules:
  negative: {{inject: [{{when: {{every: 8, start: 4}}, temperature: -1.0}}]}}
verify: {{checks: [{{kind: length, min_tokens: 8}}]}}
output: {{path: {out}, shard_rows: {shard_rows}}}
"""


ANSWER = Generation(
    token_ids=list(range(1000, 1000 + TOKENS)),
    logprobs=np.full(TOKENS, -1.5, np.float32),
    ranks=np.ones(TOKENS, np.int32),
    text=None,
    finish_reason="length",
    trace=Trace([Injection(4, 1004, 7, -1.0, 5, -2.5, 4, 1.5, 0)], 0),
)


class SleepingEngine:
    """What workers need of an engine, without a model."""

    max_model_len, max_num_seqs, vocab_size = 2048, 256, 49152

    def __init__(self, spec):
        from transformers import AutoTokenizer

        self.model_path = spec.model_path
        self.tokenizer = AutoTokenizer.from_pretrained(spec.model_path)
        self.steps = StepLog()
        self._inbox = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def submit(self, prompt_token_ids, params, *, use_lora=False):
        future = Future()
        self._inbox.put(future)
        return future

    def _serve(self):
        while True:
            batch = [self._inbox.get()]
            time.sleep(STEP_S)
            with suppress(queue.Empty):
                while True:
                    batch.append(self._inbox.get(block=False))
            self.steps += StepLog.of_step(len(batch), 0, STEP_S, self.max_num_seqs)
            for future in batch:
                future.set_result(ANSWER)


class SleepingActor(pool.GeneratorActor):
    """The product's worker on such an engine."""

    def __init__(self, *arguments):
        actors.Engine = SleepingEngine
        super().__init__(*arguments)


class CannedMaker(ShardMaker):
    """Makes rows without encoding, requests, decoding and checks."""

    def _encode(self, prompt):
        return [1] * 20

    async def _make_row(self, prompt, token_ids, planned, old, earlier, twin, listener):
        await asyncio.sleep(STEP_S)
        seed = row_seed(self._job.seed, prompt.id, planned.sample)
        row = _blank_row(prompt, planned, seed, 0, []) | _generation_columns(ANSWER, "x " * TOKENS)
        return row | _verdict_columns(Verdict("accepted"))


class CannedActor(SleepingActor):
    """A worker that makes such rows."""

    def __init__(self, *arguments):
        actors.ShardMaker = CannedMaker
        super().__init__(*arguments)


class Notes:
    """A reporter that writes down when what began."""

    def __init__(self, path):
        self._file = path.open("a", buffering=1)

    def note(self, text):
        self._file.write(json.dumps({"time": time.time(), "note": text}) + "\n")

    def progress(self, progress):
        pass

    def warn(self, text):
        self.note(text)


def drive(folder, is_canned):
    """The driver's process: makes the job in `folder`, or goes on with it."""
    pool.GeneratorActor = CannedActor if is_canned else SleepingActor
    job = load_job(str(folder / "job.yaml"))
    notes = Notes(folder / "notes.jsonl")
    notes.note("begin")
    if Output(job.output.path).exists():
        api.resume(job.output.path, reporter=notes)
    else:
        api.run(job, reporter=notes)


def prepare(folder, rows, shard_rows, is_canned):
    """The folder of one size and kind, its prompts and job written if missing."""
    kind = "canned" if is_canned else "encoded"
    folder = folder.absolute() / f"{rows}-{shard_rows}-{kind}"
    if not (folder / "job.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        prompts = folder / "prompts.jsonl"
        with prompts.open("w") as file:
            for i in range(rows):
                text = f"Tell me in two or three sentences what you know about the number {i}."
                file.write(json.dumps({"id": f"p{i}", "prompt": text}) + "\n")
        fields = {"prompts": prompts, "out": folder / "out", "shard_rows": shard_rows}
        text = JOB.format(**fields, tokens=TOKENS, workers=WORKERS)
        (folder / "job.yaml").write_text(text)
    return folder


def anonymous_mib(pid):
    """What a process has taken for itself."""
    with open(f"/proc/{pid}/status") as file:
        kib = next(line.split()[1] for line in file if line.startswith("RssAnon"))
    return int(kib) / 1024


def look(driver):
    """MiB of the driver, of the largest worker, of the board, and of Ray's own two servers."""
    found = dict.fromkeys(("driver", "worker", "board", "gcs_server", "raylet"), 0.0)
    for process in [driver, *driver.children(recursive=True)]:
        with suppress(psutil.Error, OSError, StopIteration):
            title = " ".join(process.cmdline()[:1])
            kind = process.name()
            if process.pid == driver.pid:
                kind = "driver"
            elif any(actor.__name__ in title for actor in (SleepingActor, CannedActor)):
                kind = "worker"
            elif "Board" in title:
                kind = "board"
            if kind in found:
                found[kind] = max(found[kind], anonymous_mib(process.pid))
    return found


def run(folder, rows, shard_rows, until=1.0, longest_s=float("inf"), is_canned=False):
    """One process of a run, stopped once a share of the shards is committed; measures it."""
    folder = prepare(folder, rows, shard_rows, is_canned)
    output = Output(folder / "out")
    n_shards = -(-rows // shard_rows)
    before = len(output.committed_shards())
    stop_at = n_shards if until >= 1 else int(n_shards * until)
    begun = time.time()
    log = (folder / "driver.log").open("ab")
    driver = psutil.Popen(
        [sys.executable, __file__, "drive", str(folder), *["--canned"] * is_canned],
        stdout=log,
        stderr=log,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    series, is_stopped = [], False
    while driver.poll() is None:
        n = len(output.committed_shards())
        series.append({"seconds": time.time() - begun, "shards": n, **look(driver)})
        is_late = time.time() - begun > longest_s
        if (is_late or n >= stop_at < n_shards) and not is_stopped:
            driver.send_signal(signal.SIGINT)
            is_stopped = True
        time.sleep(LOOK_EVERY_S)
    measure(folder, rows, shard_rows, begun, before, series, is_canned)


def measure(folder, rows, shard_rows, begun, before, series, is_canned):
    """Adds what was measured to measures.jsonl."""
    out = folder / "out"
    notes = [json.loads(line) for line in (folder / "notes.jsonl").open()]
    at = {note["note"]: note["time"] for note in notes if note["time"] >= begun}
    events = [json.loads(line) for line in (out / "_run" / "events.jsonl").open()]
    for event in events:
        event["time"] = datetime.fromisoformat(event["time"]).timestamp()
    events = [event for event in events if event["time"] >= begun]
    ready = next(event["time"] for event in events if event["event"] == "engine_ready")
    commits = [event["time"] for event in events if event["event"] == "shard_committed"]
    made = len(commits) * shard_rows
    started = at["starting Ray and the engine"]
    record = {
        "rows": rows,
        "shard_rows": shard_rows,
        "is_canned": is_canned,
        "shards_before": before,
        "shards_made": len(commits),
        "import_s": at["begin"] - begun,
        "plan_s": started - at.get("planning", at["begin"]),
        "prepare_s": started - at["begin"],
        "start_s": ready - started,
        "first_commit_s": commits[0] - begun,
        "make_s": commits[-1] - ready,
        "rows_per_s": made / (commits[-1] - ready),
        "peaks": {
            kind: max(each[kind] for each in series)
            for kind in ("driver", "worker", "board", "gcs_server", "raylet")
        },
        "series": series,
    }
    write_measure(folder, record)
    print(json.dumps({key: value for key, value in record.items() if key != "series"}, indent=1))


def check(folder, rows, shard_rows, is_canned):
    """Measures `negtemp check`, `negtemp status` and the size of the output."""
    folder = prepare(folder, rows, shard_rows, is_canned)
    out = folder / "out"
    record = {"rows": rows, "shard_rows": shard_rows}
    for command in ("check", "status"):
        begun = time.time()
        process = psutil.Popen(
            [sys.executable, "-m", "negtemp_data", command, str(out)], stdout=subprocess.PIPE
        )
        peak = 0.0
        while process.poll() is None:
            with suppress(OSError, StopIteration):
                peak = max(peak, anonymous_mib(process.pid))
            time.sleep(0.05)
        assert process.returncode == 0, process.stdout.read()
        record |= {f"{command}_s": time.time() - begun, f"{command}_mib": peak}
    record["bytes"] = sum(path.stat().st_size for path in out.glob("*.arrow"))
    write_measure(folder, record)
    print(json.dumps(record))


def load_board(n_workers=1000, n_reports=10_000):
    """Reports a second that the board takes from one process, and what it costs to read it."""
    import ray

    ray.init(include_dashboard=False, log_to_driver=False)
    board = ray.remote(Board).options(num_cpus=0).remote()
    arms = {"control": RowCounts(accepted=100), "negative": RowCounts(rejected=100)}
    begun = time.monotonic()
    for i in range(n_reports):
        worker = i % n_workers
        shards = {4 * worker + each: arms for each in range(4)}
        last = board.report.remote(f"10.0.0.1-{worker}", shards, Work(1, Counter(negative=1)))
    ray.get(last)
    print(f"{n_reports / (time.monotonic() - begun):,.0f} reports/s")
    begun = time.monotonic()
    for _ in range(10):
        ray.get(board.read.remote())
    print(f"{n_workers} workers with 4 shards: read in {(time.monotonic() - begun) / 10:.3f} s")
    ray.shutdown()


def write_measure(folder, record):
    with (folder.parent / "measures.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def print_table(titles, lines):
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for cells in lines:
        print("| " + " | ".join(map(str, cells)) + " |")


def draw(folder):
    """The tables in markdown, and the curve."""
    measures = [json.loads(line) for line in (folder / "measures.jsonl").open()]
    runs = [m for m in measures if "series" in m]
    titles = [
        "kind",
        "rows",
        "a shard",
        "before",
        "made",
        "plan s",
        "prepare s",
        "start s",
        "rows/s",
    ]
    lines = []
    for m in runs:
        kind = "canned" if m["is_canned"] else "encoded"
        cells = [kind, f"{m['rows']:,}", m["shard_rows"], m["shards_before"], m["shards_made"]]
        cells += [f"{m[name]:.1f}" for name in ("plan_s", "prepare_s", "start_s")]
        cells += [f"{m['rows_per_s']:,.0f}", *(f"{peak:.0f}" for peak in m["peaks"].values())]
        lines.append(cells)
    print_table([*titles, *(f"{kind} MiB" for kind in runs[0]["peaks"])], lines)
    print()
    titles = ["rows", "a shard", "check s", "check MiB", "status s", "bytes a row"]
    print_table(
        titles,
        (
            [
                f"{m['rows']:,}",
                m["shard_rows"],
                *(f"{m[name]:.1f}" for name in ("check_s", "check_mib", "status_s")),
                round(m["bytes"] / m["rows"]),
            ]
            for m in measures
            if "check_s" in m
        ),
    )
    draw_curve(runs)


def draw_curve(runs):
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "negtemp-data", "figure.facecolor": "white"}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, kind in zip(axes, ("driver", "worker"), strict=True):
        for m in runs:
            series = [s for s in m["series"] if s[kind] and s["shards"] > m["shards_before"]]
            if not series:
                continue
            series = series[:: max(1, len(series) // 60)]
            row_kind = "canned" if m["is_canned"] else "encoded"
            begin = "resumed" if m["shards_before"] else "begun"
            axis.plot(
                [each["shards"] * m["shard_rows"] for each in series],
                [each[kind] for each in series],
                label=f"{m['rows']:,}, {m['shard_rows']:,} a shard, {row_kind}, {begin}",
            )
        axis.set(title=kind, xlabel="rows committed", ylim=(0, None))
        axis.set_xscale("log")
    axes[0].set_ylabel("MiB taken for itself")
    for axis in axes:
        axis.legend(fontsize=6, loc="lower right")
    figure.savefig(RESULTS / "scale.svg", metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", nargs="?", choices=("run", "check", "draw", "board", "drive"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=SIZES[0])
    parser.add_argument("--shard-rows", type=int, default=SHARD_ROWS)
    parser.add_argument("--until", type=float, default=1.0, help="share of the shards")
    parser.add_argument("--canned", action="store_true", help="rows without encoding and checks")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="longest time")
    options = parser.parse_args()
    size = (options.rows, options.shard_rows)
    match options.step:
        case "drive":
            drive(options.folder, options.canned)
        case "run":
            run(options.folder, *size, options.until, options.seconds, options.canned)
        case "check":
            check(options.folder, *size, options.canned)
        case "board":
            load_board()
        case "draw":
            draw(options.folder)
        case None:
            with tempfile.TemporaryDirectory() as folder:
                measure_all(Path(folder))


def measure_all(folder):
    for is_canned in (False, True):
        for rows in SIZES:
            for shard_rows in (SHARD_ROWS, DEFAULT_SHARD_ROWS):
                if rows > SIZES[0]:  # the smallest is through before it can be stopped
                    run(folder, rows, shard_rows, 0.5, is_canned=is_canned)
                run(folder, rows, shard_rows, is_canned=is_canned)
                check(folder, rows, shard_rows, is_canned)
    load_board()
    draw(folder)


if __name__ == "__main__":
    main()
