"""Random numbers of the sampling specification, in Python integers and floats.

Source: Philox4x32-10 and its known answers: Salmon et al., SC 2011, and Random123's kat_vectors.
"""

import math
from collections.abc import Sequence

import numpy as np

WORD = 2**32
DRAW, RATE, JITTER = 0, 1, 2


def philox_words(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """The four output words of Philox4x32-10."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, WORD)
        high1, low1 = divmod(0xCD9E8D57 * c2, WORD)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return c0, c1, c2, c3


def random_word(seed: int, token_id: int, position: int, rule: int, stream: int) -> int:
    """First word for key = seed and counter = (token id, position, rule, stream)."""
    return philox_words((token_id, position, rule, stream), (seed % WORD, seed // WORD))[0]


def gumbel_number(word: int) -> float:
    """-ln(-ln(1 - u)), u = (word + ½)/2³² as the nearest float32, but at most 1 - 2⁻²⁴."""
    u = min(float(np.float32((word + 0.5) / WORD)), 1 - 2**-24)
    return -math.log(-math.log1p(-u))
