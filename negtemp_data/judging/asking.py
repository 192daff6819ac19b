"""What judges need of an engine, and how they ask it for one of several labels.

The answer is begun for the model, and the probabilities of the labels are read from the very next
token: there is no text to parse, and nothing that a completion says can make it fail.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from negtemp_data.errors import JobError, JudgeError, RowError

if TYPE_CHECKING:
    from negtemp_data.engine.engine import Generation
    from negtemp_data.engine.questions import QuestionKind


@dataclass(frozen=True)
class Question:
    """One request to a judge's engine."""

    kind: "QuestionKind"
    prompt_token_ids: list[int]
    label_ids: tuple[int, ...] = ()
    """Of `labels`: the tokens whose probabilities are wanted."""
    max_tokens: int = 1
    """Of `text`: most tokens of the answer. Others decode one, which vLLM insists on."""


class JudgingEngine(Protocol):
    """What a judge needs of an engine."""

    @property
    def tokenizer(self) -> Any:
        """The model's Hugging Face tokenizer."""

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together, at most."""

    def submit(self, question: Question) -> "Future[Generation]":
        """Queues a request."""


class Labels(NamedTuple):
    """The possible answers, as tokens."""

    beginning_ids: list[int]
    """What precedes the label."""
    label_ids: tuple[int, ...]
    """One token each."""


def find_labels(
    tokenizer: Any, beginning: str, labels: Sequence[object], where: str, advice: str
) -> Labels:
    """The tokens of labels behind the beginning of an answer, such as "Rating:".

    Args:
        tokenizer: The judge's.
        beginning: Ends without the space before a label; tokenizers differ in where that goes.
        labels: What may follow.
        where: Path in the job file, for the error.
        advice: What to do about it.

    Raises:
        JobError: Some label is not one token of its own.
    """

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    for begun, space in ((f"{beginning} ", ""), (beginning, " ")):
        begin_ids = encode(begun)
        with_labels = [encode(f"{begun}{space}{label}") for label in labels]
        ids = {tuple(tokens[len(begin_ids) :]) for tokens in with_labels}
        is_prefix = all(tokens[: len(begin_ids)] == begin_ids for tokens in with_labels)
        if is_prefix and len(ids) == len(labels) and all(len(i) == 1 for i in ids):
            return Labels(begin_ids, tuple(tokens[-1] for tokens in with_labels))
    raise JobError(
        f"{where}: the judge's tokenizer has no single token for each label from {labels[0]} to "
        f"{labels[-1]}; {advice}."
    )


async def ask(engine: JudgingEngine, question: Question, what: str) -> "Generation":
    """The engine's answer; `what` names the question in errors.

    Raises:
        JudgeError: The prompt does not fit into the judge's context, or its request failed.
    """
    n_tokens, room = len(question.prompt_token_ids), engine.max_model_len - question.max_tokens
    if n_tokens > room:
        raise JudgeError(
            f"{what}: the judge's prompt has {n_tokens} tokens; its context takes {room}"
        )
    try:
        return await asyncio.wrap_future(engine.submit(question))
    except RowError as error:
        raise JudgeError(f"{what}: {error}") from error


async def ask_for_labels(
    engine: JudgingEngine, prompt_token_ids: list[int], labels: Labels, what: str
) -> NDArray[np.float64]:
    """Probability of each label as the next token; their sum is below 1.

    Raises:
        JudgeError: See `ask`; or the engine gave no probabilities.
    """
    prompt = prompt_token_ids + labels.beginning_ids
    answer = await ask(engine, Question("labels", prompt, labels.label_ids), what)
    # The first is that of the token that was sampled.
    p = np.exp(answer.logprobs[1:].astype(np.float64))
    total = float(p.sum())
    if len(p) != len(labels.label_ids) or not np.isfinite(total) or total <= 0:
        raise JudgeError(f"{what}: no probabilities for the labels")
    return p
