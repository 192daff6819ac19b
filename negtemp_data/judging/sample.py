"""What checks and judges see of a completion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """A completion and what it belongs to; arrays have one entry per generated token."""

    request: str
    """The prompt as text; a chat is one paragraph per message."""
    completion: str
    token_ids: Sequence[int]
    logprobs: NDArray[np.float32]
    """Raw log-probabilities (T = 1)."""
    injected: Sequence[int]
    """Positions of injected tokens."""
    source: str | None = None
    """The other columns of the prompt's input row, as a JSON object; None where there are none."""
    siblings: Sequence[str] = ()
    """Accepted completions of the same prompt that come before this one in the plan."""
    twin: str | None = None
    """The control's completion of the same prompt and sample index; None for the control itself."""
