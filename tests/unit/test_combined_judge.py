"""Several judges, one verdict."""

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest

from negtemp_data.errors import JudgeError
from negtemp_data.jobspec import CombinedJudgeConfig
from negtemp_data.judging import CombinedJudge, CriterionScore, Judgement, Sample

SAMPLE = Sample("A request.", "An answer.", [1], np.zeros(1, np.float32), [])
BARS = {"a": 3.0, "b": -2.0}


@dataclass
class FixedJudge:
    """Always of the same opinion; without a score it has none."""

    score: float | None
    accept_at: float
    rationale: str | None = None

    async def judge(self, sample: Sample) -> Judgement | None:
        if self.score is None:
            return None
        part = CriterionScore("part", self.score, None)
        return Judgement((part,), self.score, self.score >= self.accept_at, self.rationale)


class BrokenJudge:
    async def judge(self, sample: Sample) -> Judgement | None:
        raise JudgeError("nothing to say")


def combined(combine: str, **options: object) -> CombinedJudgeConfig:
    judges = {
        name: {"kind": "python", "function": "m:f", "accept_at": bar} for name, bar in BARS.items()
    }
    return CombinedJudgeConfig.model_validate({"combine": combine, "judges": judges, **options})


def ask(config: CombinedJudgeConfig, a: float | None, b: float | None) -> Judgement | None:
    judges = {"a": FixedJudge(a, BARS["a"], "because"), "b": FixedJudge(b, BARS["b"])}
    return asyncio.run(CombinedJudge(config, judges).judge(SAMPLE))


@pytest.mark.parametrize(
    ("combine", "a", "b", "score", "accepted"),
    [
        ("all", 4.0, -1.0, 1.0, True),
        ("all", 3.5, -1.9, 0.1, True),
        ("all", 2.5, 9.0, -0.5, False),
        ("all", 3.0, -2.0, 0.0, True),
        ("any", 2.5, -1.0, 1.0, True),
        ("any", 2.5, -2.25, -0.25, False),
    ],
)
def test_all_and_any_score_by_the_margin_that_decides(
    combine: str, a: float, b: float, score: float, accepted: bool
) -> None:
    judgement = ask(combined(combine), a, b)
    assert judgement is not None
    assert judgement.score == pytest.approx(score)
    assert judgement.accepted == accepted == (judgement.score >= 0)


def test_weights_are_the_units_of_the_margins() -> None:
    judgement = ask(combined("all", weights={"a": 0.1, "b": 10}), 3.5, -1.9)
    assert judgement is not None and judgement.score == pytest.approx(0.05)


@pytest.mark.parametrize(("accept_at", "accepted"), [(1.5, True), (1.6, False)])
def test_the_mean_is_weighted_and_has_a_bar_of_its_own(accept_at: float, accepted: bool) -> None:
    config = combined("mean", accept_at=accept_at, weights={"a": 3})
    judgement = ask(config, 3.0, -3.0)
    assert judgement is not None
    assert (judgement.score, judgement.accepted) == (1.5, accepted)


def test_parts_and_rationales_carry_the_names_of_their_judges() -> None:
    judgement = ask(combined("any"), 4.0, -1.0)
    assert judgement is not None
    assert [part.criterion for part in judgement.scores] == ["a/part", "b/part"]
    assert judgement.rationale == "a: because"


def test_a_judge_without_an_opinion_is_left_out() -> None:
    judgement = ask(combined("all"), None, -1.0)
    assert judgement is not None and judgement.score == 1.0
    assert [part.criterion for part in judgement.scores] == ["b/part"]
    assert ask(combined("all"), None, None) is None


def test_a_judge_that_fails_fails_the_row() -> None:
    judge = CombinedJudge(combined("any"), {"a": FixedJudge(9.0, 3.0), "b": BrokenJudge()})
    with pytest.raises(JudgeError, match="nothing to say"):
        asyncio.run(judge.judge(SAMPLE))
