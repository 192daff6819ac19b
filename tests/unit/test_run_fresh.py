"""`--fresh`, which alone deletes what is committed: when it does, and when it does not."""

from pathlib import Path

import pytest

from negtemp_data.errors import ModelError, OutputError, OutputLockedError
from negtemp_data.pipeline import run as run_module
from negtemp_data.pipeline.run import RunRequest, RunResult, run_job
from negtemp_data.storage import Output, hold_lock
from small_output import make_job, make_siblings, write_output


class Silent:
    """A reporter."""

    def note(self, text: str) -> None: ...
    def progress(self, progress: object) -> None: ...
    def warn(self, text: str) -> None: ...


class PlannedError(Exception):
    """The run has got as far as its plan."""


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Output:
    """An output with a committed shard of a job with other prompts."""

    def stop(run: object) -> RunResult:
        raise PlannedError

    monkeypatch.setattr(run_module._Run, "finish_plan", stop)
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "prompt": "Say a."}\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return write_output(tmp_path / "out", [make_siblings(2)])


def run(output: Output, model: str = "smollm2-135m-instruct", *, fresh: bool) -> None:
    run_job(RunRequest(make_job(model), output, fresh=fresh), Silent())


def test_another_job_is_refused_and_deletes_nothing(output: Output) -> None:
    with pytest.raises(OutputError, match="--fresh"):
        run(output, fresh=False)
    assert output.committed_shards() == [0]


def test_fresh_starts_over(output: Output) -> None:
    before = output.read_fingerprint()
    with pytest.raises(PlannedError):
        run(output, fresh=True)
    assert output.committed_shards() == []
    assert output.read_fingerprint() != before
    with pytest.raises(PlannedError):
        run(output, fresh=False)  # from here on the output is that of this job


def test_fresh_deletes_nothing_where_the_request_is_wrong(output: Output) -> None:
    with pytest.raises(ModelError):
        run(output, "no-such-model", fresh=True)
    assert output.committed_shards() == [0]


def test_fresh_deletes_nothing_of_a_run_under_way(output: Output) -> None:
    with hold_lock(output), pytest.raises(OutputLockedError):
        run(output, fresh=True)
    assert output.committed_shards() == [0]
