"""The token-level unlikelihood loss, and batches for it. Knows torch alone, no trainer.

Source: Welleck et al., arXiv 1908.04319, equation 4, whose candidates are the injected tokens.

Shapes: B rows, T positions, V vocabulary, C most negative tokens at a position, N negative tokens
in the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from negtemp_data.export.sft_tokens import IGNORED


def unlikelihood_loss(
    logits_BTV: Tensor, labels_BT: Tensor, negative_ids_BTC: Tensor, alpha: float = 1.0
) -> Tensor:
    """Mean over the positions that have a term of −log p(x_t) − α Σ_c log(1 − p(c)).

    Args:
        logits_BTV: The model's; those of position t speak of token t + 1.
        labels_BT: x_t, not shifted; `IGNORED`: no likelihood term here.
        negative_ids_BTC: Tokens that should not stand at a position, not shifted, filled up with
            `IGNORED`.
        alpha: Weight of the unlikelihood.

    Returns:
        A scalar in at least float32; 0 where no position has a term. Other positions get no
        gradient.
    """
    logits, labels, negatives = logits_BTV[:, :-1], labels_BT[:, 1:], negative_ids_BTC[:, 1:]
    is_labelled = labels != IGNORED
    is_negative = negatives != IGNORED
    likelihood = cross_entropy(_widen(logits[is_labelled]), labels[is_labelled], reduction="sum")
    rows_N, positions_N, _ = is_negative.nonzero(as_tuple=True)
    unlikelihood = -_log_complement(
        _widen(logits[rows_N, positions_N]), negatives[is_negative]
    ).sum()
    n_terms = (is_labelled | is_negative.any(dim=-1)).sum().clamp(min=1)
    return (likelihood + alpha * unlikelihood) / n_terms


def _log_complement(logits_NV: Tensor, ids_N: Tensor) -> Tensor:
    """log(1 − p(id)), exact up to p = 1: the mass of all other tokens is summed by itself.

    log1p(−p) of a p that rounds to 1 would be −∞, and a clamp would take its gradient away where
    it is needed most.
    """
    others_NV = logits_NV.scatter(1, ids_N[:, None], float("-inf"))
    return torch.logsumexp(others_NV, dim=1) - torch.logsumexp(logits_NV, dim=1)


def _widen(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True)
class NegativesCollator:
    """Rows of the `unlikelihood` format as one batch, padded on the right."""

    pad_token_id: int
    """Fills up input_ids, where attention_mask is 0."""
    max_length: int | None = None
    """Tokens after this many are left out; None: none are."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels (all B × T) and negative_ids (B × T × C)."""
        end = self.max_length
        n_positions = max(len(row["input_ids"][:end]) for row in rows)
        n_negatives = max(
            (len(ids) for row in rows for ids in row["negative_ids"][:end]), default=0
        )
        shape = (len(rows), n_positions)
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        # At least one, so that a batch without negatives has the same dimensions.
        negative_ids = torch.full((*shape, max(1, n_negatives)), IGNORED)
        for i, row in enumerate(rows):
            n = len(row["input_ids"][:end])
            input_ids[i, :n] = torch.as_tensor(row["input_ids"][:n])
            attention_mask[i, :n] = 1
            labels[i, :n] = torch.as_tensor(row["labels"][:n])
            for position, ids in enumerate(row["negative_ids"][:n]):
                if ids:  # few tokens have any
                    negative_ids[i, position, : len(ids)] = torch.as_tensor(ids, dtype=torch.long)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "negative_ids": negative_ids,
        }
