"""Good answers made bad on purpose, in known ways and degrees, none of which is an injection."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import regex

_SENTENCE = regex.compile(r"""(?s).+?(?:[.!?]["')\]*_]*\s+|\n+|\Z)""")
_FEWEST_SENTENCES = 3


@dataclass(frozen=True)
class Damage:
    """One way to spoil an answer."""

    name: str
    what: str
    """In a few words, for tables."""
    apply: Callable[[Sequence[str], int, random.Random], str]
    """Gets all answers, the index of one, and random numbers; returns it spoilt."""


def sentences(text: str) -> list[str]:
    """The text cut behind its sentences and line ends; joined they are the text."""
    return list(_SENTENCE.findall(text))


def whole_sentences(text: str) -> str:
    """The text without an unfinished sentence at its end; as it is where no sentence ends."""
    parts = sentences(text)
    while parts and not regex.search(r"""[.!?]["')\]*_]*\s*$""", parts[-1]):
        parts.pop()
    return "".join(parts).rstrip() or text


def is_usable(text: str) -> bool:
    """Whether an answer is long enough to be spoilt in every way."""
    return len(sentences(text)) >= _FEWEST_SENTENCES


def _swap(answers: Sequence[str], index: int, generator: random.Random) -> str:
    parts = sentences(answers[index])
    place = generator.randrange(len(parts) - 1)
    parts[place], parts[place + 1] = parts[place + 1], parts[place]
    return _joined(parts)


def _shuffle(answers: Sequence[str], index: int, generator: random.Random) -> str:
    parts = sentences(answers[index])
    shuffled = parts
    while shuffled == parts and len(set(parts)) > 1:
        shuffled = generator.sample(parts, len(parts))
    return _joined(shuffled)


def _joined(parts: Sequence[str]) -> str:
    """Sentences in a new order, with a space behind one that used to be the last."""
    return "".join(part if part[-1].isspace() else f"{part} " for part in parts).rstrip()


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
