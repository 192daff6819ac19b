"""A run that is stopped politely says how to go on."""

import signal

import pytest
from runs import (
    Command,
    assert_complete,
    assert_gone,
    digests,
    family,
    read_events,
    send,
    wait_for_shards,
    write_job,
)

N_PROMPTS = 24


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on_and_resumes(
    tiny_model, negtemp, tmp_path, signal_number
):
    out = tmp_path / "out"
    process = Command("run", write_job(tmp_path, tiny_model, N_PROMPTS))
    wait_for_shards(out, 2, process)
    members = family(process)
    send(process, signal_number)
    stderr = process.end(60)
    assert process.returncode == 130
    assert "negtemp resume" in stderr and "Traceback" not in stderr
    assert len(read_events(out, "run_interrupted")) == 1
    assert_gone(members)
    before = digests(out)
    assert 2 <= len(before) < 12
    # What copies an output may leave out empty folders.
    for folder in sorted(out.rglob("*/"), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    assert not (out / "_run" / "tmp").exists()
    resumed = negtemp("resume", str(out))
    assert resumed.returncode == 0, resumed.stderr
    assert "Traceback" not in resumed.stderr
    assert_complete(negtemp, out, N_PROMPTS, before)
