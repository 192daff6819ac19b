"""Bases that the engine itself can't sample: T of any size or moving, on a support or a vocabulary.

What a base makes of a row is told in `negtemp_data.sampling.rescale`.

Shapes: R batch rows, B rows with a base, V vocabulary, P registered pieces, D registered bases, E
pieces of the longest base, N vocabulary masks, L values of all temperature tables together.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from negtemp_data.sampling.backend import Backend
from negtemp_data.sampling.masks import MaskTable
from negtemp_data.sampling.records import (
    AnnealedTemperature,
    DynamicTemperature,
    EntropyTemperature,
    Piece,
    Temperature,
)
from negtemp_data.sampling.rescale import RescaleRequest
from negtemp_data.sampling.rules import NO_LIMIT, float32_temperature, limit_columns, uses_of
from negtemp_data.sampling.stats import RowStats
from negtemp_data.sampling.supports import Limits

_FIXED, _EDT, _DYNATEMP = range(3)

_COPIED_LOGITS = 1 << 23
"""Logits that are copied at a time: 32 MiB."""


def temperature_table(temperature: Temperature) -> list[float]:
    """T by position, its last value for all later ones; [nan] where it depends on the logits."""
    match temperature:
        case AnnealedTemperature(first, last, over, shape):
            t = np.arange(over + 1) / over
            with np.errstate(divide="ignore", invalid="ignore"):
                if shape == "linear":
                    values = 1 / ((1 - t) * (1 / first) + t * (1 / last))
                elif shape == "cosine":
                    values = last + (first - last) * (1 + np.cos(np.pi * t)) / 2
                else:
                    values = first * (last / first) ** t
            # Written as given: 1/(1/T) may be a bit off.
            return [first, *values[1:-1].tolist(), last]
        case EntropyTemperature() | DynamicTemperature():
            return [math.nan]
        case _:
            return [temperature]


@dataclass(frozen=True)
class _PieceColumns:
    """One entry per registered piece."""

    kind_P: Tensor
    table_L: Tensor
    """float32, the temperature tables one behind the other."""
    begin_P: Tensor
    length_P: Tensor
    parameter_P3: Tensor
    """float32: of EDT t0, ln n, θ; of dynatemp low, high, exponent."""
    limits: Limits
    vocabulary_P: Tensor
    log_min_p_P: Tensor
    top_k_P: Tensor
    top_p_P: Tensor


class BaseTable:
    """The bases of all schedules seen so far."""

    def __init__(self, device: torch.device, masks: MaskTable) -> None:
        """Starts empty."""
        self._device = device
        self._masks = masks
        self._index: dict[tuple[Piece, ...], int] = {}
        self._pieces: list[Piece] = []
        self._mask_ids: list[int] = []

    def register(self, base: tuple[Piece, ...]) -> int:
        """Index of `base`.

        Raises:
            ValueError: A vocabulary leaves nothing to draw on this model, or a class is unknown.
        """
        if base not in self._index:
            mask_ids = [self._masks.register(piece.vocabulary) for piece in base]
            self._index[base] = len(self._index)
            self._pieces += base
            self._mask_ids += mask_ids
            self._build_columns()
        return self._index[base]

    def transform(
        self,
        backend: Backend,
        logits_RV: Tensor,
        row_B: Tensor,
        base_B: Tensor,
        position_B: Tensor,
    ) -> None:
        """Replaces rows of logits by what the engine is to sample from at T = 1, in place.

        Args:
            backend: That of the logits.
            logits_RV: float32.
            row_B: int64 rows, each once.
            base_B: int64 registered bases; −1 leaves a row as it is.
            position_B: int64 positions about to be sampled.
        """
        columns, known_B = self._columns, base_B.clamp(min=0)
        n_ended_B = (position_B[:, None] >= self._until_DE[known_B]).sum(dim=1)
        piece_B = self._first_D[known_B] + n_ended_B
        stats = backend.stats(logits_RV, row_B, has_deviation=self._uses.top_n_sigma)
        request = RescaleRequest(
            row_B=row_B,
            is_wanted_B=base_B >= 0,
            mask_NV=self._masks.mask_NV,
            vocabulary_B=columns.vocabulary_P[piece_B],
            limits=columns.limits.select(piece_B),
            uses=self._uses,
            temperature_B=self._temperature(piece_B, position_B, logits_RV, row_B, stats),
            log_min_p_B=columns.log_min_p_P[piece_B],
            top_k_B=columns.top_k_P[piece_B],
            largest_k=self._largest_k,
            top_p_B=columns.top_p_P[piece_B],
            any_top_p=self._any_top_p,
        )
        backend.rescale(logits_RV, stats, request)

    def _temperature(
        self,
        piece_B: Tensor,
        position_B: Tensor,
        logits_RV: Tensor,
        row_B: Tensor,
        stats: RowStats,
    ) -> Tensor:
        columns = self._columns
        step_B = torch.minimum(position_B, columns.length_P[piece_B] - 1)
        fixed_B = columns.table_L[columns.begin_P[piece_B] + step_B]
        if not self._is_adaptive:
            return fixed_B
        a_B, b_B, c_B = columns.parameter_P3[piece_B].unbind(dim=1)
        kind_B, entropy_B = columns.kind_P[piece_B], stats.entropy_K
        adaptive_B = a_B * (b_B * c_B / entropy_B).exp()
        if self._any_dynamic:
            most_B = _n_possible(logits_RV, row_B).log()
            share_B = (entropy_B / most_B).nan_to_num(0, 0, 0).clamp(0, 1)
            dynamic_B = a_B + (b_B - a_B) * share_B**c_B
            adaptive_B = torch.where(kind_B == _EDT, adaptive_B, dynamic_B)
        # A row that holds a nan has no entropy; it is sampled as one without doubt.
        return torch.where(kind_B == _FIXED, fixed_B, adaptive_B.nan_to_num(0, torch.inf))

    def _build_columns(self) -> None:
        pieces = self._pieces
        tables = [
            [float32_temperature(value) for value in temperature_table(piece.temperature)]
            for piece in pieces
        ]
        lengths = [len(table) for table in tables]
        kinds, parameters = zip(*(_parameters(piece.temperature) for piece in pieces), strict=True)

        def column(values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)

        self._columns = _PieceColumns(
            kind_P=column(kinds),
            table_L=column([value for table in tables for value in table], torch.float32),
            begin_P=column(np.cumsum([0, *lengths[:-1]]).tolist()),
            length_P=column(lengths),
            parameter_P3=column(parameters, torch.float32),
            limits=limit_columns([piece.support for piece in pieces], self._device),
            vocabulary_P=column(self._mask_ids),
            log_min_p_P=column([piece.min_p for piece in pieces], torch.float32).log(),
            top_k_P=column([piece.top_k for piece in pieces]),
            top_p_P=column([piece.top_p for piece in pieces], torch.float64),
        )
        self._uses = uses_of([piece.support for piece in pieces])
        self._is_adaptive = any(kind != _FIXED for kind in kinds)
        self._any_dynamic = any(kind == _DYNATEMP for kind in kinds)
        self._largest_k = max(piece.top_k for piece in pieces)
        self._any_top_p = any(piece.top_p < 1 for piece in pieces)
        bases = list(self._index)
        longest = max(map(len, bases))
        self._until_DE = column(
            [
                [NO_LIMIT if piece.until is None else piece.until for piece in base]
                + [NO_LIMIT] * (longest - len(base))
                for base in bases
            ]
        )
        self._first_D = column(np.cumsum([0, *map(len, bases[:-1])]).tolist())


def _n_possible(logits_RV: Tensor, row_B: Tensor) -> Tensor:
    """int64 [B]: the finite logits of each row."""
    size = max(1, _COPIED_LOGITS // logits_RV.shape[1])
    return torch.cat([logits_RV[rows].isfinite().sum(dim=1) for rows in row_B.split(size)])


def _parameters(temperature: Temperature) -> tuple[int, tuple[float, float, float]]:
    match temperature:
        case EntropyTemperature(t0, n, theta):
            return _EDT, (t0, math.log(n), theta)
        case DynamicTemperature(low, high, exponent):
            return _DYNATEMP, (low, high, exponent)
        case _:
            return _FIXED, (0.0, 0.0, 0.0)
