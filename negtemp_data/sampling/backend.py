"""The heavy part of a step, on the host or on a GPU, behind one interface.

Shapes: R batch rows, K rows, V vocabulary.
"""

from typing import Protocol

import torch
from torch import Tensor

from negtemp_data.sampling.draw import Draw, DrawRequest
from negtemp_data.sampling.rescale import RescaleRequest
from negtemp_data.sampling.stats import RowStats


class Backend(Protocol):
    """What reads and writes whole rows of logits: float32, those of a row side by side."""

    is_dense: bool
    """Whether rows that turn out to need nothing come along: leaving them out would make the host
    wait for the device."""

    def stats(self, logits_RV: Tensor, row_K: Tensor, *, has_deviation: bool = False) -> RowStats:
        """Statistics of some rows of the batch."""

    def draw(self, logits_RV: Tensor, request: DrawRequest) -> Draw:
        """Draws one token per row; the logits are not changed."""

    def rescale(self, logits_RV: Tensor, stats: RowStats, request: RescaleRequest) -> None:
        """Replaces rows by what their bases make of them, in place; `stats` are those rows'."""

    def write_one_hot(
        self, logits_RV: Tensor, row_K: Tensor, token_K: Tensor, is_injected_K: Tensor
    ) -> None:
        """Makes the injected rows 0 at their token and −inf elsewhere, in place."""


def backend_for(device: torch.device) -> Backend:
    """The backend of logits on `device`."""
    # Kernels are compiled when they are loaded or first used, and Triton comes with GPU builds of
    # torch alone.
    if device.type == "cuda":
        from negtemp_data.sampling.triton_backend import TritonBackend  # noqa: PLC0415

        return TritonBackend()
    from negtemp_data.sampling.host_backend import HostBackend  # noqa: PLC0415

    return HostBackend()
