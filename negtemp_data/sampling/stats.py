"""What a step's decisions need to know of a row of logits.

Sums over a row are made block by block: how torch cuts a long row among threads depends on the rows
beside it, and with it the last bits of the sum.

Shapes: K rows, V vocabulary, B blocks of a row, E = 64 tokens of a block.
"""

import math
from collections.abc import Iterator, Sequence
from enum import IntFlag, auto
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
"""Tokens of a block."""

_CHUNK_LOGITS = 1 << 21
"""Logits looked at together: 8 MiB, and as much again for their probabilities."""

_TAME = 60.0
"""Below this size Σ p·z is exact enough in float32 for an entropy, so that no shift is needed."""


class Needs(IntFlag):
    """What the rules of a schedule look at, beyond positions, at every step."""

    TEXT = auto()
    ARGMAX = auto()
    ENTROPY = auto()
    MARGIN = auto()


class RowStats(NamedTuple):
    """Properties of softmax(z) at T = 1."""

    peak_K: Tensor
    """float32, the largest logit."""
    argmax_K: Tensor
    """int64, lowest id among the largest logits."""
    log_normalizer_K: Tensor
    """float32, ln Σ exp(z)."""
    entropy_K: Tensor
    """float32, in nats."""


class Readings(NamedTuple):
    """What triggers look at; None where none asked."""

    argmax_K: Tensor | None
    entropy_K: Tensor | None
    margin_K: Tensor | None
    """float32, p₁ − p₂: how far the most likely token leads; 1 where it is the only one."""


