"""The Python judge: a function of the user's own."""

import math

from negtemp_data.errors import JudgeError, quote
from negtemp_data.jobspec import PythonJudgeConfig
from negtemp_data.judging.functions import Problem, call_function, load_function
from negtemp_data.judging.judge import CriterionScore, Judgement
from negtemp_data.judging.sample import Sample


class PythonJudge:
    """Calls a function with each sample, several samples at a time."""

    def __init__(self, config: PythonJudgeConfig, where: str = "verify.judge") -> None:
        """Loads the function.

        Raises:
            JobError: It can't be loaded.
        """
        self._config = config
        self._function = load_function(config.function, f"{where}.function")

    async def judge(self, sample: Sample) -> Judgement:
        """See `Judge`. What the function raises fails the row, and so does taking too long."""
        score = await call_function(self._config.function, self._score, sample)
        if isinstance(score, Problem):
            raise JudgeError(f"{self._config.function}: {score.text}")
        return Judgement(
            (CriterionScore("python", score, None),), score, score >= self._config.accept_at
        )

    def _score(self, sample: Sample) -> float:
        score = self._function(sample)
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        if not is_number or not math.isfinite(score):
            raise TypeError(f"must return a number; it gave {quote(score)}")
        return float(score)
