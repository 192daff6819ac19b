"""Ctrl-C in a real terminal of 60 columns, at each stage of the commands that take long."""

import json
import sys
import time
from pathlib import Path

import pexpect
import psutil
import pytest
from runs import assert_complete, assert_gone, digests, write_job

N_PROMPTS = 8
PROGRAM = str(Path(sys.executable).parent / "negtemp")


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *arguments):
        self.child = pexpect.spawn(
            PROGRAM, list(map(str, arguments)), dimensions=(24, 60), encoding="utf-8", timeout=120
        )
        self.seen = ""

    def wait_for(self, text, pause_s):
        """Until it shows `text`, and a little longer."""
        self.child.expect_exact(text)
        self.seen += self.child.before + self.child.after
        time.sleep(pause_s)

    def interrupt(self):
        """Presses Ctrl-C; the exit code."""
        members = psutil.Process(self.child.pid).children(recursive=True)
        self.child.sendintr()
        self.seen += self.child.read()
        self.child.close()
        assert_gone(members, deadline_s=120)
        assert "Traceback" not in self.seen and "Error" not in self.seen, self.seen
        return self.child.exitstatus


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "pause_s"),
    [
        ("planning", 0.0),
        ("starting Ray and the engine", 0.3),
        ("starting Ray and the engine", 3.0),
        ("starting Ray and the engine", 7.0),
        ("starting Ray and the engine", 11.0),
        ("tok/s", 0.0),
        ("tok/s", 3.0),
    ],
)
def test_a_run_ends_at_once_and_goes_on_later(negtemp, tiny_model, tmp_path, stage, pause_s):
    out = tmp_path / "out"
    # Planning must take long enough to be seen.
    n_prompts = 200_000 if stage == "planning" else N_PROMPTS
    terminal = Terminal("run", write_job(tmp_path, tiny_model, n_prompts, max_tokens=400))
    terminal.wait_for(stage, pause_s)
    assert terminal.interrupt() == 130
    assert "Interrupted." in terminal.seen
    if stage != "planning":
        assert "negtemp resume" in terminal.seen
    before = digests(out)
    job = write_job(tmp_path, tiny_model, N_PROMPTS, max_tokens=400)
    done = negtemp("run", str(job), "--json")
    assert done.returncode == 0, done.stderr
    assert_complete(negtemp, out, N_PROMPTS, before)


@pytest.mark.slow
def test_a_calibration_and_an_export_end_at_once_and_leave_no_result(negtemp, tiny_model, tmp_path):
    job = write_job(tmp_path, tiny_model, N_PROMPTS, max_tokens=100)
    terminal = Terminal("plan", job, "--calibrate", 4)
    terminal.wait_for("tok/s", 0.0)
    assert terminal.interrupt() == 130
    assert not (tmp_path / "out").exists()
    assert negtemp("run", str(job)).returncode == 0
    for pause_s in (0.6, 0.9, 1.3):  # Python itself needs some time to start
        terminal = Terminal("export", tmp_path / "out", tmp_path / "data", "--format", "sft")
        time.sleep(pause_s)
        code = terminal.interrupt()
        assert code in {0, 130}
        assert (tmp_path / "data").exists() == (code == 0)
        if code == 0:
            break
    watching = Terminal("status", tmp_path / "out", "--watch")
    watching.child.expect(pexpect.EOF)
    watching.child.close()
    assert watching.child.exitstatus == 0
    assert json.loads(negtemp("status", str(tmp_path / "out"), "--json").stdout)["running"] is False
