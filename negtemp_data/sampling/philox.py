"""Counter-based random numbers: the same (key, counter) gives the same number anywhere.

Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). A row's
seed is the key; the counter is (token id, position, rule index, stream), so a draw depends on
nothing else: not on the batch, its order, the device or what was drawn before.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


class Stream(IntEnum):
    """Last word of the counter: keeps the uses of one row's numbers apart."""

    DRAW = 0
    RATE = 1
    JITTER = 2


def philox(
    seed: Tensor, token_id: Tensor, position: Tensor, rule: Tensor, stream: Stream
) -> Tensor:
    """First output word of Philox4x32-10.

    Args:
        seed: int64, non-negative; low and high 32 bits are the key.
        token_id: int64, below 2³²; so are position and rule. All are broadcast together.
        position: See token_id.
        rule: See token_id.
        stream: Which of the row's streams.

    Returns:
        int64 tensor of uniform numbers in [0, 2³²).
    """
    arguments = (seed, token_id, position, rule)
    if seed.device.type == "cpu":
        # On a few numbers numpy takes a quarter of the time.
        counters = np.broadcast_arrays(*(argument.numpy() for argument in arguments))
        return torch.from_numpy(np.asarray(_first_word(counters, stream, np.stack, np.flipud)))
    word: Tensor = _first_word(
        torch.broadcast_tensors(*arguments), stream, torch.stack, torch.flipud
    )
    return word


def _first_word(
    counters: Sequence[Any], stream: Stream, stack: Callable[..., Any], flip: Callable[..., Any]
) -> Any:
    """The rounds, on int64 arrays of one shape; numpy's or torch's."""
    seed, c0, c1, c2 = counters
    # The two multiplications of a round, and the two words that each feeds, are one operation.
    key = stack([seed & WORD, seed >> 32])
    factor, other = stack([c0, c2]), stack([c1, c0 * 0 + int(stream)])
    multiplier = stack([c0 * 0 + MULTIPLIERS[0], c0 * 0 + MULTIPLIERS[1]])
    weyl = stack([c0 * 0 + WEYL[0], c0 * 0 + WEYL[1]])
    for _ in range(ROUNDS):
        # The product wraps as int64; its bits are right, so the shift needs masking only.
        product = factor * multiplier
        factor = flip((product >> 32) & WORD) ^ other ^ key
        other = flip(product & WORD)
        key = (key + weyl) & WORD
    return factor[0]


def gumbel(word: Tensor) -> Tensor:
    """Standard Gumbel numbers from uniform 32-bit words.

    g = −ln(−ln(1 − u)), u = (word + ½)·2⁻³². Taking u near 0 for the large values keeps float32's
    full resolution where it decides who wins.

    Args:
        word: int64 in [0, 2³²).

    Returns:
        float32, between −2.9 and 22.9.
    """
    u = ((word.to(torch.float64) + 0.5) * 2.0**-32).to(torch.float32)
    # Rounding to float32 may give 1, whose logarithm would be infinite.
    u = u.clamp(max=1.0 - 2.0**-24)
    return -torch.log(-torch.log1p(-u))
