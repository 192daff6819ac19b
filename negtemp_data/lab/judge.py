"""What a job's judge is worth, measured on samples whose quality is known.

Generate clean and injected samples → spoil the clean ones in known ways → let the judge score all
of them, as a run that reuses their output → measure. Each step is an output of its own, so that an
interrupted generation goes on where it stopped; samples are spoilt and judged anew each time.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json

from negtemp_data.engine.catalogue import resolve_model
from negtemp_data.engine.tokens import load_tokenizer
from negtemp_data.errors import RequestError, RunError
from negtemp_data.jobspec import (
    Job,
    PairwiseJudgeConfig,
    build_job,
    needs_twin,
    score_of_twins,
    single_judges,
)
from negtemp_data.lab.damage import DAMAGES
from negtemp_data.lab.labelled import (
    CLEAN,
    GIVEN,
    Row,
    generation_job,
    given_job,
    labelled_job,
    read_given,
    spoil,
    write_output,
    write_prompts,
    written_row,
)
from negtemp_data.lab.measures import (
    Interval,
    Scores,
    Threshold,
    auc_interval,
    calibration_error,
    paired_interval,
    rank_correlation,
    suggest_threshold,
)
from negtemp_data.pipeline.monitor import Reporter
from negtemp_data.pipeline.run import RunRequest, run_job
from negtemp_data.storage import Output, read_rows

_FEWEST = 10
"""Prompts from which on figures are worth printing."""

BAD_KINDS = ("unrestricted", *(damage.name for damage in DAMAGES if damage.name != "swapped"))
"""Kinds that nobody would want: with the clean samples they make the pool of `accept_at`."""


@dataclass(frozen=True)
class KindResult:
    """The judge on one kind of sample, against the clean samples of the same prompts."""

    n: int
    """Samples of this kind."""
    mean_score: float
    auc: Interval
    """0.5: the judge sees no difference; 1: every clean sample has the higher score."""
    parts: dict[str, Interval]
    """AUC of each part of the score alone."""
    paired: Interval | None
    """Share of prompts whose clean sample has the higher score; None without prompts in common."""


@dataclass(frozen=True)
class JudgeReport:
    """What was measured. Correlations are Spearman's ρ."""

    n_clean: int
    n_failed: int
    """Samples that the judge could say nothing of."""
    mean_clean: float
    kinds: dict[str, KindResult]
    calibration_error: float
    length_bias: float
    """Correlation of score and length among the clean samples."""
    criteria_agreement: dict[str, float]
    """Correlation of each two parts of the score, over all samples."""
    order_agreement: float | None
    """Share of samples that a pairwise judge ranks alike in both orders."""
    mean_mass_outside: float | None
    """Probability that falls outside the scale's labels, in the mean."""
    threshold: Threshold | None
    """None: no score reaches the wanted precision."""
    wanted_precision: float


@dataclass(frozen=True)
class Calibration:
    """What to measure, and where to keep it."""

    job: Job
    folder: Path
    n_prompts: int
    precision: float
    samples: Path | None = None
    """Labelled samples of the user's; None: they are made."""


def measure_judge(request: Calibration, reporter: Reporter) -> JudgeReport:
    """Measures the job's judge.

    Raises:
        RequestError: The job has no judge, or no control, or the samples don't fit the judge.
        RunError: Generating or judging stopped, or too few samples are left.
    """
    if request.job.verify.judge is None:
        raise RequestError("the job has no verify.judge, so there is nothing to measure.")
    if request.samples is None:
        job, labels = _make_samples(request, reporter)
    else:
        job, labels = _take_samples(request, request.samples)
    judge = request.job.model_dump(mode="json")["verify"]["judge"]
    data = job.model_dump(mode="json")
    data["verify"] = {"judge": judge}
    data["output"] = {"path": str(request.folder / "judged")}
    judged_job = build_job(data, "the lab's job")
    judged = Output(judged_job.output.path)
    labelled = Output(job.output.path)
    reporter.note("judging")
    run_job(RunRequest(judged_job, judged, fresh=True, reuse=labelled), reporter)
    report = _measure(list(read_rows(judged)), labels, request)
    (request.folder / "report.json").write_bytes(
        to_json(asdict(report), indent=2, inf_nan_mode="strings") + b"\n"
    )
    return report


