"""Where rules fire, as far as seed and position decide it."""

import numpy as np
import torch
from numpy.typing import NDArray

from negtemp_data.sampling.philox import Stream, philox
from negtemp_data.sampling.records import (
    BernoulliTrigger,
    PeriodicTrigger,
    PositionTrigger,
    Rule,
)

Positions = NDArray[np.int64]


def fires(seed: int, rule: Rule, index: int, positions: Positions) -> NDArray[np.bool_]:
    """Whether rule number `index` of a schedule fires at each of `positions`.

    Raises:
        ValueError: The rule reads the logits or the text, so that positions do not tell.
    """
    match rule.trigger:
        case PeriodicTrigger(every, jitter):
            begins = positions - (positions - rule.start) % every
            words = _words(seed, begins, index, Stream.JITTER)
            hit = positions == begins + (words * (jitter + 1) >> 32)
        case BernoulliTrigger(rate):
            hit = _words(seed, positions, index, Stream.RATE) < round(rate * 2**32)
        case PositionTrigger(listed):
            hit = np.isin(positions, listed)
        case _:
            raise ValueError(f"{rule.trigger} does not depend on positions alone")
    in_range = positions >= rule.start
    if rule.stop is not None:
        in_range &= positions < rule.stop
    return np.asarray(in_range & hit, dtype=np.bool_)


def _words(seed: int, positions: Positions, index: int, stream: Stream) -> Positions:
    """The 32-bit words of these positions; those before the first mean nothing."""
    counter = torch.tensor(0), torch.from_numpy(positions.clip(min=0)), torch.tensor(index)
    words: Positions = philox(torch.tensor(seed), *counter, stream).numpy()
    return words
