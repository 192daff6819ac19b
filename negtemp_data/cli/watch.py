"""`negtemp status --watch`: a run as it goes on, seen from any machine."""

import time
from contextlib import nullcontext

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from negtemp_data import api
from negtemp_data.__main__ import EXIT_INTERRUPTED
from negtemp_data.cli.display import describe_live, live_view
from negtemp_data.pipeline.snapshot import Snapshot
from negtemp_data.storage import Output, is_held

_LOOK_EVERY_S = 2.0

SILENT = "A run is writing here; it says nothing of its progress at the moment."


def watch_run(output: Output, console: Console) -> None:
    """Shows a run until it ends: in place on a terminal, a line for each change elsewhere.

    Raises:
        click.exceptions.Exit: Interrupted.
    """
    screen = Live(console=console, auto_refresh=False, transient=True)
    last: object = None
    try:
        with screen if console.is_terminal else nullcontext():
            # The lock is only tried when the run is silent: that can get in another run's way.
            while (snapshot := api.live(output)) is not None or is_held(output):
                if console.is_terminal:
                    view = live_view(snapshot, console.width) if snapshot else Text(SILENT)
                    screen.update(view, refresh=True)
                elif (seen := _what_matters(snapshot)) != last:
                    last = seen
                    line = describe_live(snapshot) if snapshot else SILENT
                    console.print(Text(line), soft_wrap=True)
                time.sleep(_LOOK_EVERY_S)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


def _what_matters(snapshot: Snapshot | None) -> object:
    """What is a change: counts, engines and stage, not the rates."""
    if snapshot is None:
        return SILENT
    counts = [(a.accepted, a.rejected, a.failed, a.unverified) for a in snapshot.arms.values()]
    return counts, snapshot.tokens, snapshot.engines, snapshot.stage
