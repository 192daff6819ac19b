"""From checks and judgement to a verdict. A pure function, and the only place that decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from negtemp_data.judging.judge import Judgement
from negtemp_data.judging.result import CheckResult

Status = Literal["accepted", "rejected", "failed"]


@dataclass(frozen=True)
class Verdict:
    """What checks and judge say of one sample."""

    status: Status
    checks: tuple[CheckResult, ...] = ()
    judgement: Judgement | None = None
    error: str | None = None
    """Why the sample has failed; None otherwise."""


def decide(checks: Sequence[CheckResult], judgement: Judgement | None) -> Verdict:
    """Accepted if every check passed and the judge, where one has spoken, accepts.

    Args:
        checks: Results of all checks.
        judgement: None where no judge was asked, or it had nothing to say.
    """
    is_good = all(check.passed for check in checks)
    if judgement is not None:
        is_good = is_good and judgement.accepted
    return Verdict("accepted" if is_good else "rejected", tuple(checks), judgement)
