"""The columns of shared matrices as constants of Triton, which takes them by name alone.

What they are says `negtemp_data.sampling.columns`. A C is the number of a matrix's columns.
"""

import triton.language as tl

from negtemp_data.sampling.columns import (
    OutcomeNumber,
    OutcomeValue,
    RowNumber,
    RuleNumber,
    RuleValue,
    StateNumber,
)

ROW_C = tl.constexpr(len(RowNumber))
SEED = tl.constexpr(int(RowNumber.SEED))
REQUEST = tl.constexpr(int(RowNumber.REQUEST))
SIBLINGS_SEED = tl.constexpr(int(RowNumber.SIBLINGS_SEED))
SIBLING = tl.constexpr(int(RowNumber.SIBLING))

NUMBER_C = tl.constexpr(len(RuleNumber))
START = tl.constexpr(int(RuleNumber.START))
STOP = tl.constexpr(int(RuleNumber.STOP))
EVERY = tl.constexpr(int(RuleNumber.EVERY))
JITTER = tl.constexpr(int(RuleNumber.JITTER))
RATE = tl.constexpr(int(RuleNumber.RATE))
BURST = tl.constexpr(int(RuleNumber.BURST))
MAX_INJECTIONS = tl.constexpr(int(RuleNumber.MAX_INJECTIONS))
COOLDOWN = tl.constexpr(int(RuleNumber.COOLDOWN))
DEFER = tl.constexpr(int(RuleNumber.DEFER))
VOCABULARY = tl.constexpr(int(RuleNumber.VOCABULARY))
GUARD = tl.constexpr(int(RuleNumber.GUARD))
IS_DISTINCT = tl.constexpr(int(RuleNumber.IS_DISTINCT))

VALUE_C = tl.constexpr(len(RuleValue))
ENTROPY_ABOVE = tl.constexpr(int(RuleValue.ENTROPY_ABOVE))
ENTROPY_BELOW = tl.constexpr(int(RuleValue.ENTROPY_BELOW))
MARGIN_BELOW = tl.constexpr(int(RuleValue.MARGIN_BELOW))
TEMPERATURE = tl.constexpr(int(RuleValue.TEMPERATURE))
MIN_P = tl.constexpr(int(RuleValue.MIN_P))
TOP_N_SIGMA = tl.constexpr(int(RuleValue.TOP_N_SIGMA))
EPSILON = tl.constexpr(int(RuleValue.EPSILON))
XTC = tl.constexpr(int(RuleValue.XTC))

STATE_C = tl.constexpr(len(StateNumber))
OWED = tl.constexpr(int(StateNumber.OWED))
NOMINAL = tl.constexpr(int(StateNumber.NOMINAL))
LAST = tl.constexpr(int(StateNumber.LAST))
N_INJECTED = tl.constexpr(int(StateNumber.N_INJECTED))
N_DEFERRED = tl.constexpr(int(StateNumber.N_DEFERRED))
TEXT = tl.constexpr(int(StateNumber.TEXT))

OUT_C = tl.constexpr(len(OutcomeNumber))
OUT_SLOT = tl.constexpr(int(OutcomeNumber.SLOT))
OUT_REQUEST = tl.constexpr(int(OutcomeNumber.REQUEST))
OUT_POSITION = tl.constexpr(int(OutcomeNumber.POSITION))
OUT_IS_INJECTED = tl.constexpr(int(OutcomeNumber.IS_INJECTED))
OUT_IS_AGAIN = tl.constexpr(int(OutcomeNumber.IS_AGAIN))
OUT_RULE = tl.constexpr(int(OutcomeNumber.RULE))
OUT_TOKEN_ID = tl.constexpr(int(OutcomeNumber.TOKEN_ID))
OUT_DISPLACED_ID = tl.constexpr(int(OutcomeNumber.DISPLACED_ID))
OUT_SUPPORT_SIZE = tl.constexpr(int(OutcomeNumber.SUPPORT_SIZE))
OUT_RANK = tl.constexpr(int(OutcomeNumber.RANK))

OUT_VALUE_C = tl.constexpr(len(OutcomeValue))
OUT_TEMPERATURE = tl.constexpr(int(OutcomeValue.TEMPERATURE))
OUT_LOGPROB = tl.constexpr(int(OutcomeValue.LOGPROB))
OUT_ENTROPY = tl.constexpr(int(OutcomeValue.ENTROPY))
