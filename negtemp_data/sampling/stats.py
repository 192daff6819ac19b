"""What a step's decisions need to know of a row of logits.

Shapes: R batch rows, K rows, V vocabulary, B blocks of a row.
"""

from enum import IntFlag, auto
from typing import NamedTuple

import torch
from torch import Tensor


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
    """float32, the largest logit of each block, whose size is the backend's."""

    @classmethod
    def empty(
        cls, logits_RV: Tensor, row_K: Tensor, n_blocks: int, *, has_deviation: bool
    ) -> "RowStats":
        """Columns for a kernel to fill."""
        # Parts of one tensor would lie at odd addresses, for which Triton compiles kernels anew.
        return cls(
            peak_K=logits_RV.new_empty(len(row_K)),
            argmax_K=torch.empty_like(row_K),
            log_normalizer_K=logits_RV.new_empty(len(row_K)),
            entropy_K=logits_RV.new_empty(len(row_K)),
            margin_K=logits_RV.new_empty(len(row_K)),
            deviation_K=logits_RV.new_empty(len(row_K)) if has_deviation else None,
            top_KB=logits_RV.new_empty(len(row_K), n_blocks),
        )
