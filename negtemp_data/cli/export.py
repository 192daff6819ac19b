"""`negtemp export`: a data set as a trainer takes it."""

import os
import signal
from pathlib import Path
from typing import Any

import click

from negtemp_data.cli.options import json_option, output_argument, print_json, reading_bar

_SHAPES = ("chat", "text", "messages")


@click.command(
    epilog="Example:  negtemp export out/quickstart out/dpo --format dpo --margin 0.2 "
    "--split train=0.9,test=0.1"
)
@output_argument
@click.argument("dest", metavar="DEST", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_name",
    required=True,
    metavar="FORMAT",
    help="sft, sft-tokens, dpo, kto, unlikelihood: for trainers; parquet, jsonl: every column.",
)
@click.option(
    "--split",
    default="train=1",
    show_default=True,
    metavar="NAME=SHARE,…",
    help="Splits by prompt: no prompt is in two of them.",
)
@click.option("--arm", "arms", multiple=True, help="Only samples of this arm. Repeatable.")
@click.option(
    "--all", "is_all", is_flag=True, help="sft, sft-tokens: not only the best of a prompt."
)
@click.option("--min-score", type=float, help="sft, sft-tokens: only rows with this score or more.")
@click.option(
    "--shape",
    type=click.Choice(_SHAPES),
    help="sft, dpo, kto: lists of messages (chat, the default) or bare texts; sft: one column "
    "messages.",
)
@click.option(
    "--margin",
    type=click.FloatRange(min=0),
    help="dpo: the chosen score leads by this or more.",
)
@click.option(
    "--pairs",
    multiple=True,
    type=click.Choice(["verdict", "twins", "extremes"]),
    help="dpo: accepted against rejected siblings, an injected sample against its twin, best "
    "against worst; default: all. Repeatable.",
)
@click.option(
    "--length-ratio",
    type=click.FloatRange(min=1),
    help="dpo: the longer completion has at most this many times the shorter's tokens.",
)
@click.option("--push-to-hub", "repo", metavar="REPO", help="Then upload DEST to this data set.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    out: str,
    dest: Path,
    format_name: str,
    split: str,
    arms: tuple[str, ...],
    is_all: bool,
    repo: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the committed samples of OUT to the new folder DEST, as a trainer takes them.

    `datasets.load_dataset` opens DEST. The same OUT and options give the same bytes.
    """
    from negtemp_data import api  # noqa: PLC0415
    from negtemp_data.cli.run import interrupt  # noqa: PLC0415
    from negtemp_data.export.hub import check_hub, push_folder  # noqa: PLC0415

    signal.signal(signal.SIGTERM, interrupt)
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if is_all:
        given["best_only"] = False
    if repo is not None:
        check_hub(repo)
    with reading_bar(quiet or as_json) as on_progress:
        result = api.export_dataset(
            out, dest, format_name, split=split, arms=arms, on_progress=on_progress, **given
        )
    url = push_folder(dest, repo) if repo is not None else None
    if not result.is_complete and not quiet:
        click.echo(
            f"The run is not finished: {result.committed_shards} of "
            f"{result.planned_shards or 'an unknown number of'} shards are committed, and these "
            f"are exported. `negtemp resume {out}` makes the rest.",
            err=True,
        )
    if as_json:
        print_json(
            {
                "dest": str(dest.absolute()),
                "format": format_name,
                "rows": result.rows,
                "kinds": result.kinds,
                "files": result.files,
                "complete": result.is_complete,
                "hub": url,
            }
        )
    elif not quiet:
        _show_end(result, os.path.relpath(dest), url)


def _show_end(result: Any, dest: str, url: str | None) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    table.add_column("rows", no_wrap=True)
    for name in result.rows:
        table.add_column(name, justify="right")
    for kind, counts in result.kinds.items():
        table.add_row(kind, *(str(count) for count in counts.values()))
    table.add_row("all", *(str(count) for count in result.rows.values()))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f'\nNext:  python -c "import datasets; print(datasets.load_dataset({dest!r}))"',
        soft_wrap=True,
        markup=False,
    )
    if url is not None:
        console.print(f"Uploaded to {url}", soft_wrap=True, markup=False)
