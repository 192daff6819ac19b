"""The backend of a GPU: allocates, launches the kernels, and never waits for them.

Nothing here may look at a value on the device. Block sizes, stages and warps follow from what the
compiler says of registers and shared memory; they were not tuned on hardware.

Shapes: R batch rows, K rows, B rows with a base, V vocabulary.
"""

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from negtemp_data.sampling.columns import OutcomeNumber, OutcomeValue, RuleNumber, RuleValue
from negtemp_data.sampling.draw import Outcome, StepRows
from negtemp_data.sampling.rescale import RescaleRequest
from negtemp_data.sampling.state import RowStates
from negtemp_data.sampling.stats import RowStats
from negtemp_data.sampling.supports import Uses, top_k_bound, top_p_bound
from negtemp_data.sampling.triton_draw import draw_from_rows, write_one_hot
from negtemp_data.sampling.triton_rescale import rescale_rows
from negtemp_data.sampling.triton_scan import LANES, scan_rows
from negtemp_data.sampling.triton_settle import settle_rows

# Statistics need not round as on the host; scores and bounds should, so that ties fall alike.
_SCAN = {"BLOCKS": 16, "STAGES": 4, "num_warps": 8, "enable_fp_fusion": True}
_SETTLE = {"num_warps": 1, "enable_fp_fusion": False}
_DRAW = {"BLOCKS": 16, "num_warps": 8, "enable_fp_fusion": False}
_WRITE = {"SIZE": 8192, "num_warps": 8, "enable_fp_fusion": False}

_SORTED_ROWS = 64
"""Rows sorted at a time: a copy of a logit and its place, mass and so on take 40 bytes."""


