"""The backend of a CPU.

Shapes: R batch rows, K rows, V vocabulary, F logits from the batch's first to its last.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negtemp_data.sampling import host_kernels as kernels
from negtemp_data.sampling.columns import OutcomeNumber, OutcomeValue
from negtemp_data.sampling.draw import Outcome, StepRows
from negtemp_data.sampling.rescale import RescaleRequest
from negtemp_data.sampling.state import RowStates
from negtemp_data.sampling.stats import RowStats
from negtemp_data.sampling.supports import Bounds, Limits, Uses, bounds


class _Flat(NamedTuple):
    """A batch as the kernels take it: rows may lie apart, the logits of a row not."""

    z_F: NDArray[np.float32]
    row_stride: int
    width: int


class HostBackend:
    """Compiled loops of our own, on the CPU."""

    def inject(self, logits_RV: Tensor, rows: StepRows, states: RowStates) -> Outcome:
        """See `Backend`."""
        flat, rules = _flat(logits_RV), states.rules
        n_rows = len(rows.row_K)
        kernels.use_threads(n_rows * flat.width)
        number_KC = torch.empty(n_rows, len(OutcomeNumber), dtype=torch.int64)
        value_KC = torch.empty(n_rows, len(OutcomeValue))
        is_waiting_K = torch.empty(n_rows, dtype=torch.bool)
        last_token_K, fires_KM = rows.last_token_K, rows.fires_KM
        columns = (
            rows.row_K,
            rows.slot_K,
            rows.position_K,
            rows.row_K[:0] if last_token_K is None else last_token_K,
            torch.empty(n_rows, 0, dtype=torch.bool) if fires_KM is None else fires_KM,
            states.row_SC,
            states.rule_SM,
            states.tag_WS,
            states.state_WSMC,
            rules.number_GC,
            rules.value_GC,
            rules.at_GA,
            rules.automata.next_XV,
            rules.automata.code_X,
            rules.automata.begins_with_space_V,
            rules.masks.mask_NV,
            number_KC,
            value_KC,
            is_waiting_K,
        )
        kernels.inject_into_rows(
            *flat, rules.uses.top_n_sigma, *(column.numpy() for column in columns)
        )
        return Outcome(number_KC, value_KC, is_waiting_K)

    def stats(self, logits_RV: Tensor, row_K: Tensor, *, has_deviation: bool = False) -> RowStats:
        """See `Backend`."""
        return _scan(logits_RV, row_K, has_deviation=has_deviation)

    def rescale(self, logits_RV: Tensor, stats: RowStats, request: RescaleRequest) -> None:
        """See `Backend`."""
        flat = _flat(logits_RV)
        kernels.use_threads(len(request.row_B) * flat.width)
        lower_B, upper_B = _bounds(flat, request.row_B, stats, request.limits, request.uses)
        columns = (
            request.row_B,
            request.is_wanted_B,
            request.mask_NV,
            request.vocabulary_B,
            lower_B,
            upper_B,
            request.temperature_B,
            request.log_min_p_B,
            request.top_k_B,
            request.top_p_B,
            stats.top_KB,
        )
        kernels.rescale_rows(*flat, *(column.numpy() for column in columns))


def _flat(logits_RV: Tensor) -> _Flat:
    (n_rows, width), (row_stride, stride) = logits_RV.shape, logits_RV.stride()
    if logits_RV.dtype != torch.float32 or (stride != 1 and width > 1):
        raise ValueError(
            "logits must be float32, those of a row side by side; found "
            f"{logits_RV.dtype} with strides {logits_RV.stride()}"
        )
    size = (n_rows - 1) * row_stride + width if n_rows else 0
    return _Flat(logits_RV.as_strided((size,), (1,)).numpy(), row_stride, width)


def _scan(logits_RV: Tensor, row_K: Tensor, *, has_deviation: bool) -> RowStats:
    flat = _flat(logits_RV)
    kernels.use_threads(len(row_K) * flat.width)
    n_blocks = -(-flat.width // kernels.BLOCK)
    stats = RowStats.empty(logits_RV, row_K, n_blocks, has_deviation=has_deviation)
    nothing = stats.peak_K[:0]
    columns = (nothing if column is None else column for column in stats)
    kernels.scan_rows(*flat, row_K.numpy(), *(column.numpy() for column in columns))
    return stats


def _bounds(flat: _Flat, row_K: Tensor, stats: RowStats, limits: Limits, uses: Uses) -> Bounds:
    lower_K, upper_K = bounds(stats, limits, uses)
    if uses.whole_rows:
        columns = (
            row_K,
            stats.top_KB,
            stats.log_normalizer_K,
            limits.top_p_K,
            limits.top_k_K,
            stats.log_normalizer_K + limits.xtc_K.log(),
            lower_K,
            upper_K,
        )
        kernels.narrow_bounds(*flat, *(column.numpy() for column in columns))
    return Bounds(lower_K, upper_K)
