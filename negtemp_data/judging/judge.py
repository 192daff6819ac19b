"""What a judge is, what it says, and how several become one."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from negtemp_data.jobspec import CombinedJudgeConfig
from negtemp_data.judging.sample import Sample


@dataclass(frozen=True)
class CriterionScore:
    """Answer to one question, or one measure."""

    criterion: str
    score: float
    mass: float | None
    """Probability that fell outside the scale, 0 to 1; None where there is no scale of tokens."""


@dataclass(frozen=True)
class Judgement:
    """What a judge says of a sample."""

    scores: tuple[CriterionScore, ...]
    """Its parts."""
    score: float
    accepted: bool
    rationale: str | None = None
    """Written reasons, where the judge was asked for them."""


class Judge(Protocol):
    """Says whether a completion is good."""

    async def judge(self, sample: Sample) -> Judgement | None:
        """The judgement; None where this judge has nothing to say about such a sample.

        Raises:
            JudgeError: The sample could not be judged; its row fails.
        """


class CombinedJudge:
    """Several judges at once; all of them are asked, whatever the others say."""

    def __init__(self, config: CombinedJudgeConfig, judges: Mapping[str, Judge]) -> None:
        """Takes the judges by the names that the job gives them."""
        self._config = config
        self._judges = judges

    async def judge(self, sample: Sample) -> Judgement | None:
        """See `Judge`. With all and any the score is a margin: accepted from 0 on."""
        answers = await asyncio.gather(*(judge.judge(sample) for judge in self._judges.values()))
        given = {
            name: answer
            for name, answer in zip(self._judges, answers, strict=True)
            if answer is not None
        }
        if not given:
            return None
        score, accepted = self._combine(given)
        rationales = [
            f"{name}: {answer.rationale}" for name, answer in given.items() if answer.rationale
        ]
        return Judgement(
            scores=tuple(
                replace(part, criterion=f"{name}/{part.criterion}")
                for name, answer in given.items()
                for part in answer.scores
            ),
            score=score,
            accepted=accepted,
            rationale="\n\n".join(rationales) or None,
        )

    def _combine(self, given: Mapping[str, Judgement]) -> tuple[float, bool]:
        """Score, and whether it is accepted."""
        weights = [self._config.weights.get(name, 1.0) for name in given]
        scores = [answer.score for answer in given.values()]
        if self._config.accept_at is not None:
            mean = float(np.average(scores, weights=weights))
            return mean, mean >= self._config.accept_at
        margins = [
            weight * (score - self._config.judges[name].accept_at)
            for name, weight, score in zip(given, weights, scores, strict=True)
        ]
        margin = min(margins) if self._config.combine == "all" else max(margins)
        return margin, margin >= 0
