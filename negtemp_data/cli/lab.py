"""`negtemp lab`: experiments on models."""

import os
import signal
from pathlib import Path
from typing import Any

import click

from negtemp_data.cli.groups import SuggestingGroup
from negtemp_data.cli.options import gather_overrides, job_argument, json_option, print_json
from negtemp_data.cli.recovery import recovery
from negtemp_data.cli.run import interrupt
from negtemp_data.errors import RequestError
from negtemp_data.jobspec import load_job


@click.group(
    cls=SuggestingGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example:  negtemp lab judge jobs/judge.yaml --prompts 200 --out out/lab",
)
def command() -> None:
    """Experiments on models, each an example of what to measure before a long run."""


command.add_command(recovery)


@command.command(epilog="Example:  negtemp lab judge jobs/judge.yaml --prompts 200 --out out/lab")
@job_argument
@click.option(
    "--prompts",
    "n_prompts",
    type=click.IntRange(min=10),
    default=200,
    show_default=True,
    help="Prompts of the job to make samples for.",
)
@click.option(
    "--samples",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Your own labelled samples instead: JSON lines with prompt, completion, good (true or "
    "false).",
)
@click.option(
    "--precision",
    type=click.FloatRange(0.5, 1, max_open=True),
    default=0.9,
    show_default=True,
    help="Wanted share of good samples among the accepted, from a half-good pool.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def judge(
    job_file: str,
    overrides: tuple[str, ...],
    limit: int | None,
    out: str | None,
    n_prompts: int,
    samples: Path | None,
    precision: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure what the judge of JOB is worth, and suggest a threshold.

    Samples of known quality are made: clean ones, injected ones, and clean ones spoilt in ways
    that have nothing to do with injections. The judge scores them all.
    """
    from dataclasses import asdict  # noqa: PLC0415

    from negtemp_data.cli.display import RunDisplay  # noqa: PLC0415
    from negtemp_data.lab.judge import Calibration, measure_judge, scores_by_kind  # noqa: PLC0415
    from negtemp_data.lab.plot import plot_scores  # noqa: PLC0415
    from negtemp_data.storage import Output  # noqa: PLC0415

    job = load_job(job_file, gather_overrides(overrides, limit, None))
    place = out or f"{job.output.path}-lab"
    if "://" in place:
        raise RequestError(f"{place}: the lab keeps its samples in a folder; give one by --out.")
    folder = Path(place).absolute()
    request = Calibration(job, folder, min(n_prompts, limit or n_prompts), precision, samples)
    signal.signal(signal.SIGTERM, interrupt)
    with os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8") as screen:
        display = RunDisplay(screen, quiet or as_json)
        try:
            report = measure_judge(request, display)
        finally:
            display.close()
    accept_at = report.threshold.accept_at if report.threshold else None
    scores = scores_by_kind(Output(folder / "judged"))
    is_drawn = plot_scores(scores, folder / "scores.png", accept_at)
    if as_json:
        print_json(asdict(report))
    elif not quiet:
        _show(report, folder, is_drawn)


def _show(report: Any, folder: Path, is_drawn: bool) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from negtemp_data.lab.measures import LEAST_RECALL  # noqa: PLC0415

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("against clean", no_wrap=True)
    for header in ("samples", "mean score", "AUC", "95%", "clean wins its pair"):
        table.add_column(header, justify="right")
    for kind, found in report.kinds.items():
        table.add_row(
            kind,
            str(found.n),
            f"{found.mean_score:.2f}",
            f"{found.auc.value:.2f}",
            f"{found.auc.low:.2f} to {found.auc.high:.2f}",
            "–" if found.paired is None else f"{found.paired.value:.0%}",
        )
    console.print(table)
    # A judge may have nothing to say of some kind's samples.
    parts = list(dict.fromkeys(part for kind in report.kinds.values() for part in kind.parts))
    if len(parts) > 1:
        table = Table(box=None, pad_edge=False)
        table.add_column("AUC of a part alone", no_wrap=True)
        for kind in report.kinds:
            table.add_column(kind, justify="right")
        for part in parts:
            table.add_row(
                part,
                *(
                    f"{kind.parts[part].value:.2f}" if part in kind.parts else "–"
                    for kind in report.kinds.values()
                ),
            )
        console.print()
        console.print(table)
    lines = [
        f"{report.n_clean} clean samples, mean score {report.mean_clean:.2f}; "
        f"{report.n_failed} samples could not be judged",
        f"calibration error {report.calibration_error:.3f} · "
        f"correlation with length {report.length_bias:+.2f}",
    ]
    lines += [
        f"correlation of {pair}: {rho:+.2f}" for pair, rho in report.criteria_agreement.items()
    ]
    if report.order_agreement is not None:
        lines.append(f"both orders agree on {report.order_agreement:.0%}")
    if report.mean_mass_outside is not None:
        lines.append(f"probability outside the scale: {report.mean_mass_outside:.0%} in the mean")
    if report.threshold is None:
        lines.append(
            f"no accept_at gives a precision of {report.wanted_precision:.0%} and still accepts "
            f"{LEAST_RECALL:.0%} of the clean"
        )
    else:
        lines.append(
            f"accept_at: {report.threshold.accept_at:.2f} gives a precision of "
            f"{report.threshold.precision:.0%} and accepts {report.threshold.recall:.0%} of the "
            "clean, on prompts that it was not chosen on"
        )
    lines.append(f"{folder}: report.json" + (", scores.png" if is_drawn else ""))
    for line in lines:
        console.print(line, soft_wrap=True)
