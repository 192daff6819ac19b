# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""The random words and the Gumbel noise of a GPU, the same that the host has."""

import triton
import triton.language as tl

from negtemp_data.sampling.philox import MULTIPLIERS, ROUNDS, WEYL, Stream

_MULTIPLIER_0 = tl.constexpr(MULTIPLIERS[0])
_MULTIPLIER_1 = tl.constexpr(MULTIPLIERS[1])
_WEYL_0 = tl.constexpr(WEYL[0])
_WEYL_1 = tl.constexpr(WEYL[1])
_ROUNDS = tl.constexpr(ROUNDS)
_DRAW = tl.constexpr(int(Stream.DRAW))
_HALF_UNIT = tl.constexpr(2.0**-33)
_LARGEST_U = tl.constexpr(1.0 - 2.0**-24)


@triton.jit
def philox(seed, token_id, position, rule, STREAM: tl.constexpr = _DRAW):
    """uint32 words, the same as `negtemp_data.sampling.philox.philox` gives."""
    key_0 = seed.to(tl.uint32)
    key_1 = (seed >> 32).to(tl.uint32)
    c0 = token_id.to(tl.uint32)
    c1 = position.to(tl.uint32)
    c2 = rule.to(tl.uint32)
    c3 = STREAM
    for _ in tl.static_range(_ROUNDS):
        high_0 = tl.umulhi(c0, _MULTIPLIER_0)
        high_1 = tl.umulhi(c2, _MULTIPLIER_1)
        low_0 = tl.mul(c0, _MULTIPLIER_0, sanitize_overflow=False)
        low_1 = tl.mul(c2, _MULTIPLIER_1, sanitize_overflow=False)
        c0 = high_1 ^ c1 ^ key_0
        c1 = low_1
        c2 = high_0 ^ c3 ^ key_1
        c3 = low_0
        key_0 = tl.add(key_0, _WEYL_0, sanitize_overflow=False)
        key_1 = tl.add(key_1, _WEYL_1, sanitize_overflow=False)
    return c0


@triton.jit
def gumbel(word):
    """float32 numbers as `negtemp_data.sampling.philox.gumbel` gives, within a few roundings."""
    # 2·word + 1 is exact, so this rounds as (word + ½)·2⁻³² in float64 and then to float32 does.
    u = tl.minimum((word.to(tl.int64) * 2 + 1).to(tl.float32) * _HALF_UNIT, _LARGEST_U)
    # ln(1 − u) with the rounding of 1 − u undone, since there is no log1p here.
    # Source: Goldberg, "What every computer scientist should know…" (1991), theorem 4.
    left = 1.0 - u
    is_rounded_away = left == 1.0
    ratio = tl.div_rn(u, tl.where(is_rounded_away, 1.0, 1.0 - left))
    log = tl.where(is_rounded_away, -u, tl.log(left) * ratio)
    return -tl.log(-log)
