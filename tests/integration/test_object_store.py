"""Outputs and prompts on an S3 server: commits, refusals, what the commands and readers see."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import datasets
import pytest
from click.testing import CliRunner

import negtemp_data
from negtemp_data.cli.main import negtemp as main
from negtemp_data.errors import OutputError, OutputLockedError, RunError
from negtemp_data.jobspec import PromptsConfig, write_job
from negtemp_data.prompts import load_plan, read_prompts, read_shard, source_digest, write_plan
from negtemp_data.storage import (
    Output,
    build_shard,
    check_output,
    commit_shard,
    describe_shard,
    hold_lock,
    is_held,
    read_ledger,
    rebuild_ledger,
    write_layout,
)
from negtemp_data.storage.lease import SILENCE_S
from small_output import make_job, make_sample, write_output


def sample_shards(n):
    return [
        [make_sample(f"p{i}", arm, k) for arm in ("control", "negative") for k in (0, 1)]
        for i in range(n)
    ]


@pytest.fixture
def uri(s3, request):
    return f"s3://bucket/{request.node.name}/out"


@pytest.fixture
def output(uri, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"p{i}", "prompt": "?"}) + "\n" for i in range(3)))
    job = make_job(prompts={"source": str(prompts), "id": "id"}, output={"shard_rows": 4})
    made = write_output(uri, sample_shards(3), job)
    write_plan(job, made.run)
    write_layout(made, read_ledger(made))
    return made


def test_of_many_that_commit_a_shard_exactly_one_wins(s3, uri):
    output = Output(uri)
    output.create()
    tables = [build_shard(0, sample_shards(1)[0], "all", float(n)) for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda table: commit_shard(output, 0, table), tables))
    assert won.count(True) == 1
    assert describe_shard(output, 0).seconds == won.index(True)
    before = s3.etags(uri)
    assert not commit_shard(output, 0, tables[0])
    assert s3.etags(uri) == before
    assert output.run.at("tmp").entries() == [], "a probe was left behind"


def test_a_large_shard_is_one_conditional_put_too(s3, uri):
    store = Output(uri).store
    data = bytes(110 * 2**20)
    assert store.create("large", data)
    assert not store.create("large", data)
    (etag,) = s3.etags(uri).values()
    assert "-" not in etag, "it was uploaded in parts"


@pytest.fixture
def careless(s3):
    """A server that takes a conditional PUT and does not look at the condition."""
    with s3.ignoring_conditions():
        yield s3


def test_a_store_that_ignores_conditions_is_refused(careless, uri):
    with pytest.raises(OutputError, match=f"{uri}: the store ignores conditional PUTs"):
        Output(uri).create()
    assert careless.etags(uri) == {}


@pytest.mark.slow
def test_a_run_is_refused_there_before_anything_starts(careless, uri, negtemp, tmp_path):
    prompts, job = tmp_path / "prompts.jsonl", tmp_path / "job.yaml"
    prompts.write_text('{"id": "a", "prompt": "Why?"}\n')
    job.write_text(write_job(make_job(prompts={"source": str(prompts)})))
    run = negtemp("run", str(job), "--out", uri)
    assert run.returncode == 2, run.stderr
    assert f"{uri}: the store ignores conditional PUTs" in run.stderr
    assert "Traceback" not in run.stderr
    assert careless.etags(uri) == {}


@pytest.mark.parametrize(
    ("uri", "environment", "message"),
    [
        ("s3://missing/out", {}, "The specified bucket does not exist"),
        pytest.param(
            "s3://bucket/x",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            "Could not connect",
            marks=pytest.mark.slow,  # the library tries for some seconds
        ),
    ],
)
def test_a_store_that_is_not_there_is_an_error_in_plain_words(s3, uri, environment, message):
    code = "import sys; from negtemp_data.storage import Output; Output(sys.argv[1]).create()"
    done = subprocess.run(
        [sys.executable, "-c", code, uri],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"negtemp_data.errors.OutputError: {uri}: ")
    assert message in last and "choose another --out" in last


def test_a_place_with_objects_of_others_is_refused(s3, uri):
    s3.files().pipe(f"{uri}/notes.txt", b"mine")
    with pytest.raises(OutputError, match="is no negtemp output"):
        Output(uri).create()
    Output(uri).reset()
    assert s3.files().cat(f"{uri}/notes.txt") == b"mine"


def test_the_commands_read_an_output_on_a_store(output, tmp_path):
    def call(*arguments):
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    out = output.root
    shards = json.loads(call("status", out, "--json"))["shards"]
    assert shards == {"committed": 3, "planned": 3}
    assert json.loads(call("check", out, "--json"))["rows"] == 12
    first = call("show", out, "-n", "2", "--json").splitlines()[0]
    assert json.loads(first)["id"] == "p0/control/0"
    call("export", out, str(tmp_path / "sft"), "--format", "sft", "--quiet")
    assert datasets.load_dataset(str(tmp_path / "sft"), split="train").num_rows == 3


def test_python_reads_an_output_on_a_store(output):
    ids = [row["id"] for rows in sample_shards(3) for row in rows]
    opened = negtemp_data.open_dataset(output.root)
    assert opened.arrow()["id"].to_pylist() == ids
    assert opened.hf()["id"] == ids
    assert opened.polars()["id"].to_list() == ids
    assert [row["id"] for row in opened.torch(["id", "token_ids"])] == ids
    assert datasets.load_from_disk(output.root)["id"] == ids


def test_damage_on_a_store_is_found(s3, output):
    assert check_output(output).ok
    name = f"{output.root}/shard-00001.arrow"
    data = bytearray(s3.files().cat(name))
    data[len(data) // 2] ^= 1
    s3.files().pipe(name, bytes(data))
    s3.files().rm(f"{output.root}/shard-00002.arrow")
    problems = check_output(output).problems
    assert any("shard-00001.arrow" in problem for problem in problems)
    assert any("shard-00002.arrow: is in the ledger" in problem for problem in problems)


def test_a_lost_ledger_is_rebuilt_from_the_objects(output):
    before = read_ledger(output)
    output.run.remove_tree("shards")
    assert read_ledger(output) == rebuild_ledger(output) == before
    assert len(output.shards.entries()) == 3


def test_fresh_removes_what_runs_wrote_and_keeps_the_lock(s3, output):
    s3.files().pipe(f"{output.root}/notes.txt", b"mine")
    with hold_lock(output):
        output.reset()
        assert not output.exists()
        assert output.store.entries() == ["_run", "notes.txt"]
        assert output.run.entries() == ["lock"]


def test_a_lock_is_refused_to_a_second_run_and_free_after_silence(output):
    assert not is_held(output)
    with hold_lock(output) as first:
        assert is_held(output)
        locked = pytest.raises(OutputLockedError, match=f"process {os.getpid()} on")
        with locked, hold_lock(output):
            pass
        lock = output.run.at("lock")
        state = json.loads(lock.read("1.json"))
        lock.replace_json("1.json", state | {"beat": state["beat"] - SILENCE_S})
        with hold_lock(output) as second:
            second.check()
            first.beat()
            with pytest.raises(RunError, match="another run has taken it over"):
                first.check()
    assert not is_held(output)


def test_a_plan_on_a_store_gives_back_its_shards(s3, uri, tmp_path):
    prompts = tmp_path / "p.jsonl"
    rows = ({"id": f"p{i}", "prompt": f"text {i} " * 2000} for i in range(200))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = make_job(prompts={"source": str(prompts), "id": "id"}, output={"shard_rows": 40})
    run = Output(uri).run
    plan = write_plan(job, run)
    assert load_plan(run) == plan and plan.n_shards == 20
    read = [prompt for shard in range(20) for prompt in read_shard(run, shard)]
    assert read == list(read_prompts(job.prompts))
    with pytest.raises(IndexError, match=r"s3://.*prompts\.arrow has 20 shards, no shard 20"):
        read_shard(run, 20)


def test_prompts_on_a_store_are_known_by_their_etag(s3):
    files = s3.files()
    files.pipe("bucket/prompts/a.jsonl", b'{"id": "a", "prompt": "x"}\n')
    files.pipe("bucket/prompts/b.jsonl", b'{"id": "b", "prompt": "y"}\n')
    config = PromptsConfig(source="s3://bucket/prompts/*.jsonl", id="id")
    assert [prompt.id for prompt in read_prompts(config)] == ["a", "b"]
    before = source_digest(config)
    etag = s3.etags("bucket/prompts")["bucket/prompts/b.jsonl"]
    files.pipe("bucket/prompts/b.jsonl", b'{"id": "b", "prompt": "z"}\n')
    assert s3.etags("bucket/prompts")["bucket/prompts/b.jsonl"] != etag
    assert source_digest(config) != before
    files.pipe("bucket/prompts/b.jsonl", b'{"id": "b", "prompt": "y"}\n')
    assert source_digest(config) == before, "the time of writing has no part in it"
