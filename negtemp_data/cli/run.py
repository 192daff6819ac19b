"""`negtemp run`: makes a data set, and the end of a run as `resume` shows it too."""

import os
import signal
from collections.abc import Callable
from functools import partial
from itertools import islice
from types import FrameType
from typing import Any

import click

from negtemp_data import api
from negtemp_data.cli.options import (
    gather_overrides,
    job_argument,
    json_option,
    print_json,
    safe_text,
    short_path,
)
from negtemp_data.jobspec import Job, load_job

EXIT_TOO_MANY_FAILED = 3

_ROWS_FOR_DISTINCT = 2000
"""Rows of an arm from which distinct-2 is taken at the end of a run."""


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of `run` and `resume`."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
        click.option(
            "-v", "--verbose", is_flag=True, help="Print a line of progress every two seconds."
        ),
        click.option(
            "--max-failed",
            type=click.FloatRange(0, 1),
            default=0.01,
            show_default=True,
            help="Exit with 3 if a larger share of the rows has failed.",
        ),
        click.option(
            "--address",
            metavar="HOST:PORT",
            help="Ray cluster to run on (GCS address or `auto`); default: a Ray of its own.",
        ),
    ):
        function = option(function)
    return json_option(function)


@click.command(
    epilog="Example:  negtemp run jobs/quickstart.yaml "
    "--set schedules.negative.inject.0.temperature=-2 --limit 8 --out out/try"
)
@job_argument
@run_options
@click.option("--fresh", is_flag=True, help="Start over: delete what an earlier run left in OUT.")
@click.option(
    "--reuse",
    metavar="OLD",
    type=click.Path(file_okay=False),
    help="Take over the rows of this older output where only checks, judge, samples or arms have "
    "changed, and judge them anew.",
)
def command(
    job_file: str,
    overrides: tuple[str, ...],
    limit: int | None,
    out: str | None,
    fresh: bool,
    reuse: str | None,
    **options: Any,
) -> None:
    """Make the data set that JOB describes, here or on a Ray cluster.

    Goes on with what it finds in the output folder. Ctrl-C stops; `negtemp resume OUT` continues.
    """
    job = load_job(job_file, gather_overrides(overrides, limit, out))
    start = partial(api.run, job, fresh=fresh, reuse=reuse)
    execute(start, job, job.output.path, **options)


def execute(
    start: Callable[..., Any],
    job: Job,
    out: str,
    *,
    address: str | None,
    max_failed: float,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Runs, shows progress, prints the end, and exits with the run's code.

    Args:
        start: `api.run` or `api.resume` without address and reporter.
        job: The job that it runs.
        out: The output that it writes.
        address: The Ray cluster; None: one of its own.
        max_failed: Share of failed rows above which the command exits with 3.
        quiet: Print nothing but errors.
        verbose: Print lines of progress, many of them, on terminals too.
        as_json: Print the end as JSON.
    """
    from negtemp_data.cli.display import RunDisplay  # noqa: PLC0415
    from negtemp_data.storage import Output  # noqa: PLC0415

    signal.signal(signal.SIGTERM, interrupt)
    output = Output(out)
    # A duplicate, because the run sends what Ray and vLLM print to a file.
    with os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8") as screen:
        display = RunDisplay(screen, quiet or as_json, verbose)
        try:
            result = start(address=address, reporter=display)
        except KeyboardInterrupt:
            display.close()
            if output.exists():
                print(f"Go on with: negtemp resume {short_path(output.root)}", file=screen)
            raise
        finally:
            display.close()
    rows = result.totals.overall
    if as_json:
        print_json(_as_json(result, output))
    elif not quiet:
        _show_end(job, output, result)
    if rows.planned and rows.failed / rows.planned > max_failed:
        click.echo(
            f"{rows.failed} of {rows.planned} rows have failed, more than --max-failed "
            f"{max_failed:.1%}; `negtemp show {output.root} --status failed` says why.",
            err=True,
        )
        raise click.exceptions.Exit(EXIT_TOO_MANY_FAILED)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """A SIGTERM stops a run as Ctrl-C does."""
    raise KeyboardInterrupt


def _as_json(result: Any, output: Any) -> dict[str, Any]:
    from dataclasses import asdict  # noqa: PLC0415

    return {
        "output": output.root,
        "totals": asdict(result.totals),
        "generated": asdict(result.generated),
        "tokens": result.tokens,
        "judge_tokens": result.judge_tokens,
        "seconds": round(result.seconds, 3),
    }


def _show_end(job: Job, output: Any, result: Any) -> None:
    """A table by arm, one pair of twins, and what to do next."""
    from rich.console import Console  # noqa: PLC0415

    from negtemp_data.cli.display import arms_table  # noqa: PLC0415
    from negtemp_data.judging.diversity import distinct_n  # noqa: PLC0415
    from negtemp_data.storage import read_rows  # noqa: PLC0415

    console = Console(highlight=False)
    distinct = {}
    for arm in result.totals.arms:
        rows = islice(read_rows(output, arm=arm, columns=["token_ids"]), _ROWS_FOR_DISTINCT)
        distinct[arm] = distinct_n(row["token_ids"] or () for row in rows)
    console.print(arms_table(result.totals, console.width, distinct))
    if result.seconds:
        line = (
            f"\n{result.tokens} tokens in {result.seconds:.0f} s after the engine's start: "
            f"{result.tokens / result.seconds:.0f} tok/s"
        )
        if result.judge_tokens:
            line += f"; the judge's engine read {result.judge_tokens / result.seconds:.0f} tok/s"
        console.print(line, soft_wrap=True)
    _show_twins(job, output, console)
    root = short_path(output.root)
    console.print(
        f"\nNext:\n  negtemp show {root}          samples, injected tokens marked"
        f"\n  negtemp check {root}         integrity of the data set"
        f"\n  negtemp export {root} DIR --format sft   for training"
        f'\n  python -c "import datasets; print(datasets.load_from_disk({root!r}))"',
        soft_wrap=True,
        markup=False,
    )


def _show_twins(job: Job, output: Any, console: Any) -> None:
    """A control sample beside its twin, where the job has both."""
    from rich.text import Text  # noqa: PLC0415

    from negtemp_data.cli.display import marked_completion, side_by_side  # noqa: PLC0415
    from negtemp_data.cli.show import pieces_of  # noqa: PLC0415
    from negtemp_data.storage import read_rows  # noqa: PLC0415

    arms = list(job.generate.samples)
    control = next((arm for arm in arms if not job.schedules[arm].inject), None)
    injected = next((arm for arm in arms if job.schedules[arm].inject), None)
    if control is None or injected is None:
        return
    twins: dict[tuple[str, int], dict[str, Any]] = {}
    for row in islice(read_rows(output, status="accepted"), _ROWS_FOR_DISTINCT):
        if row["arm"] not in (control, injected):
            continue
        twin = twins.setdefault((row["prompt_id"], row["sample"]), row)
        if twin["arm"] == row["arm"] or not (twin["injections"] or row["injections"]):
            continue
        pair = sorted((twin, row), key=lambda r: r["arm"] != control)
        request = row["prompt"] or " / ".join(m["content"] for m in row["messages"] or ())
        console.print(
            Text(f"\nTwins of prompt {safe_text(row['prompt_id'])}: {safe_text(request[:200])}")
        )
        texts = [marked_completion(r, pieces_of(job, r)) for r in pair]
        console.print(side_by_side([r["arm"] for r in pair], texts))
        return
