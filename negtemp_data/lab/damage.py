"""Good answers made bad on purpose, in known ways and degrees, none of which is an injection."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from negtemp_data.judging.sentences import ends_with_sentence, reorder, split_sentences

_FEWEST_SENTENCES = 3


@dataclass(frozen=True)
class Damage:
    """One way to spoil an answer."""

    name: str
    what: str
    """In a few words, for tables."""
    apply: Callable[[Sequence[str], int, random.Random], str]
    """Gets all answers, the index of one, and random numbers; returns it spoilt."""


def whole_sentences(text: str) -> str:
    """The text without an unfinished sentence at its end; as it is where no sentence ends."""
    parts = split_sentences(text)
    while parts and not ends_with_sentence(parts[-1]):
        parts.pop()
    return "".join(parts).rstrip() or text


def is_usable(text: str) -> bool:
    """Whether an answer is long enough to be spoilt in every way."""
    return len(split_sentences(text)) >= _FEWEST_SENTENCES


def _swap(answers: Sequence[str], index: int, generator: random.Random) -> str:
    parts = split_sentences(answers[index])
    order = list(range(len(parts)))
    place = generator.randrange(len(parts) - 1)
    order[place], order[place + 1] = order[place + 1], order[place]
    return reorder(parts, order).text


def _shuffle(answers: Sequence[str], index: int, generator: random.Random) -> str:
    parts = split_sentences(answers[index])
    own = list(range(len(parts)))
    order = own
    while [parts[i] for i in order] == parts and len(set(parts)) > 1:
        order = generator.sample(own, len(own))
    return reorder(parts, order).text


def _other(answers: Sequence[str], index: int, generator: random.Random) -> str:
    other = generator.randrange(len(answers) - 1)
    return answers[other + (other >= index)]


def _cut(share: float) -> Callable[[Sequence[str], int, random.Random], str]:
    def apply(answers: Sequence[str], index: int, generator: random.Random) -> str:
        text = answers[index]
        end = int(len(text) * (1 - share))
        # Never at the end of a word: that could be where a sentence ends.
        while end > 1 and not (text[end - 1].isalnum() and text[end : end + 1].isalnum()):
            end -= 1
        return text[:end]

    return apply


DAMAGES = (
    Damage("swapped", "two sentences swapped", _swap),
    Damage("shuffled", "sentences in random order", _shuffle),
    Damage("other", "the answer to another prompt", _other),
    Damage("cut-tenth", "the last tenth cut off, in a word", _cut(0.1)),
    Damage("cut-half", "the last half cut off, in a word", _cut(0.5)),
)
"""From each kind the lighter first."""
