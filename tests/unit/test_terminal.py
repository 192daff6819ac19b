"""The command line as a person meets it: narrow terminals, pipes, a shell that completes."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner
from rich.console import Console

from negtemp_data.cli.display import RunDisplay, arms_table
from negtemp_data.cli.main import negtemp
from negtemp_data.pipeline.progress import Progress, RowCounts
from negtemp_data.storage import Totals
from negtemp_data.storage.summary import ArmTotals

REPOSITORY = Path(__file__).parents[2]
PROGRAM = str(Path(sys.executable).parent / "negtemp")
ESCAPE = "\x1b["


def in_terminal(*arguments: str, columns: int = 60, **environment: str) -> str:
    """What a command shows on a terminal of so many columns."""
    # These two, which a parallel test run sets, would count for more than the terminal itself.
    inherited = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}
    child = pexpect.spawn(
        PROGRAM,
        list(arguments),
        dimensions=(24, columns),
        env=inherited | {"TERM": "xterm-256color"} | environment,
        cwd=str(REPOSITORY),
        encoding="utf-8",
        timeout=60,
    )
    text = child.read()
    child.close()
    assert child.exitstatus == 0, text
    return text


def test_colours_are_for_terminals_alone() -> None:
    assert ESCAPE in in_terminal("doctor")
    assert ESCAPE not in in_terminal("doctor", NO_COLOR="1")
    piped = subprocess.run([PROGRAM, "doctor"], capture_output=True, text=True, check=True)
    assert ESCAPE not in piped.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"]])
def test_help_fits_a_narrow_terminal(arguments: list[str]) -> None:
    lines = in_terminal(*arguments).splitlines()
    assert max(map(len, lines)) <= 60


def test_a_plan_fits_a_narrow_terminal() -> None:
    text = in_terminal("plan", "jobs/quickstart.yaml", "--prompts", "1")
    drawn = [line for line in text.splitlines() if "▲" in line or "░" in line]
    assert drawn
    assert all(len(line) <= 60 for line in drawn)


def test_counts_stand_in_columns_where_lines_do_not_fit() -> None:
    arm = ArmTotals(30, 20, 10, 5, 3, 400, 2.5)
    totals = Totals({"control": arm, "negative": arm}, arm, 2, 1000)
    for width in (40, 60, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(arms_table(totals, width, {"control": 0.5, "negative": None}))
        text = console.export_text()
        assert "…" not in text
        assert {"accepted", "injections", "distinct-2", "400", "0.500"} <= set(text.split())


@pytest.mark.parametrize(
    ("quiet", "verbose", "n_lines"), [(False, False, 1), (False, True, 3), (True, True, 0)]
)
def test_progress_on_a_pipe_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, quiet: bool, verbose: bool, n_lines: int
) -> None:
    screen = io.StringIO()
    display = RunDisplay(screen, quiet, verbose)
    progress = Progress(
        planned_rows=100,
        planned_shards=5,
        committed_shards=1,
        earlier_rows=0,
        made=RowCounts(accepted=10),
        tokens=99,
        judge_tokens=0,
        seconds=10.0,
    )
    for now in (1000.0, 1003.0, 1003.5, 1006.0):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        display.progress(progress)
    display.close()
    lines = screen.getvalue().splitlines()
    assert len(lines) == n_lines
    assert all(line.startswith("10/100 rows") and ESCAPE not in line for line in lines)


LIVE = """
import os, sys, time
from pathlib import Path
from negtemp_data.cli.display import RunDisplay
from negtemp_data.pipeline.logs import captured_output
from negtemp_data.pipeline.progress import Progress, RowCounts

with os.fdopen(os.dup(2), "w", buffering=1) as screen:
    display = RunDisplay(screen, quiet=False)
    with captured_output(Path(sys.argv[1])):
        print("a library warns", file=sys.stderr)
        display.progress(Progress(100, 5, 1, 0, RowCounts(accepted=10), 99, 0, 10.0))
        time.sleep(1)  # some refreshes
    display.close()
"""


def test_progress_on_a_terminal_is_a_bar_and_all_of_its_line(tmp_path: Path) -> None:
    for columns in (40, 60, 120):
        log = tmp_path / f"{columns}.log"
        child = pexpect.spawn(
            sys.executable,
            ["-c", LIVE, str(log)],
            dimensions=(24, columns),
            env=os.environ | {"TERM": "xterm-256color", "NO_COLOR": "1"},
            encoding="utf-8",
            timeout=60,
        )
        text = child.read()
        words = " ".join(text.split())
        assert "10/100 rows · 1/5 shards · 10 tok/s · 100% accepted · 0:01:30 left" in words
        assert "\u2501" in text
        assert "a library warns" not in text and "a library warns" in log.read_text()


def test_a_shell_completes_commands_and_options() -> None:
    child = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "-i"],
        dimensions=(24, 120),
        env=os.environ
        | {"PATH": f"{Path(PROGRAM).parent}:{os.environ['PATH']}", "PS1": "$ ", "TERM": "dumb"},
        encoding="utf-8",
        timeout=30,
    )
    child.sendline('eval "$(negtemp completion bash)"; echo ready')
    child.expect("\r\nready")
    child.send("negtemp sub\t")
    child.expect("submit ")
    child.send("--fol\t")
    child.expect("--follow ")
    child.close(force=True)


def test_options_may_come_from_the_environment() -> None:
    environment = {"NEGTEMP_VALIDATE_LIMIT": "0"}
    result = CliRunner().invoke(negtemp, ["validate", "job.yaml"], env=environment)
    assert result.exit_code == 2
    assert "0 is not in the range" in result.stderr


def test_a_mistyped_command_of_a_group_is_named() -> None:
    result = CliRunner().invoke(negtemp, ["jobs", "resmue"])
    assert result.exit_code == 2
    assert "Did you mean 'resume'?" in result.stderr


@pytest.mark.parametrize("command", ["list", "status", "logs", "stop", "resume"])
def test_every_command_of_jobs_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(negtemp, ["jobs", command, "--help"])
    assert f"Example:  negtemp jobs {command}" in result.stdout


@pytest.mark.parametrize(
    "module", ["click", "negtemp_data.cli.doctor", "negtemp_data.cli.findings"]
)
def test_ctrl_c_is_one_line_whatever_is_being_loaded(module: str) -> None:
    code = f"""
import runpy, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
sys.argv[1:] = ["doctor"]
runpy.run_module("negtemp_data", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 130
    assert done.stderr.strip() == "Interrupted."


def test_ctrl_c_while_the_interpreter_ends_is_too_late() -> None:
    code = """
import atexit, os, runpy, signal, sys

atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv[1:] = ["models", "--help"]
runpy.run_module("negtemp_data", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0
    assert done.stderr == ""
