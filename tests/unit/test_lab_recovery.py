"""Recovery curves of rows whose excess is known."""

import asyncio
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from negtemp_data.cli.main import negtemp
from negtemp_data.engine.catalogue import resolve_model
from negtemp_data.engine.tokens import PromptEncoder
from negtemp_data.errors import GenerationError, OutputError, RequestError, RunError
from negtemp_data.jobspec import Job
from negtemp_data.jobspec.fingerprint import Fingerprint
from negtemp_data.judging.likelihood import LikelihoodReader
from negtemp_data.lab.measures import PromptMeans, resampled_interval
from negtemp_data.lab.reading import ModelReader
from negtemp_data.lab.recovery import ArmRecovery, halved_after, measure_recovery
from small_output import make_job, make_sample, write_output
from test_engine import CHAT_TEMPLATE, make_tokenizer

HALF_LIFE, FIRST = 4.0, 2.0
"""Of the excess that the rows of `decaying` have after each injection, in tokens and in nats."""

SEED = 11


def make_row(
    prompt_id: str, arm: str, surprise: Sequence[float], positions: Iterable[int] = (), **more: Any
) -> dict[str, Any]:
    return make_sample(
        prompt_id,
        arm,
        token_ids=range(len(surprise)),
        positions=positions,
        logprobs=[-float(nats) for nats in surprise],
        **more,
    )


def decaying(n_prompts: int, first: float = FIRST, half_life: float = HALF_LIFE) -> list[Any]:
    """One row and its twin a prompt, 160 tokens with an injection every 40; noise of one nat."""
    generator = np.random.default_rng(SEED)
    rows = []
    for i in range(n_prompts):
        twin, own = generator.exponential(1.0, (2, 160))
        positions = [8 + 40 * j + int(generator.integers(5)) for j in range(4)]
        for position, following in zip(positions, [*positions[1:], 160], strict=True):
            own[position] = 9.0
            own[position + 1 : following] += first * 0.5 ** (
                np.arange(following - position - 1) / half_life
            )
        rows += [
            make_row(f"p{i}", "control", twin),
            make_row(f"p{i}", "negative", own, positions),
        ]
    return rows


def measure(
    folder: Path, rows: Sequence[Mapping[str, Any]], n_tokens: int = 32, job: Job | None = None
) -> ArmRecovery:
    shards = [list(rows[i : i + 6]) for i in range(0, len(rows), 6)]
    report = measure_recovery(write_output(folder, shards, job), job or make_job(), n_tokens)
    assert report.is_generator
    return report.arms["negative"]


def same_prompts(
    own: Sequence[float], positions: Sequence[int], twin: Sequence[float], n_prompts: int = 10
) -> list[Any]:
    return [
        row
        for i in range(n_prompts)
        for row in (
            make_row(f"p{i}", "control", twin),
            make_row(f"p{i}", "negative", own, positions),
        )
    ]


def excess(found: ArmRecovery) -> list[float]:
    return [point.excess.value for point in found.points]


def test_an_exponential_decay_is_found_with_its_half_life(tmp_path: Path) -> None:
    found = measure(tmp_path, decaying(300))
    assert (found.n_prompts, found.n_injections, found.n_without_twin) == (300, 1200, 0)
    assert [point.k for point in found.points] == list(range(1, 33))
    # The noise of a mean of 1,200 differences of two exponentials is √2/√1200 = 0.04 nats.
    truth = FIRST * 0.5 ** (np.arange(32) / HALF_LIFE)
    assert excess(found) == pytest.approx(truth, abs=4 * 0.041)
    hits = sum(
        point.excess.low <= nats <= point.excess.high
        for point, nats in zip(found.points, truth, strict=True)
    )
    assert hits >= 27  # 30.4 are expected; the points are nearly independent
    half_life = found.half_life
    assert half_life is not None
    assert half_life.tokens is not None and half_life.low is not None and half_life.high is not None
    assert half_life.low <= HALF_LIFE <= half_life.high
    # 0.04 nats of noise at half of the first excess, where it falls by 0.17 nats a token.
    assert half_life.tokens == pytest.approx(HALF_LIFE, abs=1.0)


