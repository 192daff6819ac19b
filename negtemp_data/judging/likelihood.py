"""The likelihood judge: how probable a model finds the completion, in one of five ways.

- text: the mean log-probability of its tokens as an answer. It needs a model other than the
  generator, whose own likelihood only shows that an injection happened.
- twin: that, less the twin's.
- request: the mean gain over the same text as an answer to an empty request, which is the pointwise
  mutual information of answer and request, per token. An answer to something else gains nothing.
- end: the log-probability of ending where it ends. A text that was cut off would go on.
- order: what the text gains over its own sentences in other orders, per sentence. Where each
  sentence leads to the next it gains much, whatever the text's own probability.

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
from negtemp_data.judging.sentences import Span, other_orders, reorder, split_sentences

if TYPE_CHECKING:
    from negtemp_data.engine.tokens import PromptEncoder


_NO_REQUEST = "Write something."
_ORDERS = 2
"""Other orders that `order` reads; four, at twice the cost, tell little more
(benchmarks/results/judges.md)."""


class Reading(NamedTuple):
    """A completion as a model reads it, in that model's own T tokens."""

    logprobs_T: NDArray[np.float64]
    end: float
    """Log-probability of ending where it ends."""
    spans: list[Span]
    """Characters of each token."""


class LikelihoodReader:
    """Reads completions with a model that need not have written them.

    One that is asked for while it is being read is not read twice; safe to use from any loop.
    """

    def __init__(self, engine: JudgingEngine, encoder: "PromptEncoder") -> None:
        """Takes the model's engine and encoder."""
        self._engine = engine
        self._encoder = encoder
        self._under_way: dict[
            tuple[asyncio.AbstractEventLoop, str, str], asyncio.Future[Reading]
        ] = {}

    async def read(self, request: str, completion: str) -> Reading:
        """The completion as an answer to the request.

        Raises:
            JudgeError: It does not fit into the model's context, or the engine refused it.
        """
        key = (asyncio.get_running_loop(), request, completion)
        if key not in self._under_way:
            reading = asyncio.ensure_future(self._read(request, completion))
            reading.add_done_callback(lambda _: self._under_way.pop(key))
            self._under_way[key] = reading
        return await asyncio.shield(self._under_way[key])

    async def _read(self, request: str, completion: str) -> Reading:
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
        reader: LikelihoodReader,
        generator_tokenizer: Any,
    ) -> None:
        """Takes the judge's model, and the tokenizer that the samples are in."""
        self._config = config
        self._reader = reader
        self._generator_tokenizer = generator_tokenizer

    async def judge(self, sample: Sample) -> Judgement | None:
        """See `Judge`. `twin` says nothing of the twin itself, `order` nothing of one sentence."""
        request, completion = sample.request, sample.completion
        if self._config.measure == "end":
            return self._conclude((await self._reader.read(request, completion)).end)
        injected = self._injected(sample)
        match self._config.measure:
            case "text":
                return self._conclude((await self._read(request, completion, injected)).mean())
            case "order":
                return await self._judge_order(sample, injected)
            case "request":
                others = self._read(_NO_REQUEST, completion, injected)
            case "twin":
                if sample.twin is None:
                    return None
                others = self._read(request, sample.twin, [])
        own, other = await asyncio.gather(self._read(request, completion, injected), others)
        return self._conclude(own.mean() - other.mean())

    async def _judge_order(self, sample: Sample, injected: Sequence[Span]) -> Judgement | None:
        parts = split_sentences(sample.completion)
        if len(parts) < 2:
            return None
        texts = [reorder(parts, order, injected) for order in other_orders(len(parts), _ORDERS)]
        own, *others = await asyncio.gather(
            self._read(sample.request, sample.completion, injected),
            *(self._read(sample.request, text, spans) for text, spans in texts),
        )
        gain = own.sum() - np.mean([other.sum() for other in others])
        return self._conclude(gain / len(parts))

    def _conclude(self, found: float) -> Judgement:
        score = float(found)  # numpy's would make a bool of its own of the comparison
        if not np.isfinite(score):
            raise JudgeError(f"likelihood: the model gave {score}")
        part = CriterionScore(self._config.measure, score, None)
        return Judgement((part,), score, score >= self._config.accept_at)

    async def _read(
        self, request: str, completion: str, left_out: Sequence[Span]
    ) -> NDArray[np.float64]:
        """Log-probabilities of the tokens that share no character with those left out."""
        reading = await self._reader.read(request, completion)
        kept = reading.logprobs_T[~_overlap(reading.spans, left_out)]
        if not kept.size:
            raise JudgeError("likelihood: the completion has no token that was not injected")
        return kept

    def _injected(self, sample: Sample) -> list[Span]:
        """Characters of the injected tokens."""

        def length(end: int) -> int:
            return text_length(self._generator_tokenizer, sample.token_ids[:end])

        return [(length(position), length(position + 1)) for position in sample.injected]


def _overlap(spans: Sequence[Span], left_out: Sequence[Span]) -> NDArray[np.bool_]:
    """Whether each span shares a character with any of those to be left out."""
    span_T2 = np.array(spans, dtype=np.int64).reshape(-1, 2)
    out_I2 = np.array(left_out, dtype=np.int64).reshape(-1, 2)
    begins_before_TI = span_T2[:, :1] < out_I2[:, 1]
    ends_behind_TI = span_T2[:, 1:] > out_I2[:, 0]
    overlaps: NDArray[np.bool_] = np.any(begins_before_TI & ends_behind_TI, axis=1)
    return overlaps
