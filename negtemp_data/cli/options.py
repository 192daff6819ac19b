"""Arguments and options that several commands share, and how they print."""

import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

address_option = click.option(
    "--address",
    metavar="URL",
    help="Dashboard of the Ray cluster, http://HOST:8265. Default: RAY_API_SERVER_ADDRESS or "
    "RAY_ADDRESS. RAY_JOB_HEADERS and RAY_AUTH_MODE are honoured.",
)


def job_argument(function: F) -> F:
    """JOB, and the options that change it."""
    function = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="PATH=VALUE",
        help="Change a field of the job; the value is YAML. Repeatable.",
    )(function)
    function = click.option(
        "--limit", type=click.IntRange(min=1), help="Use this many prompts at most."
    )(function)
    function = click.option("--out", metavar="DIR", help="Output folder, instead of the job's.")(
        function
    )
    return click.argument("job_file", metavar="JOB", type=click.Path(dir_okay=False))(function)


def output_argument(function: F) -> F:
    """OUT, the folder of a run."""
    return click.argument("out", metavar="OUT", type=click.Path(file_okay=False))(function)


def json_option(function: F) -> F:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(
        function
    )


def gather_overrides(overrides: tuple[str, ...], limit: int | None, out: str | None) -> list[str]:
    """All changes to a job as `--set` takes them; named options win."""
    changes = list(overrides)
    if limit is not None:
        changes.append(f"prompts.limit={limit}")
    if out is not None:
        changes.append(f"output.path={json.dumps(out)}")
    return changes


def safe_text(text: str) -> str:
    """`text` without control characters, newlines and tabs excepted."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char)[0] != "C" else "\ufffd"
        for char in text
    )


def print_json(data: Any) -> None:
    """One JSON document on stdout, on many lines; see `to_json_line`."""
    click.echo(_to_json(data, indent=2))


def to_json_line(data: Any) -> str:
    """One line of JSON; infinities and nan are text, since JSON has no literals for them."""
    return _to_json(data, indent=None)


def _to_json(data: Any, indent: int | None) -> str:
    from pydantic_core import to_json  # noqa: PLC0415

    return to_json(data, indent=indent, inf_nan_mode="strings").decode()


def short_path(path: str | os.PathLike[str]) -> str:
    """A path as a person would type it: relative, unless that leads up and away; a URI as it is."""
    if "://" in os.fspath(path):
        return os.fspath(path)
    try:
        relative = os.path.relpath(path)
    except FileNotFoundError:  # Ray deletes a job's working directory while the driver still ends
        return os.fspath(path)
    return os.path.abspath(path) if relative.startswith("..") else relative


@contextmanager
def reading_bar(is_hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; yields what is told of rows read, and of rows in all."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    # A duplicate, because what vLLM prints goes to a file meanwhile.
    with os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8") as screen:
        console = Console(file=screen, highlight=False)
        with Progress(
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=is_hidden or not console.is_terminal,
        ) as bar:
            task = bar.add_task("rows read", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