def test_the_same_rows_give_the_same_figures(tmp_path: Path) -> None:
    rows = decaying(30)
    assert measure(tmp_path / "a", rows) == measure(tmp_path / "b", rows)


def test_an_excess_that_stays_is_never_halved(tmp_path: Path) -> None:
    found = measure(tmp_path, decaying(100, half_life=1e9))
    assert found.half_life is not None and found.half_life.tokens is None
    assert found.half_life.high is None


def test_without_an_excess_there_is_no_half_life(tmp_path: Path) -> None:
    found = measure(tmp_path, decaying(100, first=0.0))
    assert len(found.points) == 32 and found.half_life is None


def test_the_next_injection_ends_what_comes_after_the_last_one(tmp_path: Path) -> None:
    #      0  1  2  3  4  5  6  7  8
    own = [1, 1, 9, 9, 4, 3, 9, 6, 2]
    found = measure(tmp_path, same_prompts(own, [2, 3, 6], [1, 1, 1, 1, 1, 2, 1, 1, 1]))
    # Nothing lies between 2 and 3; 4 and 5 come after 3, 7 and 8 after 6.
    assert excess(found) == pytest.approx([(3 + 5) / 2, (1 + 1) / 2])
    assert [(point.n, point.surprise, point.twin) for point in found.points] == [
        (20, pytest.approx(5.0), pytest.approx(1.0)),
        (20, pytest.approx(2.5), pytest.approx(1.5)),
    ]
    assert found.n_injections == 30
    assert found.half_life is not None
    # From 4 at the first token to 1 at the second: 2 is two thirds of the way.
    assert found.half_life.tokens == pytest.approx(2 / 3)


def test_an_injection_of_the_last_token_has_nothing_after_it(tmp_path: Path) -> None:
    found = measure(tmp_path, same_prompts([1, 1, 9], [2], [1, 1, 1]))
    assert found.n_injections == 10
    assert found.points == [] and found.half_life is None


def test_a_text_that_is_longer_than_its_twin_is_compared_as_far_as_that_goes(
    tmp_path: Path,
) -> None:
    found = measure(tmp_path, same_prompts([1, 9, 3, 3, 3], [1], [1, 1, 1, 1]))
    assert excess(found) == pytest.approx([2, 2])
    found = measure(tmp_path / "shorter", same_prompts([1, 9, 3, 3, 3], [1], [1, 1]))
    assert found.points == []


def test_no_more_tokens_are_looked_at_than_wanted(tmp_path: Path) -> None:
    found = measure(tmp_path, same_prompts([9, 3, 2, 1], [0], [1] * 4), n_tokens=2)
    assert excess(found) == pytest.approx([2, 1])


def test_few_prompts_are_not_measured_with(tmp_path: Path) -> None:
    found = measure(tmp_path, same_prompts([9, 3, 2], [0], [1] * 3, n_prompts=9))
    assert (found.n_prompts, found.points) == (9, [])


def test_tokens_without_a_log_probability_are_left_out(tmp_path: Path) -> None:
    nan = float("nan")
    rows = same_prompts([9, 3, 2], [0], [1] * 3)
    rows += [row | {"prompt_id": f"{row['prompt_id']}b"} for row in rows]
    for row in rows[::4]:
        row["logprobs"] = [nan, nan, nan]
    found = measure(tmp_path, rows)
    assert [(point.n, point.excess.value) for point in found.points] == [(10, 2), (10, 1)]


def test_samples_whose_twin_is_not_there_are_counted(tmp_path: Path) -> None:
    rows = same_prompts([9, 3, 2], [0], [1] * 3, n_prompts=15)
    del rows[0]  # as `keep: accepted` does
    rows[1] |= {"completion": None, "token_ids": None, "logprobs": None, "status": "failed"}
    found = measure(tmp_path, rows)
    assert (found.n_without_twin, found.n_prompts) == (2, 13)


def test_rows_without_injections_are_nothing_to_measure(tmp_path: Path) -> None:
    found = measure(tmp_path, same_prompts([1, 3, 2], [], [1] * 3))
    assert (found.n_injections, found.n_prompts, found.points) == (0, 0, [])


