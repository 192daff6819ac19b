"""The likelihood judge: how probable another model finds the completion as an answer.

The mean log-probability of the completion's tokens, in nats, under a model other than the
generator, injected tokens left out: they are improbable by design, and the question is what came
of them. The judge's tokens need not be the generator's, so a token counts as injected where it
shares a character with one.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from negtemp_data.errors import JudgeError
from negtemp_data.jobspec import LikelihoodJudgeConfig
from negtemp_data.judging.asking import JudgingEngine, Question, ask
from negtemp_data.judging.judge import CriterionScore, Judgement
from negtemp_data.judging.sample import Sample

if TYPE_CHECKING:
    from negtemp_data.engine.tokens import PromptEncoder


class LikelihoodJudge:
    """Scores completions by a model that did not write them."""

    def __init__(
        self,
        config: LikelihoodJudgeConfig,
        engine: JudgingEngine,
        encoder: "PromptEncoder",
        generator_tokenizer: Any,
    ) -> None:
        """Takes the judge's engine and encoder, and the tokenizer that the samples are in."""
        self._config = config
        self._engine = engine
        self._encoder = encoder
        self._generator_tokenizer = generator_tokenizer

    async def judge(self, sample: Sample) -> Judgement | None:
        """See `Judge`. Against the twin, the twin itself has no score."""
        if self._config.against == "nothing":
            score = await self._mean(sample.request, sample.completion, self._injected(sample))
            return self._conclude(score, [CriterionScore("likelihood", score, None)])
        if sample.twin is None:
            return None
        own, twin = await asyncio.gather(
            self._mean(sample.request, sample.completion, self._injected(sample)),
            self._mean(sample.request, sample.twin, []),
        )
        parts = [
            CriterionScore("likelihood", own, None),
            CriterionScore("twin likelihood", twin, None),
        ]
        return self._conclude(own - twin, parts)

    def _conclude(self, score: float, parts: Sequence[CriterionScore]) -> Judgement:
        return Judgement(tuple(parts), score, score >= self._config.accept_at)

    async def _mean(
        self, request: str, completion: str, left_out: Sequence[tuple[int, int]]
    ) -> float:
        prompt = self._encoder.encode_chat([{"role": "user", "content": request}])
        token_ids, spans = self._encoder.encode_with_spans(completion)
        answer = await ask(self._engine, Question("likelihood", prompt + token_ids), "likelihood")
        if answer.prompt_logprobs is None or len(answer.prompt_logprobs) < len(token_ids):
            raise JudgeError("likelihood: the engine gave no log-probabilities of the prompt")
        logprobs = answer.prompt_logprobs[len(prompt) :].astype(np.float64)
        kept = logprobs[~_overlap(spans, left_out)]
        if not kept.size:
            raise JudgeError("likelihood: the completion has no token that was not injected")
        return float(kept.mean())

    def _injected(self, sample: Sample) -> list[tuple[int, int]]:
        """Characters of the injected tokens."""

        def length(end: int) -> int:
            ids = list(sample.token_ids[:end])
            return len(self._generator_tokenizer.decode(ids, skip_special_tokens=True))

        return [(length(position), length(position + 1)) for position in sample.injected]


def _overlap(
    spans: Sequence[tuple[int, int]], left_out: Sequence[tuple[int, int]]
) -> NDArray[np.bool_]:
    """Whether each span shares a character with any of those to be left out."""
    span_T2 = np.array(spans, dtype=np.int64).reshape(-1, 2)
    out_I2 = np.array(left_out, dtype=np.int64).reshape(-1, 2)
    begins_before_TI = span_T2[:, :1] < out_I2[:, 1]
    ends_behind_TI = span_T2[:, 1:] > out_I2[:, 0]
    overlaps: NDArray[np.bool_] = np.any(begins_before_TI & ends_behind_TI, axis=1)
    return overlaps
