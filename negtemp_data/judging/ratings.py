"""Ratings in what chat-completions servers answer.

The bytes of a response become a choice, and a choice becomes a score. Both are other people's
input and may have any shape. Knows nothing of connections, keys and retries.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from negtemp_data.judging.judge import CriterionScore
from negtemp_data.judging.rubric import score_labels

_LONGEST_ANSWER_CHARS = 1000
"""Numbers behind these are not looked for."""

_ABOVE_CERTAIN = 1e-3
"""Rounding that log-probabilities above 0, and sums above 1, may come from."""

_LEAST_LOGPROB = -1e4
"""Its exponential is 0."""


def parse_json(body: bytes) -> Any:
    """What `body` spells; None where it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def find_choice(answer: object) -> dict[str, Any] | None:
    """The first choice of a parsed chat completion; None where the answer is no such thing."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice: Any = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict) and isinstance(choice.get("message"), dict):
        return choice
    return None


def read_rating(
    choice: Mapping[str, Any], scale: NDArray[np.int64], criterion: str
) -> CriterionScore | None:
    """The score that a choice gives; None where it states no rating.

    A rating is the only number of the text, and a label of the scale. Where the log-probabilities
    of its token are there, the score is the expectation over the labels in that place. A text
    without any number is scored by its first token, whose labels may be unlikely: that is what the
    mass tells.
    """
    text = choice["message"].get("content")
    if not isinstance(text, str) or not text:
        return None
    labels = {str(label): i for i, label in enumerate(scale.tolist())}
    numbers = _find_numbers(text[:_LONGEST_ANSWER_CHARS], str(scale[-1]))
    label, start = next(iter(numbers.items()), (None, 0))
    if len(numbers) > 1 or (label is not None and label not in labels):
        return None
    token = _token_at(choice, text, start)
    p = None if token is None else _probabilities(token, labels)
    # A token that spells only a part of the rating, or more than it, says nothing of the labels.
    is_whole = token is not None and (label is None or token["token"].strip() == label)
    if p is not None and is_whole and p.sum() > 0:
        return score_labels(p, scale, criterion)
    return None if label is None else CriterionScore(criterion, float(label), None)


def _find_numbers(text: str, highest: str) -> dict[str, int]:
    """Where each different number begins; `4/5` and `4 out of 5` are a 4 on a scale up to 5."""
    numbers: dict[str, int] = {}
    pattern = rf"([-−]?[0-9]+(?:[.,][0-9]+)?)(?:\s*(?:/|(?:out )?of)\s*{highest}(?![0-9]))?"
    for found in regex.finditer(pattern, text):
        numbers.setdefault(found[1].removesuffix(".0"), found.start())
    return numbers


def _token_at(choice: Mapping[str, Any], text: str, start: int) -> dict[str, Any] | None:
    """The token that character `start` of the text belongs to; None where it is not told."""
    tokens = _tokens_of(choice)
    # The text is a part of them: a server may have cut reasoning and special tokens off.
    offset = "".join(token["token"] for token in tokens).rfind(text)
    if offset < 0:
        return None
    end = 0
    for token in tokens:
        end += len(token["token"])
        if end > offset + start:
            return token
    return None


def _tokens_of(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the server tells of each token that it wrote; empty where it does not."""
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    are_tokens = isinstance(tokens, list) and all(
        isinstance(token, dict) and isinstance(token.get("token"), str) for token in tokens
    )
    return list(tokens or []) if are_tokens else []


def _probabilities(
    token: Mapping[str, Any], labels: Mapping[str, int]
) -> NDArray[np.float64] | None:
    """Probability of each label in a token's place; None where they can't be known."""
    likely = token.get("top_logprobs")
    if not isinstance(likely, list):
        return None
    p = np.zeros(len(labels))
    for entry in likely:
        spelled = entry.get("token") if isinstance(entry, dict) else None
        logprob = _as_logprob(entry.get("logprob")) if isinstance(entry, dict) else None
        if not isinstance(spelled, str) or logprob is None:
            return None
        label = labels.get(spelled.strip())
        if label is not None:
            p[label] += math.exp(logprob)
    # A tokenizer that splits numbers writes 1 for a 10, too. One that does not has some such label
    # among the likely tokens.
    long = [i for label, i in labels.items() if len(label) > 1]
    if long and not p[long].any():
        return None
    return p if p.sum() <= 1 + _ABOVE_CERTAIN else None


def _as_logprob(value: object) -> float | None:
    """`value` as a log-probability; None where it is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    # An integer may be too large to be made a float of. NaN fails the comparison.
    return max(_LEAST_LOGPROB, min(0.0, value)) if value <= _ABOVE_CERTAIN else None