def test_what_a_run_has_committed_so_far_is_measured(tmp_path: Path) -> None:
    output = write_output(tmp_path, [same_prompts([9, 3], [0], [1, 1])], n_planned=7)
    assert excess(measure_recovery(output, make_job(), 4).arms["negative"]) == pytest.approx([2])


def test_progress_is_told_up_to_the_last_row(tmp_path: Path) -> None:
    shards = [same_prompts([9, 3], [0], [1, 1], n_prompts=40) for _ in range(2)]
    output = write_output(tmp_path, shards)
    told: list[tuple[int, int]] = []
    measure_recovery(output, make_job(), 4, on_progress=lambda *rows: told.append(rows))
    assert told[-1] == (160, 160)
    assert len(told) > 1 and told == sorted(told)


def test_an_output_without_a_shard_is_refused(tmp_path: Path) -> None:
    output = write_output(tmp_path, [], n_planned=3)
    with pytest.raises(RequestError, match="no shard is committed yet"):
        measure_recovery(output, make_job(), 4)


@pytest.mark.parametrize(
    ("arm", "message"),
    [("control", "no arm of the job injects"), ("negative", "has no arm without injections")],
)
def test_a_job_of_one_kind_of_arm_is_refused(tmp_path: Path, arm: str, message: str) -> None:
    job = make_job()
    data = job.model_dump(mode="json")
    data["generate"]["samples"] = {arm: 1}
    job = Job.model_validate(data)
    output = write_output(tmp_path, [[make_row("p", arm, [1, 1])]], job)
    with pytest.raises(RequestError, match=message):
        measure_recovery(output, job, 4)


@pytest.mark.parametrize(
    ("curve", "steps"),
    [
        ([4, 3, 2, 1], 2),
        ([4, 3, 1, 5], 1.5),
        ([4, 0], 0.5),
        ([4, 3, 2.5], np.inf),
        ([4], np.inf),
        ([0, 1], 0),
        ([-1, -2], 0),
    ],
)
def test_a_curve_is_halved_where_it_first_crosses_half_of_its_first_value(
    curve: list[float], steps: float
) -> None:
    assert halved_after(np.array(curve, dtype=np.float64)) == pytest.approx(steps)


def test_the_streamed_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(100):
        means = PromptMeans(1)
        for _ in range(40):  # of one to three values that share their prompt's own part
            n = int(generator.integers(1, 4))
            values = generator.normal(2, 1) + generator.normal(0, 1, n)
            means.add(np.array([values.sum()]), np.array([n]))
        found = resampled_interval(means.means_BK()[:, 0])
        assert found.low <= found.value <= found.high
        hits += found.low <= 2 <= found.high
    # 95 are expected; fewer than 82 or all 100 have a probability below 1e-2 together.
    assert 82 <= hits < 100


# --- another model


class Words:
    """The generator's tokenizer: a token is a word."""

    words = ("The ", "sea ", "is ", "wi", "de", ".")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(self.words[i] for i in ids)


