"""The heavy part of a step, on the host or on a GPU, behind one interface.

Shapes: R batch rows, K rows, V vocabulary.
"""

from typing import Protocol

import torch
from torch import Tensor

from negtemp_data.sampling.draw import Outcome, StepRows
from negtemp_data.sampling.rescale import RescaleRequest
from negtemp_data.sampling.state import RowStates
from negtemp_data.sampling.stats import RowStats


class Backend(Protocol):
    """What reads and writes whole rows of logits: float32, those of a row side by side."""

    def inject(self, logits_RV: Tensor, rows: StepRows, states: RowStates) -> Outcome:
        """Does what the rules of some rows ask for, in place, and moves their states on."""

    def stats(self, logits_RV: Tensor, row_K: Tensor, *, has_deviation: bool = False) -> RowStats:
        """Statistics of some rows of the batch."""

    def rescale(self, logits_RV: Tensor, stats: RowStats, request: RescaleRequest) -> None:
        """Replaces rows by what their bases make of them, in place; `stats` are those rows'."""


def backend_for(device: torch.device) -> Backend:
    """The backend of logits on `device`."""
    # Kernels are compiled when they are loaded or first used, and Triton comes with GPU builds of
    # torch alone.
    if device.type == "cuda":
        from negtemp_data.sampling.triton_backend import TritonBackend  # noqa: PLC0415

        return TritonBackend()
    from negtemp_data.sampling.host_backend import HostBackend  # noqa: PLC0415

    return HostBackend()