class TritonBackend:
    """Kernels of our own, on a GPU."""

    def inject(self, logits_RV: Tensor, rows: StepRows, states: RowStates) -> Outcome:
        """See `Backend`."""
        rules, row_K, mask_NV = states.rules, rows.row_K, states.rules.masks.mask_NV
        uses, automata = rules.uses, rules.automata
        n_rows, n_rules = len(row_K), states.rule_SM.shape[1]
        stats = _scan(logits_RV, row_K, has_deviation=uses.top_n_sigma)
        known_K = torch.empty_like(row_K)
        number_KC = row_K.new_empty(n_rows, len(OutcomeNumber))
        value_KC = logits_RV.new_empty(n_rows, len(OutcomeValue))
        tables = {
            "row_SC": states.row_SC,
            "state_WSMC": states.state_WSMC,
            "number_HC": rules.number_GC,
            "value_HC": rules.value_GC,
            "width": logits_RV.shape[1],
            "n_slots": states.tag_WS.shape[1],
            "n_rules": n_rules,
            "n_kept": states.tag_WS.shape[0],
            "known_K": known_K,
            "number_KC": number_KC,
        }
        settle_rows[(n_rows,)](
            **tables,
            slot_K=rows.slot_K,
            position_K=rows.position_K,
            last_token_K=rows.last_token_K,
            fires_KM=rows.fires_KM,
            argmax_K=stats.argmax_K if rows.reads_logits else None,
            entropy_K=stats.entropy_K,
            margin_K=stats.margin_K,
            rule_SM=states.rule_SM,
            tag_WS=states.tag_WS,
            at_HA=rules.at_GA,
            next_XV=automata.next_XV,
            code_X=automata.code_X,
            begins_with_space_V=automata.begins_with_space_V,
            n_listed=rules.at_GA.shape[1],
            PADDED=triton.next_power_of_2(n_rules),
            **_SETTLE,
        )
        floor_K = None
        if uses.top_p or uses.top_k:
            top_p_K = rules.value_GC[:, RuleValue.TOP_P][known_K]
            top_k_K = rules.number_GC[:, RuleNumber.TOP_K][known_K]
            floor_K = _sorted_bound(logits_RV, row_K, stats, top_p_K, top_k_K, uses)
        n_blocks = stats.top_KB.shape[1]
        draw_from_rows[(n_rows,)](
            **tables,
            logits_RV=logits_RV,
            row_stride=logits_RV.stride(0),
            row_K=row_K,
            mask_NV=mask_NV,
            mask_stride=mask_NV.stride(0),
            floor_K=floor_K,
            peak_K=stats.peak_K,
            argmax_K=stats.argmax_K,
            log_normalizer_K=stats.log_normalizer_K,
            entropy_K=stats.entropy_K,
            deviation_K=stats.deviation_K,
            top_KB=stats.top_KB,
            block_KB=torch.empty_like(stats.top_KB, dtype=torch.int32),
            n_blocks=n_blocks,
            value_KC=value_KC,
            PADDED=triton.next_power_of_2(n_blocks),
            HAS_XTC=uses.xtc,
            **_DRAW,
        )
        write_rows(logits_RV, row_K, number_KC)
        return Outcome(number_KC, value_KC, is_waiting_K=None)

    def stats(self, logits_RV: Tensor, row_K: Tensor, *, has_deviation: bool = False) -> RowStats:
        """See `Backend`."""
        return _scan(logits_RV, row_K, has_deviation=has_deviation)

    def rescale(self, logits_RV: Tensor, stats: RowStats, request: RescaleRequest) -> None:
        """See `Backend`."""
        row_B, limits, uses = request.row_B, request.limits, request.uses
        is_changed_B = torch.zeros_like(request.is_wanted_B)
        floor_B = None
        if uses.top_p or uses.top_k:
            top_p_B, top_k_B = limits.top_p_K, limits.top_k_K
            floor_B = _sorted_bound(logits_RV, row_B, stats, top_p_B, top_k_B, uses)
        n_blocks = stats.top_KB.shape[1]
        rescale_rows[(len(row_B),)](
            logits_RV=logits_RV,
            row_stride=logits_RV.stride(0),
            row_K=row_B,
            width=logits_RV.shape[1],
            min_p_K=limits.min_p_K,
            epsilon_K=limits.epsilon_K,
            top_n_sigma_K=limits.top_n_sigma_K if uses.top_n_sigma else None,
            xtc_K=limits.xtc_K if uses.xtc else None,
            floor_K=floor_B,
            peak_K=stats.peak_K,
            log_normalizer_K=stats.log_normalizer_K,
            deviation_K=stats.deviation_K,
            top_KB=stats.top_KB,
            block_KB=torch.empty_like(stats.top_KB, dtype=torch.int32),
            n_blocks=n_blocks,
            PADDED=triton.next_power_of_2(n_blocks),
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


def write_rows(logits_RV: Tensor, row_K: Tensor, number_KC: Tensor) -> None:
    """Makes the injected rows one-hot; `number_KC` has columns `OutcomeNumber`."""
    width = logits_RV.shape[1]
    write_one_hot[(len(row_K), triton.cdiv(width, _WRITE["SIZE"]))](
        logits_RV, logits_RV.stride(0), row_K, number_KC, width, **_WRITE
    )


def _scan(logits_RV: Tensor, row_K: Tensor, *, has_deviation: bool) -> RowStats:
    width = logits_RV.shape[1]
    n_blocks = triton.cdiv(width, LANES.value)
    stats = RowStats.empty(logits_RV, row_K, n_blocks, has_deviation=has_deviation)
    scan_rows[(len(row_K),)](
        logits_RV=logits_RV,
        row_stride=logits_RV.stride(0),
        row_K=row_K,
        width=width,
        **stats._asdict(),
        n_blocks=n_blocks,
        **_SCAN,
    )
    return stats


def _sorted_bound(
    logits_RV: Tensor,
    row_K: Tensor,
    stats: RowStats,
    top_p_K: Tensor,
    top_k_K: Tensor,
    uses: Uses,
) -> Tensor:
    """Least logit that top_p and top_k allow, float32 [K]."""
    bound_K = torch.full_like(stats.peak_K, -torch.inf)
    for rows in _parts(len(bound_K)):
        z_KV = logits_RV[row_K[rows]]
        if uses.top_p:
            nucleus_K = top_p_bound(z_KV, stats.log_normalizer_K[rows], top_p_K[rows])
            bound_K[rows] = torch.maximum(bound_K[rows], nucleus_K)
        if uses.top_k:
            kth_K = top_k_bound(z_KV, top_k_K[rows], uses.top_k)
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
