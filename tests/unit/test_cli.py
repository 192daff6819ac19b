"""The command line: light, clear about what is wrong, and safe to look at hostile text with."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from negtemp_data.cli.display import describe, marked_completion
from negtemp_data.cli.main import COMMANDS, main, negtemp
from negtemp_data.cli.options import safe_text, to_json_line
from negtemp_data.engine.compile import compile_schedule
from negtemp_data.jobspec import load_job, write_job
from negtemp_data.jobspec.fingerprint import fingerprint_job
from negtemp_data.jobspec.schema import job_schema
from negtemp_data.pipeline.progress import Progress, RowCounts
from negtemp_data.prompts import row_seed
from negtemp_data.sampling import fires
from negtemp_data.storage import (
    Output,
    build_shard,
    commit_shard,
    describe_shard,
    read_ledger,
    write_entry,
    write_layout,
)
from small_output import shard_file
from test_engine import CHAT_TEMPLATE, make_tokenizer
from test_storage_rows import INJECTION, make_row, make_rows

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = str(REPOSITORY / "jobs" / "quickstart.yaml")

HOSTILE = "\x1b]0;owned\x07\x1b[31m[bold red]red[/] [/nothing] \x9b2J\u202e end"


def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    monkeypatch.setattr(sys, "argv", ["negtemp", *arguments])
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


def call(*arguments: str) -> Any:
    """Result of a command that is expected to succeed."""
    result = CliRunner().invoke(negtemp, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job that `init` wrote, on a model folder of a byte tokenizer."""
    monkeypatch.chdir(tmp_path)
    call("init", "job")
    model = tmp_path / "model"
    make_tokenizer(CHAT_TEMPLATE).save_pretrained(model)
    (model / "config.json").write_text("{}", encoding="utf-8")
    job = load_job("job/job.yaml", [f"generate.model={json.dumps(str(model))}"])
    path = tmp_path / "job.yaml"
    path.write_text(write_job(job), encoding="utf-8")
    return path


@pytest.fixture
def output(tmp_path: Path, job_file: Path) -> Output:
    """Two committed shards; one completion is hostile."""
    job = load_job(job_file)
    output = Output(tmp_path / "out")
    output.create()
    output.write_job(write_job(job))
    output.write_fingerprint(fingerprint_job(job, "p", "m"))
    for index in range(2):
        commit_shard(output, index, build_shard(index, make_rows(index), "all", 1.0))
        write_entry(output, describe_shard(output, index))
    write_layout(output, read_ledger(output))
    return output


