"""What a step's decisions need to know of a row of logits.

Shapes: K rows, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from enum import IntFlag, auto
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK_LOGITS = 1 << 19
"""Logits looked at together: 2 MiB, and as much again for their exponentials."""

_TAME = 60.0
"""Below this size exp(z) neither overflows nor vanishes in float32, so that no shift is needed."""


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
    """Memory for a few rows and their exponentials, used again and again.

    Fresh memory of this size costs the kernel more than the arithmetic in it.
    """

    def __init__(self) -> None:
        """Takes no memory before the first use."""
        self._logits = self._powers = torch.empty(0)
        self._mask = torch.empty(0, dtype=torch.bool)

    def take(self, logits_RV: Tensor, row_K: Tensor) -> Tensor:
        """A few rows, float32 [K, V], to be read until the next call."""
        first, last = int(row_K[0]), int(row_K[-1])
        is_run = last - first == len(row_K) - 1 and bool((row_K.diff() == 1).all())
        if is_run and logits_RV.is_contiguous():
            return logits_RV[first : last + 1]
        shape = len(row_K), logits_RV.shape[1]
        self._make_room(shape)
        return torch.index_select(logits_RV, 0, row_K, out=_cut(self._logits, shape))

    def exp(self, z_KV: Tensor) -> Tensor:
        """The exponentials of a few rows; they live until the next call."""
        self._make_room(z_KV.shape)
        return torch.exp(z_KV, out=_cut(self._powers, z_KV.shape))

    def reaches(self, z_KV: Tensor, bound_K: Tensor) -> Tensor:
        """bool [K, V]: z ≥ bound; lives until the next call."""
        self._make_room(z_KV.shape)
        return torch.ge(z_KV, bound_K[:, None], out=_cut(self._mask, z_KV.shape))

    def _make_room(self, shape: Sequence[int]) -> None:
        size = math.prod(shape)
        if self._logits.numel() < size:
            self._logits, self._powers = torch.empty(2, size).unbind()
            self._mask = torch.empty(size, dtype=torch.bool)


def _cut(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    return buffer[: math.prod(shape)].view(*shape)


def row_stats(z_KV: Tensor, scratch: Scratch) -> RowStats:
    """Statistics of rows on the host.

    One exponential per logit is most of what they cost, so it is done once, and unshifted where
    that is safe.

    Args:
        z_KV: float32, contiguous; −inf entries are forbidden tokens. A row has a finite entry.
        scratch: Memory for the exponentials.
    """
    argmax_K = first_argmax(z_KV)
    peak_K = z_KV.gather(1, argmax_K[:, None]).squeeze(1)
    log_normalizer_K, entropy_K = _sums(z_KV, peak_K, scratch)
    return RowStats(peak_K, argmax_K, log_normalizer_K, entropy_K)


def read(z_KV: Tensor, needs: Needs, scratch: Scratch) -> Readings:
    """What triggers look at, of rows on the host; None what they don't."""
    argmax_K = first_argmax(z_KV) if needs & Needs.ARGMAX else None
    if not needs & (Needs.ENTROPY | Needs.MARGIN):
        return Readings(argmax_K, None, None)
    peak_K = z_KV.amax(dim=1)
    log_normalizer_K, entropy_K = _sums(z_KV, peak_K, scratch)
    margin_K = None
    if needs & Needs.MARGIN:
        top_K2 = z_KV.topk(min(2, z_KV.shape[1]), dim=1).values
        p_K2 = (top_K2 - log_normalizer_K[:, None]).exp()
        margin_K = 2 * p_K2[:, 0] - p_K2.sum(dim=1)
    return Readings(argmax_K, entropy_K, margin_K)


def _sums(z_KV: Tensor, peak_K: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """ln Σ exp(z) and the entropy."""
    # By row: whether a row is shifted must not depend on the rows beside it.
    shift_K = peak_K.masked_fill(peak_K.abs() < _TAME, 0)
    d_KV = z_KV - shift_K[:, None] if bool(shift_K.any()) else z_KV
    p_KV = scratch.exp(d_KV)
    mass_K = p_KV.sum(dim=1)
    mean_K = torch.linalg.vecdot(p_KV, d_KV) / mass_K
    if bool(mean_K.isnan().any()):
        # A forbidden token has p = 0, and 0·(−inf) is nan.
        mean_K = torch.linalg.vecdot(p_KV, d_KV.masked_fill(d_KV.isneginf(), 0)) / mass_K
    log_mass_K = mass_K.log()
    return log_mass_K + shift_K, (log_mass_K - mean_K).clamp(min=0)


def first_argmax(z_KV: Tensor) -> Tensor:
    """Lowest id among the largest logits of rows on the host, int64 [K].

    torch.argmax does not promise which of several it gives; numpy's does, and is faster.
    """
    return torch.from_numpy(z_KV.numpy().argmax(axis=1))
