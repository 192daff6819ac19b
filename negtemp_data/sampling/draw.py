"""One injection for each of K rows: candidates, draw, and what it displaced.

Semantics: S = support ∩ vocabulary, empty where the most likely token is guarded; a = argmax over S
of ((z − r)/T + g), r = min z on S for T < 0 and max for T > 0, g standard Gumbel noise; ties go to
the lowest id. Subtracting r keeps the exponents ≤ 0 whatever the sign of T, so nothing overflows;
T = ±inf leaves the noise alone, which is the uniform draw. A row that is the r-th of its siblings
takes the r-th best candidate instead (Gumbel top-k, 1903.06059).

Shapes: K rows, V vocabulary, N vocabulary masks.
"""

from typing import NamedTuple

from torch import Tensor

from negtemp_data.sampling.supports import Limits, Uses


class DrawRequest(NamedTuple):
    """What to draw from each row."""

    row_K: Tensor
    """int64 rows of the batch."""
    mask_NV: Tensor
    """bool, the vocabularies."""
    vocabulary_K: Tensor
    """int64 index of each row's vocabulary."""
    guard_K: Tensor
    """int64 index of the mask of tokens that must not be displaced."""
    limits: Limits
    """The support."""
    uses: Uses
    temperature_K: Tensor
    """float32, any sign, ±inf; 0 is the most likely candidate."""
    seed_K: Tensor
    """int64 keys of the noise."""
    position_K: Tensor
    """int64."""
    rule_K: Tensor
    """int64 index of the rule in its schedule."""
    order_K: Tensor | None
    """int64: take this candidate, modulo |S|, counted from the best; None: all take the best."""


class Draw(NamedTuple):
    """The outcome; of rows with fewer than two candidates only `support_size_K` means anything."""

    token_id_K: Tensor
    displaced_id_K: Tensor
    support_size_K: Tensor
    logprob_K: Tensor
    rank_K: Tensor
    entropy_K: Tensor
