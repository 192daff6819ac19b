"""Where rules fire, as far as seed and position decide it.

Shapes: K rows, M rules of a schedule; `rule` holds registered rules, `index` their place in the
schedule, which is part of the random counter. All broadcast together.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negtemp_data.sampling.philox import Stream, philox
from negtemp_data.sampling.records import (
    BernoulliTrigger,
    PeriodicTrigger,
    PositionTrigger,
    Rule,
)

Positions = NDArray[np.int64]


def is_in_range(position: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """bool: start ≤ position < stop."""
    return (position >= start) & (position < stop)


def periodic_hits(
    seed: Tensor, index: Tensor, position: Tensor, *, start: Tensor, every: Tensor, jitter: Tensor
) -> Tensor:
    """bool: whether a periodic rule fires at `position`, from `start` on; `every` ≥ 1."""
    begin = position - (position - start) % every
    word = philox(
        seed=seed,
        token_id=torch.zeros_like(begin),
        position=begin.clamp(min=0),
        rule=index,
        stream=Stream.JITTER,
    )
    return position == begin + (word * (jitter + 1) >> 32)


def bernoulli_hits(seed: Tensor, index: Tensor, position: Tensor, threshold: Tensor) -> Tensor:
    """bool: whether the 32-bit word of this position is below `threshold`."""
    word = philox(
        seed=seed,
        token_id=torch.zeros_like(position),
        position=position.clamp(min=0),
        rule=index,
        stream=Stream.RATE,
    )
    return word < threshold


def fires(seed: int, rule: Rule, index: int, positions: Positions) -> NDArray[np.bool_]:
    """Whether rule number `index` of a schedule fires at each of `positions`.

    Raises:
        ValueError: The rule reads the logits or the text, so that positions do not tell.
    """
    position = torch.from_numpy(positions)
    key, number = torch.tensor(seed), torch.tensor(index)
    match rule.trigger:
        case PeriodicTrigger(every, jitter):
            hit = periodic_hits(
                key,
                number,
                position,
                start=torch.tensor(rule.start),
                every=torch.tensor(every),
                jitter=torch.tensor(jitter),
            )
        case BernoulliTrigger(rate):
            hit = bernoulli_hits(key, number, position, torch.tensor(round(rate * 2**32)))
        case PositionTrigger(listed):
            hit = torch.isin(position, torch.tensor(listed, dtype=torch.int64))
        case _:
            raise ValueError(f"{rule.trigger} does not depend on positions alone")
    in_range = positions >= rule.start
    if rule.stop is not None:
        in_range &= positions < rule.stop
    return np.asarray(in_range & hit.numpy(), dtype=np.bool_)
