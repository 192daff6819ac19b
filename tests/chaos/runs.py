"""Runs to play faults against: how they are started, watched and judged."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

import psutil

from negtemp_data.storage import Output, read_rows, read_wip, wip_shards

JOB = """
version: 1
name: {name}
seed: 3
prompts: {{source: {prompts}, id: id}}
generate:
  model: {model}
  max_tokens: {max_tokens}
  min_tokens: {max_tokens}
  samples: {{control: 2, negative: 2}}
  engine: {{dtype: float32, max_model_len: 1024, max_num_seqs: 12}}
  replicas: {replicas}
schedules:
  control: {{base: {{temperature: 0.8}}}}
  negative:
    inject: [{{when: {{every: 8}}, temperature: -1.0}}]
verify: {{checks: {checks}}}
output: {{path: {out}, shard_rows: 8}}
"""
# Three shards' rows go through a batch of twelve in two waves, so that some shards are half done.

SAMPLES = 4
DEADLINE_S = 240


def write_job(folder, model, n_prompts, *, max_tokens=100, replicas="1", checks="[]", out=None):
    """The path of a job of `n_prompts` prompts in shards of two."""
    prompts = folder / "prompts.jsonl"
    rows = ({"id": f"p{i}", "prompt": f"Tell me about the number {i}."} for i in range(n_prompts))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "job.yaml"
    fields = {"prompts": prompts, "model": model, "out": out or folder / "out"}
    fields |= {"max_tokens": max_tokens, "replicas": replicas, "checks": checks}
    path.write_text(JOB.format(name=folder.name, **fields))
    return path


class Command(subprocess.Popen):
    """A command line in a session of its own, so that a signal to it is none to the test."""

    def __init__(self, *arguments, **options):
        # A file, because what a killed run leaves behind holds pipes open.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        super().__init__(
            [sys.executable, "-m", "negtemp_data", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            start_new_session=True,
            # A shell starts background jobs with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            **options,
        )

    def said(self):
        """What it has written to stderr."""
        return os.pread(self._stderr.fileno(), 1 << 20, 0).decode()

    def end(self, timeout_s=120):
        """What it said, once it has ended."""
        self.wait(timeout_s)
        with self._stderr:
            return self.said()


def wait_until(condition, process=None, deadline_s=DEADLINE_S):
    """Waits for a condition; a process must live until it holds."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert process is None or process.poll() is None, process.said()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def wait_for_shards(out, n, process):
    wait_until(lambda: len(list(out.glob("shard-*.arrow"))) >= n, process)


def family(process):
    """The run's process and all that descend from it."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def workers(process):
    """The processes of the run's generating workers that have begun to work."""
    found = []
    for member in family(process):
        with suppress(psutil.Error):
            if "GeneratorActor" in " ".join(member.cmdline()):
                found.append(member)
    return found


def kill(processes):
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def assert_gone(processes, deadline_s=30):
    """No orphan outlives its run."""

    def alive():
        # In a container nobody may take note of the end of a process whose parent is gone.
        return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    end = time.monotonic() + deadline_s
    while time.monotonic() < end and alive():
        time.sleep(0.1)
    assert not alive(), f"the run has left processes behind: {alive()}"


def digests(out):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.glob("shard-*.arrow")
    }


def kept_rows(out):
    """Rows by id that are safe: committed, or kept for the next run."""
    output = Output(out)
    rows = {}
    # These first: a run that goes on meanwhile commits them, and then removes them here.
    for shard in wip_shards(output):
        wip = read_wip(output, shard)
        rows |= {id_: row["completion"] for id_, row in (wip.generated | wip.done).items()}
    return rows | {row["id"]: row["completion"] for row in read_rows(output)}


def safe_files(out):
    """Names of the files that rows are safe in: there is a new one whenever a run has moved on."""
    return {path.name for path in [*out.glob("shard-*.arrow"), *kept_files(out)]}


def kept_files(out):
    """Files of rows that are kept for the next run."""
    return sorted((out / "_run" / "wip").glob("*/*"))


def read_events(out, kind):
    path = out / "_run" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def assert_complete(negtemp, out, n_prompts, before):
    """Every planned id once, committed shards unchanged, the account exact, nothing left over."""
    import datasets

    after = digests(out)
    assert before.items() <= after.items(), "a committed shard has changed"
    checked = negtemp("check", str(out), "--json")
    assert checked.returncode == 0, checked.stdout
    report = json.loads(checked.stdout)
    assert report["planned"] == n_prompts * SAMPLES and report["not_done"] == 0
    rows = datasets.load_from_disk(str(out))
    ids = rows["id"]
    assert len(ids) == len(set(ids)) == n_prompts * SAMPLES
    assert list((out / "_run" / "wip").iterdir()) == []
    assert list((out / "_run" / "tmp").iterdir()) == []
    return rows


def send(process, signal_number):
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal_number)
