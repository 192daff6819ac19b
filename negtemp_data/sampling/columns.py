"""Columns of the matrices that the kernels share, so that a launch takes few arguments."""

from enum import IntEnum

NO_BASE = -1
"""Stands for the base of a schedule that has none."""


class RuleNumber(IntEnum):
    """Of each registered rule, int64."""

    START = 0
    STOP = 1
    EVERY = 2
    """0: not periodic."""
    JITTER = 3
    RATE = 4
    """Fires where a 32-bit word is below it."""
    READS_STATS = 5
    """Whether the rule looks at entropy or margin."""
    TEXT_STATE = 6
    """State in which the rule's automaton starts; −1: it reads no text."""
    BURST = 7
    MAX_INJECTIONS = 8
    COOLDOWN = 9
    DEFER = 10
    VOCABULARY = 11
    """Mask of the tokens that may be drawn."""
    GUARD = 12
    """Mask of the tokens that must not be displaced."""
    IS_DISTINCT = 13
    TOP_K = 14
    """0: no such limit."""


class RuleValue(IntEnum):
    """Of each registered rule, float64; all but `TOP_P` are float32's numbers."""

    TEMPERATURE = 0
    ENTROPY_ABOVE = 1
    ENTROPY_BELOW = 2
    MARGIN_BELOW = 3
    MIN_P = 4
    TOP_P = 5
    TOP_N_SIGMA = 6
    EPSILON = 7
    XTC = 8


class RowNumber(IntEnum):
    """Of each slot, int64."""

    SEED = 0
    SIBLINGS_SEED = 1
    SIBLING = 2
    REQUEST = 3
    """Number of the request that has the slot."""
    BASE = 4
    """Registered base, or `NO_BASE`."""


class StateNumber(IntEnum):
    """What a rule remembers in a row, int64."""

    OWED = 0
    """Injections that the present firing still has to make."""
    NOMINAL = 1
    """Position of the next of them, unless it has to wait."""
    LAST = 2
    """Position of the rule's last injection."""
    N_INJECTED = 3
    N_DEFERRED = 4
    """Injections that had to wait."""
    TEXT = 5
    """State of the rule's text automaton; −1 where it has none."""


class OutcomeNumber(IntEnum):
    """What became of a row, int64; those behind `IS_AGAIN` mean something where it injects."""

    SLOT = 0
    REQUEST = 1
    POSITION = 2
    IS_INJECTED = 3
    IS_AGAIN = 4
    """The position was computed before: what was done there or later no longer counts."""
    RULE = 5
    TOKEN_ID = 6
    DISPLACED_ID = 7
    SUPPORT_SIZE = 8
    RANK = 9


class OutcomeValue(IntEnum):
    """What became of a row that injects, float32."""

    TEMPERATURE = 0
    LOGPROB = 1
    ENTROPY = 2
