"""The likelihood judge: how probable a model finds the completion, in one of four ways.

- text: the mean log-probability of its tokens as an answer. It needs a model other than the
  generator, whose own likelihood only shows that an injection happened.
- twin: that, less the twin's.
- request: the mean gain over the same text as an answer to an empty request, which is the pointwise
  mutual information of answer and request, per token. An answer to something else gains nothing.
- end: the log-probability of ending where it ends. A text that was cut off would go on.

Injected tokens are left out: they are improbable by design, and the question is what came of them.
The judge's tokens need not be the generator's, so a token counts as injected where it shares a
character with one.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from negtemp_data.errors import JudgeError
from negtemp_data.jobspec import LikelihoodJudgeConfig
from negtemp_data.judging.asking import JudgingEngine, Question, ask
from negtemp_data.judging.judge import CriterionScore, Judgement
from negtemp_data.judging.sample import Sample

if TYPE_CHECKING:
    from negtemp_data.engine.tokens import PromptEncoder


_NO_REQUEST = "Write something."


class Reading(NamedTuple):
    """A completion as a model reads it, in that model's own T tokens."""

    logprobs_T: NDArray[np.float64]
    end: float
    """Log-probability of ending where it ends."""
    spans: list[tuple[int, int]]
    """Characters of each token."""


class LikelihoodReader:
    """Reads completions with a model that need not have written them."""

    def __init__(self, engine: JudgingEngine, encoder: "PromptEncoder") -> None:
        """Takes the model's engine and encoder."""
        self._engine = engine
        self._encoder = encoder

    async def read(self, request: str, completion: str) -> Reading:
        """The completion as an answer to the request.

        Raises:
            JudgeError: It does not fit into the model's context, or the engine refused it.
        """
        # A base model sees request and answer as paragraphs of one text.
        text = request if self._engine.tokenizer.chat_template else f"{request}\n\n"
        prompt = self._encoder.encode_chat([{"role": "user", "content": text}])
        token_ids, spans = self._encoder.encode_with_spans(completion)
        asked = prompt + token_ids + [self._engine.tokenizer.eos_token_id]
        answer = await ask(self._engine, Question("likelihood", asked), "likelihood")
        if answer.prompt_logprobs is None or len(answer.prompt_logprobs) != len(asked):
            raise JudgeError("likelihood: the engine gave no log-probabilities of the prompt")
        logprobs = answer.prompt_logprobs[len(prompt) :].astype(np.float64)
        return Reading(logprobs[:-1], float(logprobs[-1]), spans)


def text_length(tokenizer: Any, token_ids: Sequence[int]) -> int:
    """Characters of the text that these tokens are."""
    return len(tokenizer.decode(list(token_ids), skip_special_tokens=True))


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
        self._reader = LikelihoodReader(engine, encoder)
        self._generator_tokenizer = generator_tokenizer

    async def judge(self, sample: Sample) -> Judgement | None:
        """See `Judge`. Of the twin itself `twin` says nothing."""
        if self._config.measure == "end":
            reading = await self._reader.read(sample.request, sample.completion)
            return self._conclude(reading.end)
        injected = self._injected(sample)
        if self._config.measure == "text":
            return self._conclude(await self._mean(sample.request, sample.completion, injected))
        if self._config.measure == "twin":
            if sample.twin is None:
                return None
            others = self._mean(sample.request, sample.twin, [])
        else:
            others = self._mean(_NO_REQUEST, sample.completion, injected)
        own, other = await asyncio.gather(
            self._mean(sample.request, sample.completion, injected), others
        )
        return self._conclude(own - other)

    def _conclude(self, score: float) -> Judgement:
        if not np.isfinite(score):
            raise JudgeError(f"likelihood: the model gave {score}")
        part = CriterionScore(self._config.measure, score, None)
        return Judgement((part,), score, score >= self._config.accept_at)

    async def _mean(
        self, request: str, completion: str, left_out: Sequence[tuple[int, int]]
    ) -> float:
        reading = await self._reader.read(request, completion)
        kept = reading.logprobs_T[~_overlap(reading.spans, left_out)]
        if not kept.size:
            raise JudgeError("likelihood: the completion has no token that was not injected")
        return float(kept.mean())

    def _injected(self, sample: Sample) -> list[tuple[int, int]]:
        """Characters of the injected tokens."""

        def length(end: int) -> int:
            return text_length(self._generator_tokenizer, sample.token_ids[:end])

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
