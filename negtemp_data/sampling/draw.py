"""Looking at rows in a step: which rule is due in each, and what it injects.

A firing owes `burst` injections. The next one is due at its nominal position and may wait `defer`
steps beyond it for a second candidate; then the firing is over. A firing is ignored while a burst
is under way or cooling down, and replaces an injection that waits. The first rule that is due wins
the step; a firing of a rule behind it is lost.

The draw: S = support ∩ vocabulary, empty where the most likely token is guarded; with two
candidates or more, a = argmax over S of ((z − r)/T + g), r = min z on S for T < 0 and max for
T > 0, g standard Gumbel noise; ties go to the lowest id. Subtracting r keeps the exponents ≤ 0
whatever the sign of T, so nothing overflows; T = ±inf leaves the noise alone, which is the uniform
draw. A row that is the r-th of its siblings takes the r-th best candidate instead (Gumbel top-k,
1903.06059). The row then is 0 at a and −inf elsewhere.

Shapes: K rows looked at, M rules of the longest schedule, C columns.
"""

from typing import NamedTuple

from torch import Tensor


class StepRows(NamedTuple):
    """Rows that are looked at, each of another slot."""

    row_K: Tensor
    """int64 rows of the batch."""
    slot_K: Tensor
    """int64; rows of slot 0 are nobody's and stay as they are."""
    position_K: Tensor
    """int64 positions about to be sampled."""
    last_token_K: Tensor | None
    """int64 tokens at the positions before, anything at position 0; None: no rule reads text."""
    fires_KM: Tensor | None
    """bool, the rules that fire by seed and position; None: to be worked out."""
    reads_logits: bool
    """Whether a rule of these rows may fire because of the logits."""


class Outcome(NamedTuple):
    """What became of the rows."""

    number_KC: Tensor
    """int64, columns `OutcomeNumber`."""
    value_KC: Tensor
    """float32, columns `OutcomeValue`."""
    is_waiting_K: Tensor | None
    """bool: some rule still owes an injection; None where the host would have to wait for it."""
