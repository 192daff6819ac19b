"""Draws schedules on rulers, for `negtemp plan`: as data, which `--json` prints, and as lines.

▲ is a position at which a rule fires, ░ one at which the logits or the text of a step decide, ·
any other.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from negtemp_data.cli.ruler import Ruler
from negtemp_data.cli.words import describe_base, describe_rule
from negtemp_data.engine.compile import compile_schedule
from negtemp_data.jobspec import AdaptiveBaseConfig, ScheduleConfig
from negtemp_data.sampling import Piece, TextTrigger, fires, temperature_table

_LABEL_COLUMNS = 11
_MAX_LABEL_COLUMNS = 26
_INDENT = " " * _LABEL_COLUMNS


def describe_schedule(config: ScheduleConfig, length: int) -> dict[str, Any]:
    """What all samples of a schedule have in common.

    Args:
        config: The schedule.
        length: Positions to describe.

    Returns:
        `base`: `text`, and `temperatures`, T by position, where positions move it, else null; null
        too where the logits do, as `decided_by` says. `rules`: `text`, what decides where it fires
        (`position`, `logits` or `text`), and the range `start`, `stop` of positions where it may.
    """
    schedule = compile_schedule(config)
    is_adaptive = isinstance(config.base, AdaptiveBaseConfig)
    path = [] if is_adaptive else _path(schedule.base, length)
    base = {
        "text": describe_base(config.base),
        "decided_by": "logits" if is_adaptive else "position",
        "temperatures": path if len(set(path)) > 1 else None,
    }
    rules = []
    for rule, compiled in zip(config.inject, schedule.rules, strict=True):
        is_text = isinstance(compiled.trigger, TextTrigger)
        decided_by = "position" if compiled.is_positional else "text" if is_text else "logits"
        # Where there is no token there is no text.
        start = max(compiled.start, 1) if is_text else compiled.start
        stop = length if compiled.stop is None else min(compiled.stop, length)
        text = describe_rule(rule)
        rules.append({"text": text, "decided_by": decided_by, "start": start, "stop": stop})
    return {"base": base, "rules": rules}


def _path(base: Sequence[Piece], length: int) -> list[float | str]:
    """T by position; infinity as text, since JSON has no literal for it."""
    path: list[float | str] = []
    for piece in base:
        table = [t if math.isfinite(t) else str(t) for t in temperature_table(piece.temperature)]
        end = length if piece.until is None else min(piece.until, length)
        path += [table[min(position, len(table) - 1)] for position in range(len(path), end)]
    return path


def find_firings(config: ScheduleConfig, seed: int, length: int) -> list[list[int] | None]:
    """Positions at which each rule fires for a row of this seed; None: positions do not tell."""
    positions = np.arange(length, dtype=np.int64)
    return [
        positions[fires(seed, rule, i, positions)].tolist() if rule.is_positional else None
        for i, rule in enumerate(compile_schedule(config).rules)
    ]


def draw_schedule(arm: str, schedule: dict[str, Any], length: int, width: int) -> Iterator[str]:
    """Lines that show what `describe_schedule` gave, on `width` columns."""
    ruler = Ruler(length, width - _LABEL_COLUMNS)
    base = schedule["base"]
    drawings: list[tuple[str, str | None, str]] = []
    if base["temperatures"]:
        drawings.append(
            ("base", ruler.bars([float(t) for t in base["temperatures"]]), base["text"])
        )
    else:
        band = ruler.band(0, length) if base["decided_by"] == "logits" else None
        drawings.append(("base", band, base["text"]))
    for index, rule in enumerate(schedule["rules"]):
        is_known = rule["decided_by"] == "position"  # then each row has a drawing of its own
        band = None if is_known else ruler.band(rule["start"], rule["stop"])
        drawings.append((f"rule {index}", band, rule["text"]))
    yield arm
    for label, drawing, text in drawings:
        lines = [drawing] if drawing else []
        lines += textwrap.wrap(text, width - _LABEL_COLUMNS)
        yield f"  {label}".ljust(_LABEL_COLUMNS) + lines[0]
        yield from (_INDENT + line for line in lines[1:])
    if any(drawing for _, drawing, _ in drawings):
        yield _INDENT + ruler.scale()


def draw_firings(
    rows: Sequence[tuple[str, list[list[int] | None]]], length: int, width: int
) -> Iterator[str]:
    """Lines that show where the rules of rows fire, as far as positions tell.

    Args:
        rows: Label of each row, and what `find_firings` gave for it.
        length: Positions to draw.
        width: Columns to use.
    """
    lines = [
        (f"{label} rule {index}" if len(firings) > 1 else label, positions)
        for label, firings in rows
        for index, positions in enumerate(firings)
        if positions is not None
    ]
    if not lines:
        return
    label_columns = min(max(len(label) for label, _ in lines), _MAX_LABEL_COLUMNS)
    ruler = Ruler(length, width - label_columns - 1)
    for label, positions in lines:
        # The end tells rows apart.
        short = label if len(label) <= label_columns else "…" + label[1 - label_columns :]
        yield f"{short.ljust(label_columns)} {ruler.marks(positions)}"
    yield " " * (label_columns + 1) + ruler.scale()
