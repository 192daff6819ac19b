"""The backend of a GPU: allocates, launches the kernels, and never waits for them.

Nothing here may look at a value on the device. Block sizes, stages and warps follow from what the
compiler says of registers and shared memory; they were not tuned on hardware.

Shapes: R batch rows, K rows, B rows with a base, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from negtemp_data.sampling import triton_kernels as kernels
from negtemp_data.sampling.draw import Draw, DrawRequest
from negtemp_data.sampling.rescale import RescaleRequest
from negtemp_data.sampling.stats import RowStats
from negtemp_data.sampling.supports import Limits, Uses, top_k_bound, top_p_bound

# Statistics need not round as on the host; scores and bounds should, so that ties fall alike.
_SCAN = {"BLOCKS": 16, "STAGES": 4, "num_warps": 8, "enable_fp_fusion": True}
_DRAW = {"BLOCKS": 16, "num_warps": 8, "enable_fp_fusion": False}
_WRITE = {"SIZE": 8192, "num_warps": 8, "enable_fp_fusion": False}

_SORTED_ROWS = 64
"""Rows sorted at a time: a copy of a logit and its place, mass and so on take 40 bytes."""


class TritonBackend:
    """Kernels of our own, on a GPU."""

    is_dense = True

    def stats(self, logits_RV: Tensor, row_K: Tensor, *, has_deviation: bool = False) -> RowStats:
        """See `Backend`."""
        return _scan(logits_RV, row_K, has_deviation=has_deviation)

    def draw(self, logits_RV: Tensor, request: DrawRequest) -> Draw:
        """See `Backend`."""
        row_K, limits, uses = request.row_K, request.limits, request.uses
        stats = _scan(logits_RV, row_K, has_deviation=uses.top_n_sigma)
        size_K, rank_K, token_id_K = (torch.empty_like(row_K) for _ in range(3))
        logprob_K = torch.empty_like(stats.peak_K)
        kernels.draw_from_rows[(len(row_K),)](
            **_support_arguments(logits_RV, row_K, stats, limits, uses),
            mask_NV=request.mask_NV,
            mask_stride=request.mask_NV.stride(0),
            vocabulary_K=request.vocabulary_K,
            guard_K=request.guard_K,
            temperature_K=request.temperature_K,
            seed_K=request.seed_K,
            position_K=request.position_K,
            rule_K=request.rule_K,
            order_K=request.order_K,
            argmax_K=stats.argmax_K,
            token_id_K=token_id_K,
            support_size_K=size_K,
            logprob_K=logprob_K,
            rank_K=rank_K,
            **_DRAW,
        )
        return Draw(token_id_K, stats.argmax_K, size_K, logprob_K, rank_K, stats.entropy_K)

    def rescale(self, logits_RV: Tensor, stats: RowStats, request: RescaleRequest) -> None:
        """See `Backend`."""
        row_B, limits, uses = request.row_B, request.limits, request.uses
        is_changed_B = torch.zeros_like(request.is_wanted_B)
        kernels.rescale_rows[(len(row_B),)](
            **_support_arguments(logits_RV, row_B, stats, limits, uses),
            is_wanted_K=request.is_wanted_B,
            mask_NV=request.mask_NV,
            mask_stride=request.mask_NV.stride(0),
            vocabulary_K=request.vocabulary_B,
            temperature_K=request.temperature_B,
            log_min_p_K=request.log_min_p_B,
            is_changed_K=is_changed_B,
            **_DRAW,
        )
        if request.largest_k or request.any_top_p:
            _truncate(logits_RV, request, is_changed_B)

    def write_one_hot(
        self, logits_RV: Tensor, row_K: Tensor, token_K: Tensor, is_injected_K: Tensor
    ) -> None:
        """See `Backend`."""
        width = logits_RV.shape[1]
        kernels.write_one_hot[(len(row_K), triton.cdiv(width, _WRITE["SIZE"]))](
            logits_RV, logits_RV.stride(0), row_K, token_K, is_injected_K, width, **_WRITE
        )


def _scan(logits_RV: Tensor, row_K: Tensor, *, has_deviation: bool) -> RowStats:
    width = logits_RV.shape[1]
    n_blocks = triton.cdiv(width, kernels.LANES.value)
    stats = RowStats.empty(logits_RV, row_K, n_blocks, has_deviation=has_deviation)
    kernels.scan_rows[(len(row_K),)](
        logits_RV=logits_RV,
        row_stride=logits_RV.stride(0),
        row_K=row_K,
        width=width,
        **stats._asdict(),
        n_blocks=n_blocks,
        **_SCAN,
    )
    return stats


def _support_arguments(
    logits_RV: Tensor, row_K: Tensor, stats: RowStats, limits: Limits, uses: Uses
) -> dict[str, Any]:
    """What a kernel needs to find the supports of rows."""
    n_blocks = stats.top_KB.shape[1]
    return {
        "logits_RV": logits_RV,
        "row_stride": logits_RV.stride(0),
        "row_K": row_K,
        "width": logits_RV.shape[1],
        "min_p_K": limits.min_p_K,
        "epsilon_K": limits.epsilon_K,
        "top_n_sigma_K": limits.top_n_sigma_K if uses.top_n_sigma else None,
        "xtc_K": limits.xtc_K if uses.xtc else None,
        "floor_K": _sorted_bound(logits_RV, row_K, stats, limits, uses),
        "peak_K": stats.peak_K,
        "log_normalizer_K": stats.log_normalizer_K,
        "deviation_K": stats.deviation_K,
        "top_KB": stats.top_KB,
        "block_KB": torch.empty_like(stats.top_KB, dtype=torch.int32),
        "n_blocks": n_blocks,
        "PADDED": triton.next_power_of_2(n_blocks),
    }


def _sorted_bound(
    logits_RV: Tensor, row_K: Tensor, stats: RowStats, limits: Limits, uses: Uses
) -> Tensor | None:
    """Least logit that top_p and top_k allow, float32 [K]; None where no row has either."""
    if not (uses.top_p or uses.top_k):
        return None
    bound_K = torch.full_like(stats.peak_K, -torch.inf)
    for rows in _parts(len(bound_K)):
        z_KV = logits_RV[row_K[rows]]
        if uses.top_p:
            nucleus_K = top_p_bound(z_KV, stats.log_normalizer_K[rows], limits.top_p_K[rows])
            bound_K[rows] = torch.maximum(bound_K[rows], nucleus_K)
        if uses.top_k:
            kth_K = top_k_bound(z_KV, limits.top_k_K[rows], uses.top_k)
            bound_K[rows] = torch.maximum(bound_K[rows], kth_K)
    return bound_K


def _truncate(logits_RV: Tensor, request: RescaleRequest, is_changed_B: Tensor) -> None:
    """Applies top_k to y, and top_p to what it leaves, in the rows that hold y."""
    for rows in _parts(len(is_changed_B)):
        y_BV, is_changed_B1 = logits_RV[request.row_B[rows]], is_changed_B[rows, None]
        if request.largest_k:
            kth_B = top_k_bound(y_BV, request.top_k_B[rows], request.largest_k)
            y_BV = y_BV.masked_fill((y_BV < kth_B[:, None]) & is_changed_B1, -torch.inf)
        if request.any_top_p:
            nucleus_B = top_p_bound(y_BV, y_BV.logsumexp(dim=1), request.top_p_B[rows])
            y_BV = y_BV.masked_fill((y_BV < nucleus_B[:, None]) & is_changed_B1, -torch.inf)
        logits_RV[request.row_B[rows]] = y_BV


def _parts(n_rows: int) -> Iterator[slice]:
    return (slice(begin, begin + _SORTED_ROWS) for begin in range(0, n_rows, _SORTED_ROWS))
