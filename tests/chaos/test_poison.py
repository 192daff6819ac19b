"""Rows that kill their engine each time are found and given up; their neighbours are made."""

import os

import pytest
from runs import Command, assert_complete, read_events, write_job

N_PROMPTS = 6
CHECK = """
import os

def kill_engine(sample):
    if sample.injected and "number 2." in sample.request:
        os.kill(os.getpid(), 9)
    return True
"""


@pytest.mark.slow
def test_poisonous_rows_fail_and_no_others(tiny_model, negtemp, tmp_path):
    (tmp_path / "poison.py").write_text(CHECK)
    checks = '[{kind: python, function: "poison:kill_engine"}]'
    out = tmp_path / "out"
    job = write_job(tmp_path, tiny_model, N_PROMPTS, checks=checks)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = Command("run", job, "--max-failed", "0.2", cwd=tmp_path, env=environment)
    stderr = process.end(500)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr
    rows = assert_complete(negtemp, out, N_PROMPTS, {})
    failed = {row["id"]: row["error"] for row in rows if row["status"] == "failed"}
    assert set(failed) == {"p2/negative/0", "p2/negative/1"}
    assert all("died twice" in error for error in failed.values())
    # Two of the shard, at most three halvings of eight rows for each, and two of each alone.
    assert len(read_events(out, "engine_starts")) <= 1 + 2 + 2 * (3 + 2)