def row_chunks(n_rows: int, width: int) -> Iterator[slice]:
    """Cuts rows of this width into runs that fit the cache."""
    size = max(1, _CHUNK_LOGITS // width)
    return (slice(begin, min(begin + size, n_rows)) for begin in range(0, n_rows, size))


class Scratch:
    """Memory for a few rows and their probabilities, used again and again.

    Fresh memory of this size costs the kernel more than the arithmetic in it.
    """

    def __init__(self) -> None:
        """Takes no memory before the first use."""
        self._logits = self._probabilities = torch.empty(0)

    def take(self, logits_RV: Tensor, row_K: Tensor) -> Tensor:
        """A few rows, float32, to be read until the next call.

        Their width is that of the logits, rounded up to whole blocks; the rest is −inf.
        """
        first, last, width = int(row_K[0]), int(row_K[-1]), logits_RV.shape[1]
        padded_width = -(-width // BLOCK) * BLOCK
        if width == padded_width and logits_RV.is_contiguous():
            is_run = last - first == len(row_K) - 1 and bool((row_K.diff() == 1).all())
            if is_run:
                return logits_RV[first : last + 1]
        shape = len(row_K), padded_width
        self._make_room(shape)
        z_KV = _cut(self._logits, shape)
        if width == padded_width:
            return torch.index_select(logits_RV, 0, row_K, out=z_KV)
        z_KV[:, :width] = logits_RV[row_K]
        z_KV[:, width:] = -torch.inf
        return z_KV

    def softmax(self, z_KV: Tensor) -> Tensor:
        """The probabilities of a few rows; they live until the next call."""
        self._make_room(z_KV.shape)
        return torch.softmax(z_KV, dim=1, out=_cut(self._probabilities, z_KV.shape))

    def _make_room(self, shape: Sequence[int]) -> None:
        size = math.prod(shape)
        if self._logits.numel() < size:
            self._logits, self._probabilities = torch.empty(2, size).unbind()


def _cut(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    return buffer[: math.prod(shape)].view(*shape)


def blocks(rows_KV: Tensor) -> Tensor:
    """Rows of whole blocks as [K, B, E], without a copy."""
    return rows_KV.view(len(rows_KV), -1, BLOCK)


def row_stats(z_KV: Tensor, peak_KB: Tensor, scratch: Scratch) -> RowStats:
    """Statistics of rows on the host.

    Args:
        z_KV: float32, contiguous, of whole blocks; −inf entries are forbidden tokens. A row has a
            finite entry.
        peak_KB: Largest logit of each block.
        scratch: Memory for the probabilities.
    """
    argmax_K = _first_argmax(z_KV, peak_KB)
    peak_K = z_KV.gather(1, argmax_K[:, None]).squeeze(1)
    log_normalizer_K, entropy_K = _sums(z_KV, peak_K, argmax_K, scratch)
    return RowStats(peak_K, argmax_K, log_normalizer_K, entropy_K)


def read(z_KV: Tensor, needs: Needs, scratch: Scratch) -> Readings:
    """What triggers look at, of rows on the host; None what they don't.

    Args:
        z_KV: As for `row_stats`.
        needs: What they look at.
        scratch: Memory for the probabilities.
    """
    peak_KB = blocks(z_KV).amax(dim=2)
    if not needs & (Needs.ENTROPY | Needs.MARGIN):
        return Readings(_first_argmax(z_KV, peak_KB), None, None)
    stats = row_stats(z_KV, peak_KB, scratch)
    margin_K = None
    if needs & Needs.MARGIN:
        p_K2 = (largest(z_KV, 2) - stats.log_normalizer_K[:, None]).exp()
        margin_K = 2 * p_K2[:, 0] - p_K2.sum(dim=1)
    return Readings(stats.argmax_K, stats.entropy_K, margin_K)


def largest(z_KV: Tensor, n: int) -> Tensor:
    """The n largest logits of each row, falling; all of them where there are fewer."""
    width = z_KV.shape[1]
    # They lie in the n blocks with the largest peaks, which on a CPU are found in a tenth of the
    # time that topk takes over whole rows.
    if z_KV.device.type == "cpu" and width % BLOCK == 0 and n * 8 * BLOCK <= width:
        z_KBE = blocks(z_KV)
        block_Kn = z_KBE.amax(dim=2).topk(n, dim=1, sorted=False).indices
        z_KV = z_KBE.gather(1, block_Kn[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    return z_KV.topk(min(n, width), dim=1).values


def block_sum(rows_KV: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sum of each row; the blocks are summed in float32, their sums in `dtype`."""
    return blocks(rows_KV).sum(dim=2).sum(dim=1, dtype=dtype)


def _sums(
    z_KV: Tensor, peak_K: Tensor, argmax_K: Tensor, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """ln Σ exp(z) and the entropy, ln Σ exp(z) − Σ p·z.

    torch's softmax takes a quarter of the time of its exp: it may be off by more in the last place.
    """
    p_KV = scratch.softmax(z_KV)
    log_peak_K = p_KV.gather(1, argmax_K[:, None]).squeeze(1).log()
    # By row: whether a row is shifted must not depend on the rows beside it.
    shift_K = peak_K.masked_fill(peak_K.abs() < _TAME, 0)
    d_KV = z_KV - shift_K[:, None] if bool(shift_K.any()) else z_KV
    mean_K = block_sum(p_KV.mul_(d_KV))
    if bool(mean_K.isnan().any()):
        # A forbidden token has p = 0, and 0·(−inf) is nan.
        mean_K = block_sum(p_KV.masked_fill_(d_KV.isneginf(), 0))
    return peak_K - log_peak_K, (peak_K - shift_K - log_peak_K - mean_K).clamp(min=0)


def _first_argmax(z_KV: Tensor, peak_KB: Tensor) -> Tensor:
    """Lowest id among the largest logits of rows on the host, int64 [K].

    torch.argmax does not promise which of several it gives; numpy's does.
    """
    block_K = peak_KB.numpy().argmax(axis=1)
    z_KE = blocks(z_KV).numpy()[np.arange(len(block_K)), block_K]
    return torch.from_numpy(block_K * BLOCK + z_KE.argmax(axis=1))
