"""A run that is stopped, politely or not, goes on and loses nothing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

JOB = """
version: 1
name: stopped
seed: 3
prompts: {{source: {prompts}, id: id}}
generate:
  model: {model}
  max_tokens: 100
  min_tokens: 100
  samples: {{control: 2, negative: 2}}
  engine: {{dtype: float32, max_model_len: 1024, max_num_seqs: 16}}
schedules:
  control: {{base: {{temperature: 0.8}}}}
  negative:
    inject: [{{when: {{every: 8}}, temperature: -1.0}}]
output: {{path: {out}, shard_rows: 8}}
"""

N_PROMPTS = 32
DEADLINE_S = 240


@pytest.fixture
def job(tiny_model, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = ({"id": f"p{i}", "prompt": f"Tell me about the number {i}."} for i in range(N_PROMPTS))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(prompts=prompts, model=tiny_model, out=tmp_path / "out"))
    return path


def start(job):
    """A run in a session of its own, so that a signal to it is none to the test."""
    return subprocess.Popen(
        [sys.executable, "-m", "negtemp_data", "run", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


def wait_for_shards(out, n, process):
    end = time.monotonic() + DEADLINE_S
    while len(list(out.glob("shard-*.arrow"))) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no shard was committed in time"
        time.sleep(0.05)


def family(process):
    """The run's process and all that descend from it."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def digests(out):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.glob("shard-*.arrow")
    }


def assert_finished(negtemp, out, before):
    import datasets

    resumed = negtemp("resume", str(out))
    assert resumed.returncode == 0, resumed.stderr
    assert "Traceback" not in resumed.stderr
    after = digests(out)
    assert before.items() <= after.items(), "a committed shard has changed"
    assert len(after) == 16
    checked = negtemp("check", str(out), "--json")
    assert checked.returncode == 0, checked.stdout
    report = json.loads(checked.stdout)
    assert report["planned"] == N_PROMPTS * 4 and report["not_done"] == 0
    ids = datasets.load_from_disk(str(out))["id"]
    assert len(ids) == len(set(ids)) == N_PROMPTS * 4


@pytest.mark.parametrize(
    "signal_number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_says_how_to_go_on_and_resumes(job, negtemp, tmp_path, signal_number):
    out = tmp_path / "out"
    process = start(job)
    wait_for_shards(out, 2, process)
    members = family(process)
    os.kill(process.pid, signal_number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "negtemp resume" in stderr and "Traceback" not in stderr
    _, alive = psutil.wait_procs(members, timeout=20)
    assert not alive, "the run has left processes behind"
    before = digests(out)
    assert 2 <= len(before) < 16
    assert_finished(negtemp, out, before)


def test_a_run_killed_with_all_its_processes_resumes(job, negtemp, tmp_path):
    out = tmp_path / "out"
    process = start(job)
    wait_for_shards(out, 3, process)
    for member in family(process):
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate(timeout=60)
    before = digests(out)
    assert 3 <= len(before) < 16
    assert_finished(negtemp, out, before)


@pytest.mark.slow
def test_a_run_survives_the_death_of_its_worker(job, negtemp, tmp_path):
    out = tmp_path / "out"
    process = start(job)
    wait_for_shards(out, 2, process)
    workers = [p for p in family(process) if "GenerateShard" in " ".join(p.cmdline())]
    assert len(workers) == 1
    workers[0].kill()
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert len(list((out / "_run" / "logs").glob("worker-*.log"))) == 2
    assert_finished(negtemp, out, digests(out))
