"""What a step's decisions need to know of a row of logits.

Shapes: K rows, V vocabulary, B blocks of a row, E = 64 tokens of a block.
"""

from collections.abc import Iterator
from enum import IntFlag, auto
from typing import NamedTuple

from torch import Tensor

BLOCK = 64
"""Tokens of a block."""

_CHUNK_LOGITS = 1 << 21
"""Logits looked at together: 8 MiB."""


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

    def select(self, chosen: slice) -> "RowStats":
        """The statistics of some rows."""
        return RowStats(*(None if column is None else column[chosen] for column in self))  # type: ignore[arg-type]


def row_chunks(n_rows: int, width: int) -> Iterator[slice]:
    """Cuts rows of this width into runs that fit the cache."""
    size = max(1, _CHUNK_LOGITS // width)
    return (slice(begin, min(begin + size, n_rows)) for begin in range(0, n_rows, size))


def largest(z_KV: Tensor, n: int) -> Tensor:
    """The n largest logits of each row, falling; all of them where there are fewer."""
    width = z_KV.shape[1]
    # They lie in the n blocks with the largest peaks, which on a CPU are found in a tenth of the
    # time that topk takes over whole rows.
    if z_KV.device.type == "cpu" and width % BLOCK == 0 and n * 8 * BLOCK <= width:
        z_KBE = z_KV.unflatten(1, (-1, BLOCK))
        block_Kn = z_KBE.amax(dim=2).topk(n, dim=1, sorted=False).indices
        z_KV = z_KBE.gather(1, block_Kn[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    return z_KV.topk(min(n, width), dim=1).values
