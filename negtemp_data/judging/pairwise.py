"""The pairwise judge: is the completion better than its twin?

Asked in both orders, because models favour a place; the score is the mean over the orders of the
probability that the completion wins. That both orders name the same winner is stored beside it as
`agreement`, 1 or 0.
"""

import asyncio
from typing import TYPE_CHECKING

from negtemp_data.jobspec import PairwiseJudgeConfig
from negtemp_data.judging.asking import JudgingEngine, ask_for_labels, find_labels
from negtemp_data.judging.judge import CriterionScore, Judgement
from negtemp_data.judging.sample import Sample

if TYPE_CHECKING:
    from negtemp_data.engine.tokens import PromptEncoder

_QUESTION = """\
Compare two answers to the request below.

### Request
{request}

### Answer A
{a}

### Answer B
{b}

### Question
{question} Reply with Answer A or Answer B."""

_BEGINNING = "Better: Answer"


class PairwiseJudge:
    """Asks an engine which of two completions is the better one."""

    def __init__(
        self,
        config: PairwiseJudgeConfig,
        engine: JudgingEngine,
        encoder: "PromptEncoder",
        where: str = "verify.judge",
    ) -> None:
        """Finds the labels' tokens.

        Raises:
            JobError: The model has no single tokens for A and B behind the answer's beginning.
        """
        self._config = config
        self._engine = engine
        self._encoder = encoder
        self._labels = find_labels(
            engine.tokenizer, _BEGINNING, "AB", f"{where}.model", "another model may have them"
        )

    async def judge(self, sample: Sample) -> Judgement | None:
        """See `Judge`. A twin itself has nobody to be compared with."""
        if sample.twin is None:
            return None
        (first, first_mass), (second, second_mass) = await asyncio.gather(
            self._ask(sample.request, sample.completion, sample.twin),
            self._ask(sample.request, sample.twin, sample.completion),
        )
        second = 1 - second
        score = (first + second) / 2
        agreement = float((first > 0.5) == (second > 0.5))
        scores = (
            CriterionScore("placed first", first, first_mass),
            CriterionScore("placed second", second, second_mass),
            CriterionScore("agreement", agreement, None),
        )
        return Judgement(scores, score, score >= self._config.accept_at)

    async def _ask(self, request: str, a: str, b: str) -> tuple[float, float]:
        """Probability that A wins, and the mass outside A and B."""
        text = _QUESTION.format(request=request, a=a, b=b, question=self._config.question)
        prompt = self._encoder.encode_chat([{"role": "user", "content": text}])
        p = await ask_for_labels(self._engine, prompt, self._labels, "pairwise")
        total = float(p.sum())
        return float(p[0]) / total, max(0.0, 1.0 - total)
