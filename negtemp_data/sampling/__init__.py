"""The physics: schedules of injections at any temperature, and of bases, for a whole batch at once.

Needs torch, numpy and numba, nothing else of the project and no vLLM: hand `ScheduleSampler` a
batch of logits with the positions of its rows and it rewrites the rows as their schedules say.
"""

from negtemp_data.sampling.base import temperature_table
from negtemp_data.sampling.firing import fires
from negtemp_data.sampling.philox import gumbel, philox
from negtemp_data.sampling.records import (
    AnnealedTemperature,
    BernoulliTrigger,
    DynamicTemperature,
    EntropyTemperature,
    EntropyTrigger,
    Injection,
    MarginTrigger,
    PeriodicTrigger,
    Piece,
    PositionTrigger,
    Rule,
    Schedule,
    Siblings,
    Support,
    Temperature,
    TextTrigger,
    Trace,
    Trigger,
    Vocabulary,
)
from negtemp_data.sampling.sampler import ScheduleSampler
from negtemp_data.sampling.tables import ScheduleTables
from negtemp_data.sampling.vocabulary import TokenTable

__all__ = [
    "AnnealedTemperature",
    "BernoulliTrigger",
    "DynamicTemperature",
    "EntropyTemperature",
    "EntropyTrigger",
    "Injection",
    "MarginTrigger",
    "PeriodicTrigger",
    "Piece",
    "PositionTrigger",
    "Rule",
    "Schedule",
    "ScheduleSampler",
    "ScheduleTables",
    "Siblings",
    "Support",
    "Temperature",
    "TextTrigger",
    "TokenTable",
    "Trace",
    "Trigger",
    "Vocabulary",
    "fires",
    "gumbel",
    "philox",
    "temperature_table",
]
