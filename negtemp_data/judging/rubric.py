"""The rubric judge: one prompt and one decoded step per criterion, no answer to parse.

The assistant's answer is begun for the model ("Rating:"), and the score is the expectation
Σ p(s)·s / Σ p(s) over the scale's labels, from the log-probabilities of the very next token
(G-Eval, 2303.16634, without its sampling). What the model would rather have said than a label is
the mass outside the scale: 1 − Σ p(s), stored beside each score, since a score made of a few
percent of the mass means little.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from negtemp_data.errors import JobError, JudgeError, RowError
from negtemp_data.jobspec import CRITERIA, JudgeConfig
from negtemp_data.judging.checks import Sample

if TYPE_CHECKING:
    from vllm import SamplingParams

    from negtemp_data.engine.engine import Generation
    from negtemp_data.engine.tokens import PromptEncoder

_QUESTION = """\
Rate the answer to the request below.

### Request
{request}

### Answer
{completion}

### Question
{criterion}
Rate it from {low} (worst) to {high} (best). Reply with the rating alone."""

_ANSWER_BEGINNINGS = (("Rating: ", ""), ("Rating:", " "))
"""(beginning of the answer, what precedes a label): tokenizers differ in where the space goes."""


class JudgingEngine(Protocol):
    """What the judge needs of an engine."""

    @property
    def tokenizer(self) -> Any:
        """The model's Hugging Face tokenizer."""

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together, at most."""

    def submit(self, prompt_token_ids: list[int], params: "SamplingParams") -> "Future[Generation]":
        """Queues a request."""


@dataclass(frozen=True)
class CriterionScore:
    """Answer to one question."""

    criterion: str
    score: float
    mass: float
    """Probability that fell outside the scale, 0 to 1."""


@dataclass(frozen=True)
class Judgement:
    """Answers to all questions about one sample, and their weighted mean."""

    scores: tuple[CriterionScore, ...]
    score: float


class RubricJudge:
    """Asks an engine the job's questions about samples."""

    def __init__(
        self, config: JudgeConfig, engine: JudgingEngine, encoder: "PromptEncoder"
    ) -> None:
        """Finds the labels' tokens.

        Raises:
            JobError: The model writes some label of the scale with more than one token.
        """
        self._config = config
        self._engine = engine
        self._encoder = encoder
        self._labels = np.arange(config.scale[0], config.scale[1] + 1)
        self._beginning_ids, self._label_ids = self._find_labels(engine.tokenizer)

    def ask(self, sample: Sample) -> "list[Future[Generation]]":
        """Submits one request per criterion, in the order of the job.

        Raises:
            JudgeError: The request and its answer do not fit into the judge's context.
        """
        prompts = [self._prompt(sample, name) for name in self._config.criteria]
        longest, room = max(map(len, prompts)), self._engine.max_model_len - 1
        if longest > room:
            raise JudgeError(f"the judge's prompt has {longest} tokens; its context takes {room}")
        params = self._params()
        return [self._engine.submit(prompt, params) for prompt in prompts]

    def read(self, answers: "Sequence[Future[Generation]]") -> Judgement:
        """Scores from the finished requests of `ask`.

        Raises:
            JudgeError: A request failed, or its log-probabilities are no numbers.
        """
        scores = []
        for name, answer in zip(self._config.criteria, answers, strict=True):
            try:
                logprobs = answer.result().logprobs[1:].astype(np.float64)
            except RowError as error:
                raise JudgeError(f"criterion {name!r}: {error}") from error
            p = np.exp(logprobs)
            total = float(p.sum())
            if len(p) != len(self._labels) or not np.isfinite(total) or total <= 0:
                raise JudgeError(f"criterion {name!r}: no probabilities for the scale's labels")
            score = float((p * self._labels).sum() / total)
            scores.append(CriterionScore(name, score, max(0.0, 1.0 - total)))
        weights = [criterion.weight for criterion in self._config.criteria.values()]
        mean = np.average([score.score for score in scores], weights=weights)
        return Judgement(tuple(scores), float(mean))

    def _prompt(self, sample: Sample, criterion: str) -> list[int]:
        low, high = self._config.scale
        question = _QUESTION.format(
            request=sample.request,
            completion=sample.completion,
            criterion=self._config.criteria[criterion].text or CRITERIA[criterion],
            low=low,
            high=high,
        )
        chat = [{"role": "user", "content": question}]
        return self._encoder.encode_chat(chat) + self._beginning_ids

    def _params(self) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprob_token_ids=self._label_ids,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _find_labels(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        def encode(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False))

        for beginning, space in _ANSWER_BEGINNINGS:
            begin_ids = encode(beginning)
            with_labels = [encode(f"{beginning}{space}{label}") for label in self._labels]
            ids = {tuple(tokens[len(begin_ids) :]) for tokens in with_labels}
            is_prefix = all(tokens[: len(begin_ids)] == begin_ids for tokens in with_labels)
            if is_prefix and len(ids) == len(self._labels) and all(len(i) == 1 for i in ids):
                return begin_ids, [tokens[-1] for tokens in with_labels]
        low, high = self._config.scale
        raise JobError(
            f"verify.judge.scale: the judge's tokenizer has no single token for each label from "
            f"{low} to {high}; a shorter scale such as [1, 5] has them with most models."
        )
