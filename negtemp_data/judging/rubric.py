"""The rubric judge: one prompt and one decoded step per criterion, no answer to parse.

The assistant's answer is begun for the model ("Rating:"), and the score is the expectation
Σ p(s)·s / Σ p(s) over the scale's labels, from the log-probabilities of the very next token
(G-Eval, 2303.16634, without its sampling). What the model would rather have said than a label is
the mass outside the scale: 1 − Σ p(s), stored beside each score, since a score made of a few
percent of the mass means little.

Where a rationale is asked for, the model writes it first, up to a limit, and rates behind it.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from negtemp_data.jobspec import CRITERIA, RubricConfig, RubricJudgeConfig
from negtemp_data.judging.asking import JudgingEngine, Question, ask, ask_for_labels, find_labels
from negtemp_data.judging.judge import CriterionScore, Judgement
from negtemp_data.judging.sample import Sample

if TYPE_CHECKING:
    from negtemp_data.engine.tokens import PromptEncoder

_QUESTION = """\
Rate the answer to the request below.

### Request
{request}

### Answer
{completion}

### Question
{criterion}
Rate it from {low} (worst) to {high} (best). {form}"""

_RATE = "Reply with the rating alone."
_REASON = "Give your reasons in a few sentences, then the rating."

_BEGINNING = "Rating:"
_BEHIND_REASONS = "\n\n"


class RubricJudge:
    """Asks an engine the job's questions about samples."""

    def __init__(
        self,
        config: RubricJudgeConfig,
        engine: JudgingEngine,
        encoder: "PromptEncoder",
        where: str = "verify.judge",
    ) -> None:
        """Finds the labels' tokens.

        Raises:
            JobError: The model writes some label of the scale with more than one token; the message
                names `where`, the judge's path in the job file.
        """
        self._config = config
        self._engine = engine
        self._encoder = encoder
        self._scale = np.arange(config.scale[0], config.scale[1] + 1)
        self._labels = find_labels(
            engine.tokenizer,
            _BEGINNING,
            self._scale.tolist(),
            f"{where}.scale",
            "a shorter scale such as [1, 5] has them with most models",
        )

    async def judge(self, sample: Sample) -> Judgement:
        """See `Judge`."""
        names = list(self._config.criteria)
        # The questions come last in their prompts: what precedes them is in the engine's prefix
        # cache once the first has been asked.
        answers = [await self._rate(sample, names[0])]
        answers += await asyncio.gather(*(self._rate(sample, name) for name in names[1:]))
        given = list(zip(names, answers, strict=True))
        scores = [score_labels(p, self._scale, name) for name, (p, _) in given]
        rationales = [f"{name}: {text}" for name, (_, text) in given if text]
        return conclude(self._config, scores, "\n\n".join(rationales) or None)

    async def _rate(self, sample: Sample, criterion: str) -> tuple[NDArray[np.float64], str]:
        """Probabilities of the labels, and the rationale."""
        what = f"criterion {criterion!r}"
        prompt = self._encoder.encode_chat(self._chat(sample, criterion))
        if not self._config.rationale_tokens:
            return await ask_for_labels(self._engine, prompt, self._labels, what), ""
        reasons, text = await self._reason(prompt, what)
        behind = self._engine.tokenizer.encode(_BEHIND_REASONS, add_special_tokens=False)
        p = await ask_for_labels(self._engine, prompt + reasons + behind, self._labels, what)
        return p, text

    async def _reason(self, prompt: list[int], what: str) -> tuple[list[int], str]:
        limit = self._config.rationale_tokens
        answer = await ask(self._engine, Question("text", prompt, max_tokens=limit), what)
        special = set(self._engine.tokenizer.all_special_ids)
        kept = [token for token in answer.token_ids if token not in special]
        return kept, str(self._engine.tokenizer.decode(kept)).strip()

    def _chat(self, sample: Sample, criterion: str) -> Sequence[dict[str, str]]:
        form = _REASON if self._config.rationale_tokens else _RATE
        chat = []
        for example in self._config.examples:
            text = question(self._config, criterion, example.request, example.answer, form)
            chat.append({"role": "user", "content": text})
            chat.append({"role": "assistant", "content": f"{_BEGINNING} {example.rating}"})
        text = question(self._config, criterion, sample.request, sample.completion, form)
        return [*chat, {"role": "user", "content": text}]


def question(
    config: RubricConfig, criterion: str, request: str, completion: str, form: str = _RATE
) -> str:
    """What a judge is asked about a completion; `form` says how to answer."""
    low, high = config.scale
    return _QUESTION.format(
        request=request,
        completion=completion,
        criterion=config.criteria[criterion].text or CRITERIA[criterion],
        low=low,
        high=high,
        form=form,
    )


def score_labels(
    p: NDArray[np.float64], scale: NDArray[np.int64], criterion: str
) -> CriterionScore:
    """Expected score from the labels' probabilities, and the mass outside them."""
    total = float(p.sum())
    return CriterionScore(criterion, float((p * scale).sum() / total), max(0.0, 1.0 - total))


def conclude(
    config: RubricConfig, scores: Sequence[CriterionScore], rationale: str | None = None
) -> Judgement:
    """The weighted mean of the criteria's scores, and whether it suffices."""
    weights = [config.criteria[score.criterion].weight for score in scores]
    mean = float(np.average([score.score for score in scores], weights=weights))
    return Judgement(tuple(scores), mean, mean >= config.accept_at, rationale)
