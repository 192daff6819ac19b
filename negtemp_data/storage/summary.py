"""Totals over shards, for progress displays and the dataset card."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from negtemp_data.storage.ledger import ShardEntry
from negtemp_data.storage.schema import STATUSES


@dataclass(frozen=True)
class ArmTotals:
    """What became of the planned rows of one arm, or of all."""

    accepted: int
    """Rows that passed."""
    accepted_at_once: int
    """Of these, rows that passed at their first attempt."""
    rejected: int
    """Rows that did not pass."""
    failed: int
    """Rows that could not be made or judged."""
    not_done: int
    """Planned rows of shards that are not committed."""
    injections: int
    """Injected tokens."""
    mean_score: float | None
    """Mean over the rows that have a score; None where none has."""

    @property
    def planned(self) -> int:
        """All planned rows."""
        return self.accepted + self.rejected + self.failed + self.not_done

    @property
    def acceptance(self) -> float | None:
        """Accepted share of the rows that were judged; None where none was."""
        judged = self.accepted + self.rejected
        return self.accepted / judged if judged else None


@dataclass(frozen=True)
class Totals:
    """What became of the planned rows of a data set."""

    arms: dict[str, ArmTotals]
    """By arm."""
    overall: ArmTotals
    """Over all arms."""
    shards: int
    """Committed shards."""
    generated_tokens: int
    """Generated tokens, all attempts together."""


def summarise(
    entries: Mapping[int, ShardEntry], planned_rows: Mapping[str, int] | None = None
) -> Totals:
    """Adds up what the ledger has.

    Args:
        entries: The committed shards.
        planned_rows: Rows of the whole plan by arm; None: only those of the committed shards, so
            that none is left to do.
    """
    shards = entries.values()
    done = [arm for entry in shards for arm in entry.counts]
    arms = list(dict.fromkeys([*(planned_rows or ()), *done]))
    return Totals(
        arms={arm: _add_up(shards, [arm], planned_rows) for arm in arms},
        overall=_add_up(shards, arms, planned_rows),
        shards=len(entries),
        generated_tokens=sum(entry.generated_tokens for entry in shards),
    )


def _add_up(
    shards: Iterable[ShardEntry], arms: Iterable[str], planned_rows: Mapping[str, int] | None
) -> ArmTotals:
    parts = [(entry, arm) for entry in shards for arm in arms if arm in entry.counts]
    counts = {status: sum(entry.counts[arm][status] for entry, arm in parts) for status in STATUSES}
    done = sum(counts.values())
    planned = done if planned_rows is None else sum(planned_rows.get(arm, 0) for arm in arms)
    scored = sum(entry.scored[arm] for entry, arm in parts)
    score_sum = sum(entry.score_sum[arm] for entry, arm in parts)
    return ArmTotals(
        **counts,
        accepted_at_once=sum(entry.accepted_at_once[arm] for entry, arm in parts),
        not_done=planned - done,
        injections=sum(entry.injections[arm] for entry, arm in parts),
        mean_score=score_sum / scored if scored else None,
    )
