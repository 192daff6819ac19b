"""The unlikelihood loss against a reference in float64 that follows the paper's formula."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negtemp_data.export.unlikelihood import NegativesCollator, unlikelihood_loss


def reference_loss(logits: Any, labels: Any, negatives: Any, alpha: float) -> torch.Tensor:
    """Mean over positions with a term of −log p(x_t) − α Σ_c log(1 − p(c)), term by term."""
    terms = []
    for row in range(labels.shape[0]):
        for position in range(1, labels.shape[1]):
            p = torch.softmax(logits[row, position - 1].double(), dim=0)
            label = int(labels[row, position])
            chosen = [int(c) for c in negatives[row, position] if c != -100]
            if label != -100 or chosen:
                term = torch.zeros((), dtype=torch.float64)
                if label != -100:
                    term = term - p[label].log()
                for c in chosen:
                    term = term - alpha * (1 - p[c]).log()
                terms.append(term)
    return torch.stack(terms).mean() if terms else logits.double().sum() * 0


def make_batch(seed: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Any:
    """Logits, labels and up to two negatives at every third position or so."""
    generator = torch.Generator().manual_seed(seed)
    rows, positions, vocabulary = shape
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(vocabulary, (rows, positions), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.4] = -100
    negatives = torch.randint(vocabulary, (rows, positions, 2), generator=generator)
    negatives[torch.rand(negatives.shape, generator=generator) < 0.6] = -100
    return logits.to(dtype).requires_grad_(), labels, negatives


@settings(max_examples=40, derandomize=True)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(2, 9)),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.sampled_from([(torch.float64, 1e-12), (torch.float32, 2e-5)]),
)
def test_loss_and_gradient_are_those_of_the_formula(
    seed: int, shape: tuple[int, int, int], alpha: float, precision: tuple[torch.dtype, float]
) -> None:
    dtype, tolerance = precision
    logits, labels, negatives = make_batch(seed, shape, dtype)
    twin = logits.detach().double().requires_grad_()
    loss = unlikelihood_loss(logits, labels, negatives, alpha)
    expected = reference_loss(twin, labels, negatives, alpha)
    loss.backward()
    expected.backward()
    assert torch.allclose(loss.double(), expected, rtol=tolerance, atol=tolerance)
    assert logits.grad is not None and twin.grad is not None
    assert torch.allclose(logits.grad.double(), twin.grad, rtol=tolerance, atol=tolerance)


def test_gradients_pass_a_numerical_check() -> None:
    logits, labels, negatives = make_batch(3, (2, 4, 5), torch.float64)
    assert torch.autograd.gradcheck(lambda z: unlikelihood_loss(z, labels, negatives), logits)


def test_positions_without_a_term_get_no_gradient() -> None:
    logits, labels, negatives = make_batch(1, (2, 8, 7), torch.float32)
    unlikelihood_loss(logits, labels, negatives).backward()
    has_term = (labels[:, 1:] != -100) | (negatives[:, 1:] != -100).any(-1)
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1)
    assert torch.equal(touched[:, :-1] > 0, has_term)
    assert 0 < has_term.sum() < has_term.numel()
    assert torch.equal(touched[:, -1], torch.zeros(2))


@pytest.mark.parametrize("gap", [20.0, 60.0, 500.0])
def test_a_negative_token_that_is_certain_has_a_finite_loss_and_the_full_gradient(
    gap: float,
) -> None:
    # In float32 its probability is 1 exactly: log(1 − p) by the formula would be −∞.
    logits = torch.tensor([[[gap, 0.0, 0.0], [0.0, 0.0, 0.0]]], requires_grad=True)
    labels, negatives = torch.full((1, 2), -100), torch.tensor([[[-100], [0]]])
    loss = unlikelihood_loss(logits, labels, negatives)
    loss.backward()
    assert loss.item() == pytest.approx(gap - math.log(2), rel=1e-6)
    assert logits.grad is not None
    assert logits.grad[0, 0, 0].item() == pytest.approx(1.0)


def test_half_precision_is_widened() -> None:
    logits, labels, negatives = make_batch(2, (2, 5, 9), torch.bfloat16)
    loss = unlikelihood_loss(logits, labels, negatives)
    assert loss.dtype == torch.float32
    expected = reference_loss(logits.detach(), labels, negatives, 1.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_without_any_term_has_loss_zero_and_no_gradient() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = unlikelihood_loss(logits, torch.full((2, 3), -100), torch.full((2, 3, 1), -100))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_a_batch_is_padded_and_cut() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "negative_ids": [[], [], []]},
        {
            "input_ids": [5, 6, 8, 9, 1],
            "labels": [-100] * 5,
            "negative_ids": [[], [], [8, 3], [], [1]],
        },
    ]
    batch = NegativesCollator(pad_token_id=2, max_length=4)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2], [5, 6, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100], [-100] * 4]
    assert batch["negative_ids"].shape == (2, 4, 2)
    assert batch["negative_ids"][1, 2].tolist() == [8, 3]
    assert (batch["negative_ids"] != -100).sum() == 2
    alone = NegativesCollator(pad_token_id=2)(rows[:1])
    assert alone["negative_ids"].tolist() == [[[-100], [-100], [-100]]]
