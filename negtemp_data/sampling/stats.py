"""What a step's decisions need to know of a row of logits.

Shapes: K rows, B blocks of a row.
"""

from enum import IntFlag, auto
from typing import NamedTuple

from torch import Tensor

BLOCK = 64
"""Tokens of a block."""


class Needs(IntFlag):
    """What the rules of a schedule look at, beyond positions, at every step."""

    TEXT = auto()
    LOGITS = auto()


class RowStats(NamedTuple):
    """Properties of softmax(z) at T = 1; −inf entries are forbidden tokens.

    nan, but for `argmax_K`, for a row that holds a nan or +inf or has no finite entry.
    """

    peak_K: Tensor
    """float32, the largest logit."""
    argmax_K: Tensor
    """int64, lowest id among the largest logits."""
    log_normalizer_K: Tensor
    """float32, ln Σ exp(z)."""
    entropy_K: Tensor
    """float32, in nats."""
    margin_K: Tensor
    """float32, p₁ − p₂: how far the most likely token leads; 1 where it is the only one."""
    deviation_K: Tensor | None
    """float32, the population deviation of the finite logits; None where none asked."""
    top_KB: Tensor
    """float32, the largest logit of each block."""
