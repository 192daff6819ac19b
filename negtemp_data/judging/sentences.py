"""Texts as sentences, and the same sentences in another order."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import regex

_END = r"""(?:[.!?…]["')\]”’»*_]*(?:\s+|\Z)|[。！？][」』）"'”’]*\s*)"""
_SENTENCE = regex.compile(rf"(?s)\s*\S.*?(?:{_END}|\n+|\Z)|\s+")
_ENDED = regex.compile(rf"{_END}\Z")

Span = tuple[int, int]
"""First character, and the one behind the last."""


def split_sentences(text: str) -> list[str]:
    """The text cut behind its sentences and line ends; joined they are the text."""
    return list(_SENTENCE.findall(text))


def ends_with_sentence(text: str) -> bool:
    """Whether the last sentence is finished."""
    return _ENDED.search(text) is not None


class Reordered(NamedTuple):
    """Sentences of a text in another order."""

    text: str
    spans: list[Span]
    """Where the spans of the text are now; one that crosses a border is in pieces."""


def reorder(parts: Sequence[str], order: Sequence[int], spans: Sequence[Span] = ()) -> Reordered:
    """Puts the sentences of a text into the order of these indices.

    The one that used to be the last gets a space behind it, where it has none; the text ends
    without white space.
    """
    begins = [0]
    for part in parts:
        begins.append(begins[-1] + len(part))
    pieces: list[str] = []
    moved: list[Span] = []
    length = 0
    for index in order:
        part, begin, end = parts[index], begins[index], begins[index + 1]
        moved += [
            (max(first, begin) - begin + length, min(last, end) - begin + length)
            for first, last in spans
            if first < end and last > begin
        ]
        pieces.append(part if part[-1].isspace() else f"{part} ")
        length += len(pieces[-1])
    return Reordered("".join(pieces).rstrip(), moved)


def other_orders(n: int, count: int) -> list[list[int]]:
    """Up to `count` orders of n things other than their own, all different; the same each time.

    Two things have one, three have five: `count` is at most that where there are three or more.
    """
    generator = random.Random(n)
    own = tuple(range(n))
    found: dict[tuple[int, ...], None] = {}
    while n > 1 and len(found) < (1 if n == 2 else count):
        order = tuple(generator.sample(own, n))
        if order != own:
            found[order] = None
    return [list(order) for order in found]
