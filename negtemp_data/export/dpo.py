"""`dpo`: pairs of completions of one prompt, for TRL's DPOTrainer.

A pair's chosen side is accepted and ahead of the other, so where nothing was accepted there is no
pair. Pairs come from three places, and a pair that comes from several is written once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import pyarrow as pa

from negtemp_data.export.base import Format, Record, Row
from negtemp_data.export.turns import Shape, Turns
from negtemp_data.jobspec import Job, score_of_twins

PairKind = Literal["verdict", "twins", "extremes"]
"""verdict: accepted against each rejected sibling · twins: an injected sample against its twin,
whichever is ahead · extremes: the best against the worst sibling."""

PAIR_KINDS: tuple[PairKind, ...] = ("verdict", "twins", "extremes")


@dataclass(frozen=True)
class DpoFormat(Format):
    """Columns prompt, chosen, rejected."""

    job: Job
    shape: Shape = "chat"
    """How prompts and completions are written."""
    pairs: tuple[PairKind, ...] = PAIR_KINDS
    """Which pairs are made."""
    margin: float = 0.0
    """Least lead of the chosen score. A rejected row without a score, which a check stopped before
    the judge, is behind by an unknown lead: it is left out where `margin` is above 0."""
    length_ratio: float | None = None
    """Most tokens of the longer completion per token of the shorter; None: any."""

    columns: ClassVar[tuple[str, ...]] = ("completion", "completion_tokens")
    trainer: ClassVar[str] = "trl.DPOTrainer"

    @cached_property
    def _turns(self) -> Turns:
        return Turns(self.job, self.shape)

    @property
    def schema(self) -> pa.Schema:
        """See `Format`."""
        kind = self._turns.type
        fields = {"prompt": kind, "chosen": kind, "rejected": kind}
        return pa.schema(fields | self._turns.template_fields)

    def convert(self, siblings: Sequence[Row]) -> Iterator[Record]:
        """See `Format`."""
        judged = [self._with_score(row) for row in siblings if row["status"] != "failed"]
        seen = set()
        for kind in self.pairs:
            for chosen, rejected in self._candidates(kind, judged):
                # By text: two samples of a prompt may be the same.
                key = (chosen["completion"], rejected["completion"])
                if key in seen or not self._is_pair(chosen, rejected):
                    continue
                seen.add(key)
                values = {
                    "prompt": self._turns.prompt(chosen),
                    "chosen": self._turns.completion(chosen),
                    "rejected": self._turns.completion(rejected),
                }
                yield Record(kind, values | self._turns.template_values())

    def _with_score(self, row: Row) -> Row:
        """A judge that compares with the twin has no score for it: it is even with itself."""
        tie = score_of_twins(self.job.verify.judge)
        is_twin = row["arm"] == self.job.control_arm and row["status"] == "accepted"
        return {**row, "score": tie} if is_twin and row["score"] is None else row

    def _candidates(self, kind: PairKind, rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
        """Pairs of a kind, before anything is compared but the order within the pair."""
        match kind:
            case "verdict":
                rejected = [row for row in rows if row["status"] == "rejected"]
                for row in rows:
                    if row["status"] == "accepted":
                        yield from ((row, other) for other in rejected)
            case "twins":
                control = self.job.control_arm
                controls = {row["sample"]: row for row in rows if row["arm"] == control}
                for row in rows:
                    twin = controls.get(row["sample"])
                    if row["arm"] != control and twin is not None:
                        yield (row, twin) if _rank(row) > _rank(twin) else (twin, row)
            case "extremes":
                ranked = sorted((row for row in rows if row["score"] is not None), key=_rank)
                if ranked:
                    yield ranked[-1], ranked[0]

    def _is_pair(self, chosen: Row, rejected: Row) -> bool:
        if chosen["status"] != "accepted" or chosen["completion"] == rejected["completion"]:
            return False
        return self._is_ahead(chosen, rejected) and self._is_length_matched(chosen, rejected)

    def _is_ahead(self, chosen: Row, rejected: Row) -> bool:
        if chosen["score"] is None or rejected["score"] is None:
            return rejected["status"] == "rejected" and self.margin == 0
        lead = chosen["score"] - rejected["score"]
        return bool(lead > 0 and lead >= self.margin)

    def _is_length_matched(self, chosen: Row, rejected: Row) -> bool:
        if self.length_ratio is None:
            return True
        short, long = sorted((chosen["completion_tokens"], rejected["completion_tokens"]))
        return bool(long <= self.length_ratio * short)


def _rank(row: Row) -> tuple[bool, float]:
    """Accepted rows are ahead of rejected ones, then scores decide."""
    score = float("-inf") if row["score"] is None else row["score"]
    return row["status"] == "accepted", score
