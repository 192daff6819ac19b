"""The physics: injections at any temperature, inside a support, for a whole batch at once.

Needs torch and numpy, nothing else of the project and no vLLM: hand `InjectionSampler` a batch of
logits with the positions of its rows and it rewrites the rows whose schedule injects.
"""

from negtemp_data.sampling.philox import gumbel, philox
from negtemp_data.sampling.records import (
    BernoulliTrigger,
    Injection,
    PeriodicTrigger,
    Rule,
    Schedule,
    Support,
    Trace,
    Vocabulary,
)
from negtemp_data.sampling.sampler import InjectionSampler
from negtemp_data.sampling.supports import Limits, threshold
from negtemp_data.sampling.timetable import fires
from negtemp_data.sampling.vocabulary import TokenTable

__all__ = [
    "BernoulliTrigger",
    "Injection",
    "InjectionSampler",
    "Limits",
    "PeriodicTrigger",
    "Rule",
    "Schedule",
    "Support",
    "TokenTable",
    "Trace",
    "Vocabulary",
    "fires",
    "gumbel",
    "philox",
    "threshold",
]