def _make_samples(request: Calibration, reporter: Reporter) -> tuple[Job, dict[str, str] | None]:
    folder = request.folder
    generating = generation_job(request.job, request.n_prompts, folder / "generated")
    generated = Output(generating.output.path)
    run_job(RunRequest(generating, generated), reporter)
    samples = spoil(generated, _tokenizer(request.job), request.job.seed)
    if len(samples) < _FEWEST:
        raise RunError(
            f"only {len(samples)} prompts have a clean answer of three sentences or more, which is "
            "too few to measure with; take more prompts, or a larger max_tokens."
        )
    prompts = folder / "prompts.jsonl"
    write_prompts(prompts, [kinds[CLEAN] for kinds in samples.values()])
    job = labelled_job(generating, prompts, folder / "labelled")
    write_output(job, Output(job.output.path), samples)
    return job, None


def _take_samples(request: Calibration, path: Path) -> tuple[Job, dict[str, str]]:
    for where, judge in single_judges(request.job.verify.judge):
        if needs_twin(judge):
            raise RequestError(
                f"{where}: compares samples with their twins; samples from a file have none."
            )
    tokenizer, samples, labels = _tokenizer(request.job), {}, {}
    for number, (prompt, completion, is_good) in enumerate(read_given(path), start=1):
        row = _blank_row(prompt, str(number))
        samples[row["prompt_id"]] = {GIVEN: written_row(row, completion, tokenizer)}
        labels[row["prompt_id"]] = CLEAN if is_good else "bad"
    if min(list(labels.values()).count(CLEAN), list(labels.values()).count("bad")) < _FEWEST:
        raise RequestError(f"{path}: needs at least {_FEWEST} good and {_FEWEST} bad samples.")
    prompts = request.folder / "prompts.jsonl"
    write_prompts(prompts, [kinds[GIVEN] for kinds in samples.values()])
    job = given_job(request.job, prompts, request.folder / "labelled")
    write_output(job, Output(job.output.path), samples)
    return job, labels


def _blank_row(prompt: str, prompt_id: str) -> Row:
    nothing = ("messages", "source", "prompt_tokens", "score", "rationale", "error")
    return dict.fromkeys(nothing) | {
        "prompt_id": prompt_id,
        "prompt": prompt,
        "seed": 0,
        "deferred": 0,
        "status": "rejected",
        "scores": [],
        "checks": [],
        "attempt": 0,
        "attempts": [],
    }


def _tokenizer(job: Job) -> Any:
    return load_tokenizer(resolve_model(job.generate.model).path, job.generate.engine)


def _measure(
    rows: list[Row], labels: Mapping[str, str] | None, request: Calibration
) -> JudgeReport:
    by_kind: dict[str, dict[str, Row]] = {}
    for row in rows:
        kind = row["arm"] if labels is None else labels[row["prompt_id"]]
        if row["score"] is not None:
            by_kind.setdefault(kind, {})[row["prompt_id"]] = row
    has_pairs = labels is None
    clean = by_kind.pop(CLEAN, {})
    tie = score_of_twins(request.job.verify.judge)
    if not clean and tie is not None:
        # A judge that compares with the twin has no score for the twin itself.
        first = next(iter(by_kind.values()), {})
        clean = {prompt_id: row | {"score": tie, "scores": []} for prompt_id, row in first.items()}
    n_failed = sum(row["status"] == "failed" for row in rows)
    if len(clean) < _FEWEST or not by_kind:
        raise RunError(f"the judge failed on {n_failed} of {len(rows)} samples; too few are left.")
    bad = [kind for kind in by_kind if kind in BAD_KINDS or labels is not None]
    good_scores = _scores(clean)
    bad_rows = (_alike_in_halves(clean, by_kind[k]) if has_pairs else by_kind[k] for k in bad)
    bad_scores = np.concatenate([_scores({}), *(_scores(rows) for rows in bad_rows)])
    if len(bad_scores) < _FEWEST:
        raise RunError(
            f"only {len(bad_scores)} bad samples have a score, and the judge failed on {n_failed} "
            "samples; too few are left to measure with."
        )
    scored = [*clean.values(), *(row for kind in by_kind.values() for row in kind.values())]
    parts = _parts(scored)
    masses = [s["mass"] for row in scored for s in row["scores"] if s["mass"] is not None]
    return JudgeReport(
        n_clean=len(clean),
        n_failed=n_failed,
        mean_clean=float(good_scores.mean()),
        kinds={kind: _measure_kind(clean, rows, has_pairs) for kind, rows in by_kind.items()},
        calibration_error=calibration_error(good_scores, bad_scores),
        length_bias=rank_correlation(
            good_scores.tolist(), [row["completion_tokens"] for row in clean.values()]
        ),
        criteria_agreement={
            f"{left}, {right}": rank_correlation(parts[left], parts[right])
            for i, left in enumerate(parts)
            for right in list(parts)[i + 1 :]
        },
        order_agreement=_order_agreement(request.job, scored),
        mean_mass_outside=float(np.mean(masses)) if masses else None,
        threshold=suggest_threshold(good_scores, bad_scores, request.precision),
        wanted_precision=request.precision,
    )


