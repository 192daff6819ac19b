"""Why rows of a shard failed, short enough for one line of the events."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

_MOST_REASONS, _MOST_CHARS = 10, 200
"""Reasons that are named, and characters of each."""


def count_reasons(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Failed rows by reason, the most frequent first.

    Numbers stand as `#`: else each row whose prompt is too long would have a reason of its own.
    """
    errors = (row["error"] or "" for row in rows if row["status"] == "failed")
    reasons = Counter(re.sub(r"\d+", "#", error)[:_MOST_CHARS] for error in errors)
    named = dict(reasons.most_common(_MOST_REASONS))
    n_others = reasons.total() - sum(named.values())
    return named | ({"other reasons": n_others} if n_others else {})
