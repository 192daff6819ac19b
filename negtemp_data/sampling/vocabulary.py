"""Named classes of tokens, as masks over the vocabulary.

Built from the tokenizer's token strings by whoever has a tokenizer; this module knows none.

Shapes: V vocabulary (the width of the logits, which may exceed the tokenizer's).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from negtemp_data.sampling.records import Vocabulary

_WORD_MARKS = ("Ġ", "▁", " ")
"""How token strings show a leading space: byte-level BPE, SentencePiece, plain."""


@dataclass(frozen=True)
class TokenTable:
    """The tokens of a model."""

    tokens: Sequence[str]
    """Token strings by id, as the tokenizer stores them."""
    special_ids: frozenset[int]
    """Ids of control tokens."""

    def mask(self, vocabulary: Vocabulary, width: int, device: torch.device) -> Tensor:
        """bool [V] of the tokens that `vocabulary` allows; ids without a token are never allowed.

        Raises:
            ValueError: A class is unknown, or fewer than two tokens are left.
        """
        allowed_V = torch.zeros(width, dtype=torch.bool)
        n_tokens = min(len(self.tokens), width)
        allowed_V[:n_tokens] = True
        if vocabulary.include:
            allowed_V[:n_tokens] &= torch.stack(
                [self._members(name, n_tokens) for name in vocabulary.include]
            ).any(dim=0)
        for name in vocabulary.exclude:
            allowed_V[:n_tokens] &= ~self._members(name, n_tokens)
        if int(allowed_V.sum()) < 2:
            raise ValueError(
                f"{vocabulary} leaves fewer than two tokens of this model to draw from"
            )
        return allowed_V.to(device)

    def _members(self, name: str, n_tokens: int) -> Tensor:
        match name:
            case "special":
                members = [i in self.special_ids for i in range(n_tokens)]
            case "word_start":
                members = [
                    token.startswith(_WORD_MARKS) and len(token) > 1
                    for token in self.tokens[:n_tokens]
                ]
            case _:
                raise ValueError(f"unknown token class {name!r}; known: special, word_start")
        return torch.tensor(members, dtype=torch.bool)
