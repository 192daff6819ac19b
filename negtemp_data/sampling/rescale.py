"""One base for each of B rows: what it keeps, and at which temperature.

In this order: S = support ∩ vocabulary on softmax(z); y = (z − r)/T on S, r = max z on S for T > 0
and min for T < 0, so that y ≤ 0 whatever the sign of T; then min_p, top_k and top_p on y. The
engine then samples from y at T = 1 without limits of its own. Where S is empty it is the most
likely token of the vocabulary, and where that is forbidden too the row stays as it is.

Shapes: B rows, V vocabulary, N vocabulary masks.
"""

from typing import NamedTuple

from torch import Tensor

from negtemp_data.sampling.supports import Limits, Uses


class RescaleRequest(NamedTuple):
    """What to make of each row."""

    row_B: Tensor
    """int64 rows of the batch, each once."""
    is_wanted_B: Tensor
    """bool; the other rows stay as they are."""
    mask_NV: Tensor
    """bool, the vocabularies."""
    vocabulary_B: Tensor
    """int64 index of each row's vocabulary."""
    limits: Limits
    """The support."""
    uses: Uses
    temperature_B: Tensor
    """float32, any sign, ±inf; 0 is the most likely token of S."""
    log_min_p_B: Tensor
    """float32, on y. Neutral: −inf."""
    top_k_B: Tensor
    """int64, on y. Neutral: 0."""
    largest_k: int
    """The largest of all top_k, as the host knows."""
    top_p_B: Tensor
    """float64, on y. Neutral: 1."""
    any_top_p: bool
    """Whether some top_p is below 1, as the host knows."""