class CountingEngine:
    """Finds the i-th token of whatever it reads i nats improbable."""

    def __init__(self, error: Exception | None = None) -> None:
        self.tokenizer = make_tokenizer(CHAT_TEMPLATE)  # a token for every byte
        self.max_model_len = 4096
        self._error = error

    def submit(self, question: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        if self._error is not None:
            future.set_exception(self._error)
        else:
            n_tokens = len(question.prompt_token_ids)
            logprobs = -np.arange(n_tokens, dtype=np.float32)
            future.set_result(SimpleNamespace(prompt_logprobs=logprobs))
        return future


def reader_with(engine: CountingEngine) -> ModelReader:
    encoder = PromptEncoder(engine.tokenizer, engine.max_model_len - 1)
    return ModelReader(LikelihoodReader(engine, encoder), Words())


def test_another_model_reads_its_own_tokens_between_the_places_of_the_generators() -> None:
    row = make_sample("p", token_ids=range(6), completion="The sea is wide.")
    reading = asyncio.run(reader_with(CountingEngine()).read(row))
    first = reading.surprise_T[0]  # the prompt's tokens come before
    assert (reading.surprise_T - first).tolist() == list(range(16))
    # "wi" is injected: "de." follows it, and before it comes "sea is ".
    assert (reading.between(4, 6) - first).tolist() == [13, 14, 15]
    assert (reading.between(1, 3) - first).tolist() == list(range(4, 11))
    assert reading.between(6, 9).size == reading.between(9, 12).size == 0


def test_a_token_that_shares_a_character_with_an_injected_one_is_left_out() -> None:
    row = make_sample("p", token_ids=range(6), completion="The sea is wide.")
    reading = asyncio.run(reader_with(CountingEngine()).read(row))
    # As if the reader had one token for "wide".
    wide = reading._replace(
        surprise_T=np.array([0.0, 1, 2, 3, 4]),
        begins_T=np.array([0, 4, 8, 11, 15]),
        ends_T=np.array([4, 8, 11, 15, 16]),
    )
    assert wide.between(4, 6).tolist() == [4]  # after "wi"
    assert wide.between(0, 4).tolist() == [0, 1, 2]  # before "de"


def test_hostile_and_empty_texts_are_read() -> None:
    for completion in ("", "<|im_end|>\n<|im_start|>", "\x00\ud7ff🙂", "a" * 3000):
        row = make_sample("p", token_ids=range(6), completion=completion)
        reading = asyncio.run(reader_with(CountingEngine()).read(row))
        assert len(reading.surprise_T) == len(completion.encode())


def test_the_generator_by_another_name_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    output = write_output(tmp_path / "out", [same_prompts([9, 3], [0], [1, 1])])
    revision = resolve_model(str(model)).revision
    output.write_fingerprint(Fingerprint({}, "prompts", revision))
    with pytest.raises(RequestError, match=r"is the generator, .* leave --model out"):
        measure_recovery(output, make_job(), 4, str(model))


def test_samples_that_the_model_could_not_read_are_counted(tmp_path: Path) -> None:
    from negtemp_data.lab import recovery

    rows = same_prompts([9, 3], [0], [1, 1])
    output = write_output(tmp_path, [rows[:8], rows[8:]])
    sums = {"negative": recovery._ArmSums(4)}
    reader = reader_with(CountingEngine(GenerationError("refused")))
    prompts = recovery._prompts(output, [0, 1])
    told: list[int] = []
    asyncio.run(recovery._add_prompts(prompts, "control", reader, sums, told.append))
    assert told == [20]
    found = sums["negative"].conclude()
    assert (found.n_unread, found.n_prompts, found.points) == (10, 0, [])


# --- the command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(negtemp, ["lab", "recovery", *arguments])


def test_the_command_prints_curve_and_half_life(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    rows = decaying(40)
    write_output(out, [rows])
    done = run(out)
    assert done.exit_code == 0, done.output
    assert "negative: 160 injections, 40 prompts" in done.output
    assert "half-life in tokens: " in done.output
    assert "the generator's own view" in done.output
    report = json.loads(run(out, "--json", "--tokens", "8").output)
    points = report["arms"]["negative"]["points"]
    assert [point["k"] for point in points] == list(range(1, 9))
    assert points[0]["excess"].keys() == {"value", "low", "high"}
    assert points[0]["n"] == 160


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_command_draws_the_curves_where_matplotlib_is_installed(
    tmp_path: Path, ending: str
) -> None:
    pytest.importorskip("matplotlib")
    output = write_output(tmp_path / "out", [decaying(20)])
    done = run(output.root, "--plot", str(tmp_path / f"curve.{ending}"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / f"curve.{ending}").stat().st_size > 5000
    error = run(output.root, "--plot", str(tmp_path / "curve.xyz")).exception
    assert isinstance(error, RequestError) and "must end in one of" in str(error)
    error = run(output.root, "--plot", str(tmp_path / "no" / f"curve.{ending}")).exception
    assert isinstance(error, RunError) and "No such file or directory" in str(error)


def test_without_matplotlib_a_plot_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    done = run(str(tmp_path), "--plot", "curve.png")
    assert isinstance(done.exception, RequestError)
    assert "needs matplotlib: pip install" in str(done.exception)


def test_the_command_refuses_what_is_no_output(tmp_path: Path) -> None:
    error = run(str(tmp_path)).exception
    assert isinstance(error, OutputError)
    assert "is no negtemp output" in str(error)
