"""From checks and judgement to a verdict. A pure function, and the only place that decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from negtemp_data.judging.checks import CheckResult
from negtemp_data.judging.rubric import Judgement

Status = Literal["accepted", "rejected", "failed"]


@dataclass(frozen=True)
class Verdict:
    """What checks and judge say of one sample."""

    status: Status
    checks: tuple[CheckResult, ...] = ()
    judgement: Judgement | None = None
    error: str | None = None
    """Why the sample has failed; None otherwise."""


def decide(
    checks: Sequence[CheckResult], judgement: Judgement | None, accept_at: float | None
) -> Verdict:
    """Accepted if every check passed and the score, where there is a judge, reaches `accept_at`.

    Args:
        checks: Results of all checks.
        judgement: None where no judge was asked: there is none, or a check failed.
        accept_at: Smallest accepted score; None where there is no judge.
    """
    is_good = all(check.passed for check in checks)
    if accept_at is not None and is_good:
        is_good = judgement is not None and judgement.score >= accept_at
    return Verdict("accepted" if is_good else "rejected", tuple(checks), judgement)
