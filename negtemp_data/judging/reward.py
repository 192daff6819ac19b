"""The reward judge: a model trained to give an answer a number."""

from typing import TYPE_CHECKING

import numpy as np

from negtemp_data.errors import JudgeError
from negtemp_data.jobspec import RewardJudgeConfig
from negtemp_data.judging.asking import JudgingEngine, Question, ask
from negtemp_data.judging.judge import CriterionScore, Judgement
from negtemp_data.judging.sample import Sample

if TYPE_CHECKING:
    from negtemp_data.engine.tokens import PromptEncoder


class RewardJudge:
    """Asks a model with one output for the reward of request and completion."""

    def __init__(
        self, config: RewardJudgeConfig, engine: JudgingEngine, encoder: "PromptEncoder"
    ) -> None:
        """Takes an engine that was started for pooling."""
        self._config = config
        self._engine = engine
        self._encoder = encoder

    async def judge(self, sample: Sample) -> Judgement:
        """See `Judge`."""
        chat = [{"role": "user", "content": sample.request}]
        prompt = self._encoder.encode_answered(chat, sample.completion)
        answer = await ask(self._engine, Question("reward", prompt), "reward")
        if answer.pooled is None or answer.pooled.size != 1:
            size = 0 if answer.pooled is None else answer.pooled.size
            raise JudgeError(f"reward: the model gives {size} numbers, not one")
        score = float(answer.pooled[0])
        if not np.isfinite(score):
            raise JudgeError(f"reward: the model gave {score}")
        return Judgement(
            (CriterionScore("reward", score, None),), score, score >= self._config.accept_at
        )
