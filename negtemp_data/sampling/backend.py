"""The heavy part of a step, on the host or on a GPU, behind one interface.

Shapes: R batch rows, K rows, V vocabulary.
"""

from typing import Protocol

import torch
from torch import Tensor

from negtemp_data.sampling.draw import Draw, DrawRequest, draw
from negtemp_data.sampling.stats import (
    Needs,
    Readings,
    RowStats,
    Scratch,
    blocks,
    read,
    row_chunks,
    row_stats,
)

_FEW_GAPS = 1.5
"""Reads at most this many times the rows that are wanted."""


class Backend(Protocol):
    """What reads and writes whole rows of logits."""

    is_dense: bool
    """Whether rows that turn out to need nothing come along: leaving them out would make the host
    wait for the device."""

    def stats(self, z_KV: Tensor) -> RowStats:
        """Statistics of whole rows, float32; −inf entries are forbidden tokens."""

    def read(self, logits_RV: Tensor, row_K: Tensor, needs: Needs) -> Readings:
        """What triggers look at, of some rows of the batch."""

    def draw(self, logits_RV: Tensor, request: DrawRequest) -> Draw:
        """Draws one token per row; the logits are not changed."""

    def write_one_hot(
        self, logits_RV: Tensor, row_K: Tensor, token_K: Tensor, is_injected_K: Tensor
    ) -> None:
        """Makes the injected rows 0 at their token and −inf elsewhere, in place."""


class HostBackend:
    """torch and numpy, on the CPU."""

    is_dense = False

    def __init__(self) -> None:
        """Takes its working memory at the first use."""
        self._scratch = Scratch()

    def stats(self, z_KV: Tensor) -> RowStats:
        """See `Backend`."""
        whole_KV = self._scratch.take(z_KV, torch.arange(len(z_KV)))
        return row_stats(whole_KV, blocks(whole_KV).amax(dim=2), self._scratch)

    def read(self, logits_RV: Tensor, row_K: Tensor, needs: Needs) -> Readings:
        """See `Backend`."""
        # Rows that cool down leave gaps; reading those rows too is cheaper than copying the others.
        first, last = int(row_K[0]), int(row_K[-1])
        is_dense = last - first < _FEW_GAPS * len(row_K) and bool((row_K.diff() > 0).all())
        read_K = torch.arange(first, last + 1) if is_dense else row_K
        parts = [
            read(self._scratch.take(logits_RV, read_K[rows]), needs, self._scratch)
            for rows in row_chunks(len(read_K), logits_RV.shape[1])
        ]
        readings = Readings(*map(_join, zip(*parts, strict=True)))
        if len(read_K) == len(row_K):
            return readings
        chosen_K = row_K - first
        return Readings(*(None if tensor is None else tensor[chosen_K] for tensor in readings))

    def draw(self, logits_RV: Tensor, request: DrawRequest) -> Draw:
        """See `Backend`."""
        return draw(logits_RV, request, self._scratch)

    def write_one_hot(
        self, logits_RV: Tensor, row_K: Tensor, token_K: Tensor, is_injected_K: Tensor
    ) -> None:
        """See `Backend`."""
        row_I = row_K[is_injected_K]
        logits_RV.index_fill_(0, row_I, -torch.inf)
        logits_RV[row_I, token_K[is_injected_K]] = 0.0


def _join(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    tensors = [tensor for tensor in parts if tensor is not None]
    return torch.cat(tensors) if tensors else None


def backend_for(device: torch.device) -> Backend:
    """The backend of logits on `device`."""
    if device.type == "cuda":
        # Triton comes with GPU builds of torch alone, and compiles the kernels at their first use.
        from negtemp_data.sampling.triton_backend import TritonBackend  # noqa: PLC0415

        return TritonBackend()
    return HostBackend()
