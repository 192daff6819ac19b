"""The Python judge: a function of the user's own."""

import asyncio
import math

from negtemp_data.errors import JudgeError, quote
from negtemp_data.jobspec import PythonJudgeConfig
from negtemp_data.judging.functions import load_function
from negtemp_data.judging.judge import CriterionScore, Judgement
from negtemp_data.judging.sample import Sample


class PythonJudge:
    """Calls a function with each sample, in a thread, several samples at a time."""

    def __init__(self, config: PythonJudgeConfig, where: str = "verify.judge") -> None:
        """Loads the function.

        Raises:
            JobError: It can't be loaded.
        """
        self._config = config
        self._function = load_function(config.function, f"{where}.function")

    async def judge(self, sample: Sample) -> Judgement:
        """See `Judge`. What the function raises fails the row."""
        try:
            score = await asyncio.to_thread(self._function, sample)
        except Exception as error:  # a user's function raises whatever it raises
            raise JudgeError(
                f"{self._config.function} raised {type(error).__name__}: {error}"
            ) from error
        if (
            isinstance(score, bool)
            or not isinstance(score, int | float)
            or not math.isfinite(score)
        ):
            raise JudgeError(
                f"{self._config.function} must return a number; it gave {quote(score)}"
            )
        return Judgement(
            (CriterionScore("python", float(score), None),),
            float(score),
            score >= self._config.accept_at,
        )