@pytest.mark.parametrize("command", [["--help"], ["validate", "jobs/quickstart.yaml"]])
def test_help_and_validate_load_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from negtemp_data.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command_once() -> None:
    lines = call("--help").stdout.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in lines if line.strip()] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_shows_an_example(command: str) -> None:
    text = call(command, "--help").stdout
    assert f"Example:  negtemp {command}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "none.yaml"], "none.yaml: no such job file"),
        (["run", "none.yaml"], "none.yaml: no such job file"),
        (["validate", QUICKSTART, "--set", "sead=1"], "sead: unknown key; did you mean 'seed'?"),
        (["plan", QUICKSTART, "--set", "seed"], "write it as path=value"),
        (["validate", QUICKSTART, "--set", "generate.model=zzz"], "generate.model: 'zzz'"),
        (["validate", QUICKSTART, "--set", "generate.engine.seed=1"], "generate.engine.seed"),
        (["validate", QUICKSTART, "--set", "prompts.source=none.jsonl"], "none.jsonl"),
        (
            ["validate", QUICKSTART, "--set", "verify.judge.judges.rating.model=zzz"],
            "verify.judge.judges.rating.model: 'zzz'",
        ),
        (
            [
                "validate",
                QUICKSTART,
                "--set",
                "verify.judge={kind: likelihood, accept_at: 0, model: a/b, engine: {sead: 1}}",
            ],
            "verify.judge.engine.sead",
        ),
        (
            [
                "validate",
                QUICKSTART,
                "--set",
                "verify.checks=[{kind: python, function: 'no.such:f'}]",
            ],
            "verify.checks[0].function",
        ),
        (["validate", QUICKSTART, "--out", "memory://bucket/out"], "no conditional PUT"),
        (["status", "no-such-output"], "is no negtemp output"),
        (["show", "no-such-output"], "is no negtemp output"),
        (["check", "no-such-output"], "is no negtemp output"),
        (["resume", "no-such-output"], "is no negtemp output"),
        (["models", "--prepare", "zzz"], "model 'zzz': no such model"),
    ],
)
def test_a_wrong_request_exits_with_2_and_one_paragraph(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    code, out, err = run_main(monkeypatch, capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert message in err
    assert "\n\n" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vaildate"], "No such command 'vaildate'. Did you mean 'validate'?"),
        (["zzzz"], "No such command 'zzzz'."),
        (["validate"], "Missing argument 'JOB'"),
        (
            ["submit", QUICKSTART, "--manifest", "kuberay", "--shared-path", "/mnt"],
            "--shared-path is of no effect with --manifest; a folder that all pods see is",
        ),
        (["submit", QUICKSTART, "--image", "x"], "--image needs --manifest"),
        (["validate", QUICKSTART, "--limit", "0"], "0 is not in the range"),
        (["show", "out", "--status", "fine"], "'fine' is not one of"),
        (["run", QUICKSTART, "--max-failed", "2"], "2"),
    ],
)
def test_wrong_usage_exits_with_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    code, _, err = run_main(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("Usage: ")


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_traceback_is_shown_with_debug(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    from negtemp_data.errors import JobError

    option = ["--debug"] if how == "option" else []
    if how == "environment":
        monkeypatch.setenv("NEGTEMP_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["negtemp", *option, "validate", "none.yaml"])
    with pytest.raises(JobError):
        main()


@pytest.mark.parametrize("folder", ["my-job", ".", "a b #c: d", "-x", "deep/er", "é'\""])
def test_init_writes_a_job_that_is_valid_and_never_overwrites(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    call("init", "--", folder)
    path = Path(folder, "job.yaml")
    call("validate", "--", str(path))
    job = load_job(path)
    assert Path(job.prompts.source) == Path(folder, "prompts.jsonl")
    assert Path(job.output.path) == Path(folder, "out")
    assert Path(folder, "job.schema.json").read_text(encoding="utf-8") == job_schema()
    path.write_text("mine", encoding="utf-8")
    code, _, err = run_main(monkeypatch, capsys, "init", "--", str(tmp_path / folder))
    assert code == 2
    assert "init never overwrites a file" in err
    assert (tmp_path / path).read_text(encoding="utf-8") == "mine"


def test_validate_names_prompts_that_can_not_be_used(tmp_path: Path, job_file: Path) -> None:
    prompts = tmp_path / "bad.jsonl"
    prompts.write_text('{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": ""}\n', encoding="utf-8")
    change = ["--set", f"prompts.source={prompts}"]
    assert "Warning: prompt b: " in call("validate", str(job_file), *change).stderr
    found = json.loads(call("validate", str(job_file), *change, "--json").stdout)
    assert found["valid"] is True
    assert [row["id"] for row in found["bad_prompts"]] == ["b"]


def test_the_plans_positions_are_those_at_which_the_sampler_fires(job_file: Path) -> None:
    plan = json.loads(call("plan", str(job_file), "--prompts", "3", "--json").stdout)
    job = load_job(job_file)
    positions = np.arange(job.generate.max_tokens)
    assert plan["rows"] == plan["prompts"] * 4
    assert len(plan["shown"]) == 3
    n_firings = 0
    for shown in plan["shown"]:
        assert shown["text"].startswith("<|im_start|>user\n")
        for row in shown["rows"]:
            _, arm, sample = row["id"].rsplit("/", 2)
            rules = compile_schedule(job.schedules[arm]).rules
            seed = row_seed(job.seed, shown["id"], int(sample))
            expected = [
                positions[fires(seed, rule, i, positions)].tolist() for i, rule in enumerate(rules)
            ]
            assert (row["arm"], row["sample"]) == (arm, int(sample))
            assert row["firings"] == expected
            n_firings += sum(map(len, expected))
    assert n_firings > 0


@pytest.mark.parametrize(
    "change",
    [
        "generate.max_tokens=10000000000000",
        "generate.engine.kv_cache_memory_bytes=4G",
        "generate.engine.kv_cache_memory_bytes=null",
    ],
)
def test_the_plan_of_whatever_is_valid_is_shown(job_file: Path, change: str) -> None:
    plan = json.loads(call("plan", str(job_file), "--set", change, "--json").stdout)
    assert plan["rows"] > 0
    told = call("plan", str(job_file), "--set", change, "--prompts", "0").stdout
    assert ("is no number of bytes: no estimate" in told) == ("kv_cache" in change)
    firings = [row["firings"] for shown in plan["shown"] for row in shown["rows"]]
    assert all(len(found or ()) < 10**5 for rules in firings for found in rules)


def test_json_has_text_where_it_has_no_literal() -> None:
    line = to_json_line({"temperature": float("inf"), "score": float("nan"), "text": "ä"})
    assert json.loads(line, parse_constant=pytest.fail) == {
        "temperature": "Infinity",
        "score": "NaN",
        "text": "ä",
    }


def test_a_prompt_that_is_too_long_does_not_stop_the_plan(job_file: Path) -> None:
    change = ["--set", "generate.engine.max_model_len=8", "--prompts", "1"]
    assert "can't be used: the prompt has " in call("plan", str(job_file), *change).stdout
    (shown,) = json.loads(call("plan", str(job_file), *change, "--json").stdout)["shown"]
    assert shown["error"].startswith("the prompt has ")
    assert shown["tokens"] is None


MOVING = """{
  base: {track: [{until: 48, temperature: inf}, {temperature: 0.5}]},
  inject: [
    {when: {at: [0, 95]}, temperature: -1},
    {when: {entropy: {above: 2.5}, stop: 48}, temperature: -1},
    {when: {after: sentence}, temperature: -1},
  ],
}"""


@pytest.mark.parametrize(("columns", "width"), [(20, 60), (80, 80), (500, 100)])
def test_the_plan_draws_schedules_on_rulers(
    job_file: Path, monkeypatch: pytest.MonkeyPatch, columns: int, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    change = ["--set", f"schedules.control={MOVING}", "--prompts", "1"]
    text = call("plan", str(job_file), *change).stdout
    _, text = text.split("── schedules, over 96 tokens\n")
    drawn, prompt = text.split("\n\n── prompt lighthouse")
    rulers = prompt.split("assistant\n\n")[1]
    assert max(map(len, f"{drawn}\n{rulers}".split("\n"))) <= width
    lines = drawn.split("\n")
    columns = min(width - 11, 96)
    first = columns // 2  # columns of the first 48 positions, one of which may hold the next, too
    assert lines[0] == "control"
    assert lines[1].startswith("  base     " + "█" * first)
    assert lines[1].endswith("▁" * (columns - first - 1))
    assert lines[2] == "           T inf until 48; T 0.5"
    assert lines[3].startswith("  rule 0   at 0, 95: T -1 on min_p 0.05")
    assert "  rule 1   " + "░" * first in drawn
    assert "where entropy > 2.5 nats, before 48" in drawn
    assert "after a sentence: T -1 on min_p 0.05" in drawn
    assert "\n           0   " in drawn
    assert drawn.count("  base     T 0.8") == 1
    for sample in range(2):
        (line,) = (x for x in rulers.split("\n") if x.startswith(f"control/{sample} rule 0 "))
        assert set(line.split()[-1][1:-1]) == {"·"}
        assert line.split()[-1][0] == line.split()[-1][-1] == "▲"
        assert f"\nnegative/{sample} " in rulers


def test_the_plans_json_has_what_the_rulers_show(job_file: Path) -> None:
    change = ["--set", f"schedules.control={MOVING}", "--prompts", "1", "--json"]
    plan = json.loads(call("plan", str(job_file), *change).stdout, parse_constant=pytest.fail)
    control, negative = plan["schedules"]["control"], plan["schedules"]["negative"]
    assert control["base"] == {
        "text": "T inf until 48; T 0.5",
        "decided_by": "position",
        "temperatures": ["inf"] * 48 + [0.5] * 48,
    }
    assert [(r["decided_by"], r["start"], r["stop"]) for r in control["rules"]] == [
        ("position", 0, 96),
        ("logits", 0, 48),
        ("text", 1, 96),
    ]
    assert negative["base"] == {"text": "T 0.8", "decided_by": "position", "temperatures": None}
    (rule,) = negative["rules"]
    assert rule["text"] == (
        "every 24 + 0…4, from 8: T -1 on min_p 0.05, without special and undertrained"
    )
    for row in plan["shown"][0]["rows"]:
        if row["arm"] == "control":
            assert row["firings"] == [[0, 95], None, None]


def test_the_plan_says_how_many_samples_it_does_not_draw(job_file: Path) -> None:
    change = ["--set", "generate.samples.negative=9", "--prompts", "1"]
    text = call("plan", str(job_file), *change).stdout
    assert "negative/3 " in text
    assert "negative/4 " not in text
    assert "… and 5 more samples" in text


def test_hostile_prompts_reach_the_terminal_only_escaped(tmp_path: Path, job_file: Path) -> None:
    prompts = tmp_path / "bad.jsonl"
    rows = [
        {"id": "id \u202e", "prompt": HOSTILE},
        {"id": "other", "prompt": 3},
        {"id": HOSTILE, "prompt": "x"},
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    change = ["--set", f"prompts.source={prompts}", "--prompts", "3"]
    change += ["--set", 'schedules.control.inject=[{when: {after: "\\e]"}, temperature: 1}]']
    text = call("plan", str(job_file), *change).stdout
    for char in "\x1b\x07\x9b\u202e":
        assert char not in text
    assert "── prompt id \ufffd" in text
    assert "[bold red]red[/] [/nothing]" in text
    assert text.count("can't be used: ") == 2


@pytest.mark.parametrize("damage", ["missing", "no JSON"])
def test_a_model_without_a_usable_tokenizer_is_one_line(
    tmp_path: Path,
    job_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    for file in (tmp_path / "model").glob("*token*"):
        file.unlink()
    if damage == "no JSON":
        (tmp_path / "model" / "tokenizer_config.json").write_text("{", encoding="utf-8")
    change = f"prompts.source={tmp_path / 'job' / 'prompts.jsonl'}"
    code, out, err = run_main(monkeypatch, capsys, "plan", str(job_file), "--set", change)
    assert code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert "the tokenizer in " in line
    assert "can't be loaded" in line


def test_show_prints_the_chosen_rows_and_marks_injections(output: Output) -> None:
    root = output.root
    rows = [
        json.loads(line)
        for line in call("show", root, "-n", "99", "--json").stdout.split("\n")
        if line
    ]
    assert rows == make_rows(0) + make_rows(1)
    chosen = call("show", root, "--arm", "negative", "--status", "failed", "-n", "9", "--json")
    assert [json.loads(line)["id"] for line in chosen.stdout.splitlines()] == [
        "p0-2/negative/0",
        "p1-2/negative/0",
    ]
    text = call("show", root, "--prompt", "p1-0", "--arm", "negative").stdout
    assert "── p1-0/negative/0 · accepted, score 3.50" in text
    assert "⟦" in text
    assert "at 3: rank 4 of 5 candidates, log-probability -2.50, T -1" in text
    assert call("show", root, "--arm", "none").stdout == "No such rows are committed.\n"


def test_hostile_text_reaches_the_terminal_only_escaped(output: Output) -> None:
    row = make_row("bad", "negative", "failed") | {
        "prompt": HOSTILE,
        "completion": HOSTILE,
        "error": HOSTILE,
        "token_ids": list(HOSTILE.encode()),  # of the byte tokenizer
        "checks": [{"name": "regex", "passed": False, "detail": "not found"}],
    }
    commit_shard(output, 2, build_shard(2, [row], "all", 1.0))
    text = call("show", output.root, "--prompt", "bad").stdout
    for char in "\x1b\x07\x9b\u202e":
        assert char not in text
    assert text.count("[bold red]red[/] [/nothing]") >= 2


@pytest.mark.parametrize("pieces", [None, ["a", HOSTILE, "b"]])
def test_marked_completions_are_plain_text_without_control_characters(
    pieces: list[str] | None,
) -> None:
    row = {"completion": HOSTILE, "injections": [INJECTION | {"position": 1}]}
    text = marked_completion(row, pieces)
    assert "[bold red]red[/] [/nothing]" in text.plain
    assert text.plain == safe_text(text.plain)
    assert text.plain.startswith("�]0;owned��[31m" if pieces is None else "a⟦�]0;owned�")
    assert len(text.spans) == (0 if pieces is None else 1)


def test_safe_text_keeps_lines_tabs_and_letters_of_all_languages() -> None:
    assert safe_text("a\tb\n世界 é 🙂") == "a\tb\n世界 é 🙂"
    assert safe_text("\x00\x1b\x07\r\x7f\x9b\u202e\ud800") == "�" * 8


def test_status_counts_by_arm(output: Output) -> None:
    found = json.loads(call("status", output.root, "--json").stdout)
    assert found["shards"] == {"committed": 2, "planned": None}
    assert found["running"] is False
    counts = found["overall"]
    assert (counts["accepted"], counts["rejected"], counts["failed"]) == (4, 4, 4)
    text = call("status", output.root).stdout
    assert text.startswith("2 shards, ")
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["control", "negative"]


def test_check_exits_with_1_where_a_shard_is_damaged(
    output: Output, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "2 shards, 12 rows: all is well." in call("check", output.root).stdout
    data = bytearray(shard_file(output, 1).read_bytes())
    data[data.index(b"The sea is wide.")] ^= 1
    shard_file(output, 1).write_bytes(data)
    code, out, err = run_main(monkeypatch, capsys, "check", output.root)
    assert code == 1
    assert "see above" in out
    assert err.startswith("Problem: ")
    code, out, _ = run_main(monkeypatch, capsys, "check", output.root, "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False


def test_schema_prints_the_schema_and_refuses_a_stale_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(call("schema").stdout, encoding="utf-8")
    call("schema", "--check", str(path))
    path.write_text("{}", encoding="utf-8")
    code, _, err = run_main(monkeypatch, capsys, "schema", "--check", str(path))
    assert code == 1
    assert "is stale" in err


@pytest.mark.parametrize(
    ("made", "tokens", "earlier", "text"),
    [
        (
            RowCounts(accepted=6, rejected=2, failed=2, unverified=7),
            500,
            10,
            "20/100 rows · 1/5 shards · 50 tok/s · 7 to verify · 75% accepted · 2 failed · "
            "0:01:20 left",
        ),
        (RowCounts(), 0, 0, "0/100 rows · 1/5 shards · 0 tok/s"),
        (RowCounts(failed=1), 0, 0, "1/100 rows · 1/5 shards · 0 tok/s · 1 failed · 0:16:30 left"),
        (
            RowCounts(accepted=200),
            10,
            0,
            "100/100 rows · 1/5 shards · 1 tok/s · 100% accepted · 0:00:00 left",
        ),
    ],
)
def test_progress_is_described_in_one_line(
    made: RowCounts, tokens: int, earlier: int, text: str
) -> None:
    progress = Progress(
        planned_rows=100,
        planned_shards=5,
        committed_shards=1,
        earlier_rows=earlier,
        made=made,
        tokens=tokens,
        judge_tokens=0,
        seconds=10.0,
    )
    assert describe(progress) == text
    reading = replace(progress, judge_tokens=7000)
    assert describe(reading) == text.replace("tok/s", "tok/s · judge reads 700 tok/s")
