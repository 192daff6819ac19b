"""Schedules as the job file writes them: a base distribution and rules that inject tokens.

`negtemp_data.engine.compile` turns them into the records of `negtemp_data.sampling`.
"""

from typing import Literal

from pydantic import Field

from negtemp_data.jobspec.base import Base, ConstantBaseConfig
from negtemp_data.jobspec.candidates import Support, SupportConfig, TokenClass, VocabularyConfig
from negtemp_data.jobspec.strict import MANY_TOKENS, SignedTemperature, StrictModel
from negtemp_data.jobspec.when import When


class RuleConfig(StrictModel):
    """One injection rule: when it fires, and what it then draws from which candidates."""

    when: When
    """Where the rule fires: one of every, rate, at, entropy, margin, after."""
    temperature: SignedTemperature
    """T of p ∝ exp(z/T) on the support; negative as a rule, any value but nan is allowed."""
    support: Support = SupportConfig(min_p=0.05)
    """Candidate set. `all` is the unrestricted draw, which gives nonsense."""
    vocabulary: VocabularyConfig = VocabularyConfig(exclude=["special"])
    """Token classes that may be drawn; `{}` lifts the default exclusion of special tokens."""
    guard: list[TokenClass] = []
    """Token classes that must not be displaced: where the most likely token is of one of them,
    nothing is injected."""
    defer: int = Field(default=4, ge=0, lt=MANY_TOKENS)
    """Steps that an injection may wait where fewer than two candidates exist; 0: skip it."""
    draw: Literal["independent", "distinct"] = "independent"
    """`distinct`: the samples of a prompt share the noise, and each takes another one of the best
    candidates, so that they differ wherever they have come the same way."""


class ScheduleConfig(StrictModel):
    """A way of sampling one completion."""

    base: Base = ConstantBaseConfig()
    """Sampling of all steps that are not injections: vLLM's parameters and more, or `track`,
    `anneal`, `adaptive`."""
    inject: list[RuleConfig] = []
    """Rules in order of precedence: at each step the first that fires wins."""
