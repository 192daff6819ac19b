"""Runs on an object store that are killed: what was kept stays, and is not made again."""

import json
import time

import datasets
import pytest
from runs import SAMPLES, Command, family, kill, wait_until, write_job

import negtemp_data
from negtemp_data.errors import OutputLockedError
from negtemp_data.storage import Output, hold_lock, is_held, read_batches, read_wip, wip_shards
from negtemp_data.storage.lease import SILENCE_S
from s3_server import ACCOUNT

MAX_TOKENS = 100


def start_run(s3, tmp_path, model, out, n_prompts):
    """A run whose prompts and output are on the store."""
    job = write_job(tmp_path, model, n_prompts, max_tokens=MAX_TOKENS, out=out)
    source = f"{out}-prompts.jsonl"
    s3.files().put_file(str(tmp_path / "prompts.jsonl"), source)
    return Command("run", job, "--set", f"prompts.source={source}")


def shard_etags(s3, out):
    return {path: tag for path, tag in s3.etags(out).items() if "/shard-" in path}


def kept_rows(output):
    """Completions by id that are safe: committed, or kept for the next run."""
    rows = {}
    for shard in output.committed_shards():
        for batch in read_batches(output, shard):
            rows |= {row["id"]: row["completion"] for row in batch.to_pylist()}
    for shard in wip_shards(output):
        wip = read_wip(output, shard)
        rows |= {id_: row["completion"] for id_, row in (wip.generated | wip.done).items()}
    return rows


def kill_when(process, condition):
    """Kills all of a run once a condition holds."""
    wait_until(condition, process)
    kill(family(process))
    process.end()


def age_heartbeat(output):
    """Makes the lock look as it does after a minute of silence."""
    lock = output.run.at("lock")
    name = lock.entries()[-1]
    state = json.loads(lock.read(name))
    lock.replace_json(name, state | {"beat": state["beat"] - SILENCE_S})


def assert_complete(s3, negtemp, output, n_prompts, before, kept):
    after = shard_etags(s3, output.root)
    assert before.items() <= after.items(), "a committed shard has changed"
    checked = negtemp("check", output.root, "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    report = json.loads(checked.stdout)
    assert report["planned"] == n_prompts * SAMPLES and report["not_done"] == 0
    rows = datasets.load_from_disk(output.root)
    completions = dict(zip(rows["id"], rows["completion"], strict=True))
    assert len(completions) == len(rows) == n_prompts * SAMPLES
    assert kept.items() <= completions.items(), "a row that was kept was made again"
    assert output.wip.entries() == []
    secret = ACCOUNT["AWS_SECRET_ACCESS_KEY"].encode()
    saved = s3.files().cat(s3.files().find(output.root))
    assert saved and not any(secret in data for data in saved.values())


@pytest.mark.slow
def test_a_killed_run_on_a_store_goes_on_where_it_was(s3, tiny_model, negtemp, tmp_path):
    output = Output("s3://bucket/killed/out")
    n_prompts = 16
    process = start_run(s3, tmp_path, tiny_model, output.root, n_prompts)
    wait_until(output.committed_shards, process)
    assert negtemp_data.status(output.root).is_running
    with pytest.raises(OutputLockedError, match=f"process {process.pid} on"), hold_lock(output):
        pass
    kill_when(process, lambda: len(output.committed_shards()) >= 2)
    before, kept = shard_etags(s3, output.root), kept_rows(output)
    assert 2 * 8 <= len(kept) < n_prompts * SAMPLES
    refused = negtemp("resume", output.root)
    assert refused.returncode == 2 and "its lock is free 60 s after" in refused.stderr
    age_heartbeat(output)
    resumed = negtemp("resume", output.root, "--json")
    assert resumed.returncode == 0, resumed.stderr
    missing = n_prompts * SAMPLES - len(kept)
    assert json.loads(resumed.stdout)["tokens"] <= missing * MAX_TOKENS, "rows were made again"
    assert_complete(s3, negtemp, output, n_prompts, before, kept)


@pytest.mark.slow
def test_a_run_that_has_lost_its_lock_stops(s3, tiny_model, tmp_path):
    output = Output("s3://bucket/lost/out")
    process = start_run(s3, tmp_path, tiny_model, output.root, 60)
    wait_until(output.committed_shards, process)
    age_heartbeat(output)
    with hold_lock(output):
        stderr = process.end(120)
        assert process.returncode == 1 and "another run has taken it over" in stderr, stderr
        assert "Traceback" not in stderr
        assert is_held(output)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_a_store_survives_kill_after_kill(s3, tiny_model, negtemp, tmp_path):
    output = Output("s3://bucket/kills/out")
    n_prompts = 40
    process = start_run(s3, tmp_path, tiny_model, output.root, n_prompts)
    before, kept = {}, {}
    for _ in range(3):
        n_kept = len(kept)
        kill_when(process, lambda n=n_kept: len(kept_rows(output)) > n + 8)
        now = kept_rows(output)
        assert kept.items() <= now.items(), "a row that was kept has changed, or is gone"
        assert before.items() <= shard_etags(s3, output.root).items()
        before, kept = shard_etags(s3, output.root), now
        ended = time.monotonic()
        wait_until(lambda: not is_held(output))
        assert time.monotonic() - ended > SILENCE_S - 15, "the lock was given up too early"
        process = Command("resume", output.root)
    stderr = process.end(300)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr
    assert_complete(s3, negtemp, output, n_prompts, before, kept)
