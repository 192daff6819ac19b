"""Two runs on one output: one is refused, the other one is not disturbed."""

import pytest
from runs import Command, assert_complete, family, kill, wait_until, write_job

N_PROMPTS = 8


@pytest.mark.slow
def test_of_two_runs_at_once_one_is_refused_and_a_killed_one_gives_way(
    tiny_model, negtemp, tmp_path
):
    out = tmp_path / "out"
    job = write_job(tmp_path, tiny_model, N_PROMPTS)
    both = [Command("run", job), Command("run", job)]
    wait_until(lambda: any(process.poll() is not None for process in both))
    refused, running = sorted(both, key=lambda process: process.poll() is None)
    stderr = refused.end(60)
    assert refused.returncode == 2, stderr
    assert f"{out}: another run" in stderr and "writes to it" in stderr
    assert "Traceback" not in stderr
    assert negtemp("resume", str(out)).returncode == 2
    assert '"running": true' in negtemp("status", str(out), "--json").stdout
    # The lock of a run that is killed is free at once, whatever else of it is still there.
    kill(family(running)[:1])
    running.end(60)
    assert '"running": false' in negtemp("status", str(out), "--json").stdout
    resumed = negtemp("resume", str(out))
    assert resumed.returncode == 0 and "Traceback" not in resumed.stderr, resumed.stderr
    assert_complete(negtemp, out, N_PROMPTS, {})
