"""How a run looks while it goes and when it ends: a live bar, plain lines, tables, marked text.

Text that came out of a model is hostile: control characters are replaced before it reaches the
terminal, and rich's markup is never interpreted in it.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from negtemp_data.cli.options import safe_text
from negtemp_data.pipeline.progress import Progress
from negtemp_data.pipeline.snapshot import Snapshot
from negtemp_data.storage import Totals

PLAIN_LINE_EVERY_S, VERBOSE_LINE_EVERY_S = 30.0, 2.0

_QUIET_S = 30.0
"""Seconds without a sign of life from which they are shown."""

INJECTED_STYLE = "bold black on yellow"


class RunDisplay:
    """A live line on a terminal, a plain one every 30 s elsewhere."""

    def __init__(self, screen: TextIO, quiet: bool, verbose: bool = False) -> None:
        """Prints to `screen`; `quiet` prints nothing, `verbose` lines only and more of them."""
        self.console = Console(file=screen, highlight=False, quiet=quiet)
        # What libraries print goes to the run's log, not around the live line onto the screen.
        self._live = Live(
            console=self.console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._note = ""
        self._last_line_at = 0.0
        self._is_live = self.console.is_terminal and not verbose
        self._line_every_s = VERBOSE_LINE_EVERY_S if verbose else PLAIN_LINE_EVERY_S
        if self._is_live:
            self._live.start()

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._is_live:
            self._live.stop()

    def note(self, text: str) -> None:
        """Something that takes long begins."""
        self._note = text
        if self._is_live:
            self._live.update(Spinner("dots", text=Text(text)))
        else:
            self.console.print(Text(text))

    def progress(self, progress: Progress) -> None:
        """The counts have moved."""
        if not progress.seconds:
            return  # the note still says what is going on
        line = Text(describe(progress))
        if self._is_live:
            view = Table.grid()  # a bar ends no line of its own
            view.add_row(ProgressBar(total=progress.planned_rows, completed=rows_done(progress)))
            view.add_row(line)
            self._live.update(view)
        elif time.monotonic() - self._last_line_at >= self._line_every_s:
            self._last_line_at = time.monotonic()
            self.console.print(line)

    def warn(self, text: str) -> None:
        """Something is wrong, and the run goes on."""
        self.console.print(Text(f"Warning: {text}"), soft_wrap=True)


def rows_done(progress: Progress) -> int:
    """Rows of committed shards and of those under way."""
    return min(progress.planned_rows, progress.earlier_rows + progress.made.rows)


def describe(progress: Progress) -> str:
    """One line: rows, shards, tokens/s, acceptance, time left."""
    made = progress.made
    parts = [
        f"{rows_done(progress)}/{progress.planned_rows} rows",
        f"{progress.committed_shards}/{progress.planned_shards} shards",
        f"{progress.tokens / progress.seconds:.0f} tok/s",
    ]
    if progress.judge_tokens:
        parts.append(f"judge reads {progress.judge_tokens / progress.seconds:.0f} tok/s")
    if made.unverified:
        parts.append(f"{made.unverified} to verify")
    judged = made.accepted + made.rejected
    if judged:
        parts.append(f"{made.accepted / judged:.0%} accepted")
    if made.failed:
        parts.append(f"{made.failed} failed")
    if made.rows:
        left_s = (progress.planned_rows - rows_done(progress)) * progress.seconds / made.rows
        parts.append(f"{timedelta(seconds=round(left_s))} left")
    return " · ".join(parts)


def arms_table(
    totals: Totals, width: int, distinct: Mapping[str, float | None] | None = None
) -> Table:
    """Counts by arm: a line each, or a column each where lines would not fit.

    Args:
        totals: The counts.
        width: Columns that there are.
        distinct: distinct-2 of each arm; None: not shown.
    """
    # Where no attempt but the first was made the two are the same.
    retried = totals.overall.accepted_at_once < totals.overall.accepted
    headers = ["arm", "samples", "accepted", *["at once"] * retried, "rejected", "failed"]
    headers += [*["to do"] * bool(totals.overall.not_done), "score", "injections"]
    if distinct is not None:
        headers.append("distinct-2")
    lines = [headers]
    for arm, rows in totals.arms.items():
        cells = [arm, str(rows.planned), _with_share(rows.accepted, rows.acceptance)]
        if retried:
            cells.append(str(rows.accepted_at_once))
        cells += [str(rows.rejected), str(rows.failed)]
        if totals.overall.not_done:
            cells.append(str(rows.not_done))
        cells += [_number(rows.mean_score, 2), str(rows.injections)]
        if distinct is not None:
            cells.append(_number(distinct.get(arm), 3))
        lines.append(cells)
    return _table(lines, width)


def _table(lines: list[list[str]], width: int) -> Table:
    """Lines, of which the first is a header, or the same as columns where they would not fit."""
    columns = list(zip(*lines, strict=True))
    needed = sum(max(map(len, column)) + 2 for column in columns) - 2
    if needed > width:
        lines = [list(column) for column in columns]
    table = Table(box=None, pad_edge=False)
    for index, header in enumerate(lines[0]):
        table.add_column(header, justify="right" if index else "left", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*line)
    return table


def live_view(snapshot: Snapshot, width: int) -> Group:
    """A run under way: its counts by arm, and what it is at."""
    lines = [["arm", "samples", "accepted", "rejected", "failed", "to verify", "rows/s"]]
    for arm, rows in snapshot.arms.items():
        numbers = [rows.rejected, rows.failed, rows.unverified]
        cells = [arm, str(rows.planned), _with_share(rows.accepted, rows.acceptance)]
        lines.append([*cells, *map(str, numbers), f"{rows.rows_per_s:.1f}"])
    return Group(_table(lines, width), Text(describe_live(snapshot)))


def describe_live(snapshot: Snapshot) -> str:
    """One line: rows, shards, tokens/s, engines, the stage."""
    total = snapshot.total
    parts = [
        f"{total.accepted + total.rejected + total.failed}/{total.planned} rows",
        f"{snapshot.committed_shards}/{snapshot.planned_shards} shards",
        f"{snapshot.tokens_per_s:.0f} tok/s",
        f"{total.rows_per_s:.1f} rows/s",
        f"{snapshot.engines} engine{'s' * (snapshot.engines != 1)}",
        snapshot.stage,
    ]
    if total.unverified:
        parts.insert(3, f"{total.unverified} to verify")
    if snapshot.judge_tokens:
        parts.insert(3, f"judge reads {snapshot.judge_tokens_per_s:.0f} tok/s")
    if snapshot.still_s >= _QUIET_S:
        parts.append(f"no sign of life for {snapshot.still_s:.0f} s")
    return " · ".join(parts)


def _with_share(n: int, share: float | None) -> str:
    return str(n) if share is None else f"{n} {share:.0%}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def marked_completion(row: Mapping[str, Any], pieces: Sequence[str] | None) -> Text:
    """A row's completion with its injected tokens in colour and, without colours, in ⟦ ⟧.

    Args:
        row: A row of the data set.
        pieces: Text of each token; None: not known, so nothing is marked.
    """
    if pieces is None:
        return Text(safe_text(row["completion"] or ""))
    injected = {injection["position"] for injection in row["injections"] or ()}
    text = Text()
    for position, piece in enumerate(pieces):
        if position in injected:
            text.append(f"⟦{safe_text(piece)}⟧", style=INJECTED_STYLE)
        else:
            text.append(safe_text(piece))
    return text


def side_by_side(titles: Iterable[str], texts: Iterable[Text]) -> Table:
    """Texts in columns of equal width."""
    table = Table(show_lines=False, expand=True)
    for title in titles:
        table.add_column(Text(title), ratio=1, overflow="fold")
    table.add_row(*texts)
    return table
