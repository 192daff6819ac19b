"""`negtemp lab recovery`: how a text recovers from its injections."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from negtemp_data import api
from negtemp_data.cli.options import json_option, output_argument, print_json, reading_bar

if TYPE_CHECKING:
    from rich.table import Table

    from negtemp_data.lab.recovery import ArmRecovery, RecoveryReport

_SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Tokens after an injection that the table has; --json has all."""


@click.command(
    epilog="Example:  negtemp lab recovery out/quickstart --tokens 24 --plot recovery.png"
)
@output_argument
@click.option(
    "--tokens",
    "n_tokens",
    type=click.IntRange(1, 4096),
    default=32,
    show_default=True,
    help="Tokens after an injection to look at.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="A model other than the generator that reads the texts; without, what generating has "
    "recorded counts.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw the curves, too: .png, .svg or .pdf.",
)
@json_option
def recovery(out: str, n_tokens: int, model: str | None, plot: Path | None, as_json: bool) -> None:
    """Measure how the texts of OUT recover from injections.

    How improbable is the k-th token after an injection, compared with the twin's token in the same
    place? The half-life is the number of tokens in which the excess falls to half.
    """
    from dataclasses import asdict  # noqa: PLC0415

    from negtemp_data.lab.plot import check_plot, plot_recovery  # noqa: PLC0415
    from negtemp_data.lab.recovery import measure_recovery  # noqa: PLC0415
    from negtemp_data.storage import Output  # noqa: PLC0415

    if plot is not None:
        check_plot(plot)
    job = api.saved_job(out)
    with reading_bar(is_hidden=as_json) as on_progress:
        report = measure_recovery(Output(out), job, n_tokens, model, on_progress)
    if as_json:
        print_json(asdict(report))
    else:
        _show(report)
    if plot is not None:
        plot_recovery(report, plot)


def _show(report: "RecoveryReport") -> None:
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False)
    for arm, found in report.arms.items():
        console.print(
            f"{arm}: {found.n_injections} injections, {found.n_prompts} prompts", soft_wrap=True
        )
        if found.points:
            console.print(_table(found, report.control))
        for line in _lines(found):
            console.print(line, soft_wrap=True)
        console.print()
    whose = "in its own words as recorded, the generator's own view"
    if not report.is_generator:
        whose = "which reads the texts in tokens of its own"
    console.print(f"Surprise in nats, by {report.reader}, {whose}.", soft_wrap=True)


def _table(found: "ArmRecovery", control: str) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for header in ("token", "injections", "surprise", f"in {control}", "excess", "95%"):
        table.add_column(header, justify="right", no_wrap=True)
    for point in found.points:
        if point.k in _SHOWN or point is found.points[-1]:
            table.add_row(
                str(point.k),
                str(point.n),
                f"{point.surprise:.2f}",
                f"{point.twin:.2f}",
                f"{point.excess.value:+.2f}",
                f"{point.excess.low:+.2f} to {point.excess.high:+.2f}",
            )
    return table


def _lines(found: "ArmRecovery") -> list[str]:
    lines = []
    n_known = len(found.points)
    if not n_known:
        lines.append("too few prompts to measure with: less than 10")
    elif found.half_life is None:
        lines.append("no half-life: the first token's excess is not above 0 with 95% confidence")
    else:
        tokens, low, high = (
            f"more than {n_known - 1}" if end is None else f"{end:.1f}"
            for end in (found.half_life.tokens, found.half_life.low, found.half_life.high)
        )
        never = f"never within {n_known} tokens" if found.half_life.tokens is None else tokens
        lines.append(f"half-life in tokens: {never} (95%: {low} to {high})")
    if found.n_without_twin:
        lines.append(f"{found.n_without_twin} samples are left out, whose twins are not committed")
    if found.n_unread:
        lines.append(f"{found.n_unread} samples are left out, which the model could not read")
    return lines