def _alike_in_halves(clean: Mapping[str, Row], rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows of which every other one belongs to every other prompt of the clean ones.

    So what is fitted on one half of the prompts is measured on the other, kind by kind.
    """
    prompts = list(clean)
    pairs = zip(prompts[::2], prompts[1::2], strict=False)
    whole = [pair for pair in pairs if pair[0] in rows and pair[1] in rows]
    return {prompt_id: rows[prompt_id] for pair in whole for prompt_id in pair}


def _measure_kind(clean: Mapping[str, Row], rows: Mapping[str, Row], has_pairs: bool) -> KindResult:
    bad = _scores(rows)
    if not has_pairs:
        found = auc_interval(_scores(clean), bad, is_paired=False)
        parts = _parts_auc(list(clean.values()), list(rows.values()), is_paired=False)
        return KindResult(len(bad), float(bad.mean()), found, parts, None)
    common = [prompt_id for prompt_id in clean if prompt_id in rows]
    good = _scores({prompt_id: clean[prompt_id] for prompt_id in common})
    bad = _scores({prompt_id: rows[prompt_id] for prompt_id in common})
    return KindResult(
        n=len(bad),
        mean_score=float(bad.mean()),
        auc=auc_interval(good, bad, is_paired=True),
        parts=_parts_auc([clean[p] for p in common], [rows[p] for p in common], is_paired=True),
        paired=paired_interval(good, bad),
    )


def _parts_auc(good: list[Row], bad: list[Row], *, is_paired: bool) -> dict[str, Interval]:
    both = _parts([*good, *bad])
    return {
        name: auc_interval(
            np.array(values[: len(good)]), np.array(values[len(good) :]), is_paired=is_paired
        )
        for name, values in both.items()
    }


def _scores(rows: Mapping[str, Row]) -> Scores:
    return np.array([row["score"] for row in rows.values()], dtype=np.float64)


def _parts(rows: list[Row]) -> dict[str, list[float]]:
    """Values of each part of the score, of those that all rows have."""
    names = {score["criterion"] for score in rows[-1]["scores"]}
    values: dict[str, list[float]] = {name: [] for name in sorted(names)}
    for row in rows:
        for score in row["scores"]:
            if score["criterion"] in values:
                values[score["criterion"]].append(score["score"])
    return {name: found for name, found in values.items() if len(found) == len(rows)}


def _order_agreement(job: Job, rows: list[Row]) -> float | None:
    judges = [judge for _, judge in single_judges(job.verify.judge)]
    if not any(isinstance(judge, PairwiseJudgeConfig) for judge in judges):
        return None
    found = [
        score["score"]
        for row in rows
        for score in row["scores"]
        if score["criterion"].split("/")[-1] == "agreement"
    ]
    return float(np.mean(found)) if found else None


def scores_by_kind(judged: Output) -> dict[str, list[float]]:
    """Scores of a measurement's samples, for plots."""
    scores: dict[str, list[float]] = {}
    for row in read_rows(judged):
        if row["score"] is not None:
            scores.setdefault(row["arm"], []).append(row["score"])
    return scores
