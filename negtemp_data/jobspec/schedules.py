"""Schedules as the job file writes them: a base distribution and rules that inject tokens.

`negtemp_data.engine.compile` turns them into the records of `negtemp_data.sampling`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from negtemp_data.jobspec.base import Fraction, SignedTemperature, StrictModel

TokenClass = Literal["special", "word_start"]
"""`special`: the tokenizer's control tokens (end of text, chat markers). `word_start`: tokens that
begin a new word, that is whose text starts with a space."""


class BaseConfig(StrictModel):
    """How every step that is not an injection samples: vLLM's own parameters."""

    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    """Softmax temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    """Keep the smallest set of tokens with this much probability; 1 keeps all."""
    top_k: int = Field(default=0, ge=0)
    """Keep this many most likely tokens; 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Keep tokens at least this likely, relative to the most likely one; 0 keeps all."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    """Subtracted from the logit of every token that the completion already holds."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    """Subtracted once per occurrence in the completion."""
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Divides positive, multiplies negative logits of tokens seen in prompt or completion."""


class WhenConfig(StrictModel):
    """What every kind of `when` takes."""

    start: int = Field(default=0, ge=0)
    """First position (generated tokens, counted from 0) at which the rule may fire."""
    stop: int | None = Field(default=None, ge=1)
    """The rule does not fire at this position or later; null: never stops."""
    cooldown: int = Field(default=0, ge=0)
    """Tokens to leave alone after a burst."""
    burst: int = Field(default=1, ge=1)
    """Consecutive injections per firing."""
    max: int | None = Field(default=None, ge=1)
    """Most tokens that the rule injects into one sample; null: no limit."""

    @model_validator(mode="after")
    def _stop_after_start(self) -> Self:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop ({self.stop}) must be greater than start ({self.start})")
        return self


class EveryConfig(WhenConfig):
    """Fires at start + k·every + U{0…jitter}."""

    every: int = Field(ge=1)
    """Tokens from one firing to the next."""
    jitter: int = Field(default=0, ge=0)
    """Each firing is late by a number of tokens drawn from 0 to jitter; must be less than every."""

    @model_validator(mode="after")
    def _jitter_below_every(self) -> Self:
        if self.jitter >= self.every:
            raise ValueError(f"jitter ({self.jitter}) must be less than every ({self.every})")
        return self


class RateConfig(WhenConfig):
    """Fires at each position with a fixed probability."""

    rate: float = Field(gt=0, le=1, allow_inf_nan=False)
    """Probability of firing, per token."""


def _tag_of_when(value: Any) -> str | None:
    kinds = [kind for kind in ("every", "rate") if _has(value, kind)]
    return f"<{kinds[0]}>" if len(kinds) == 1 else None


def _has(value: Any, key: str) -> bool:
    return key in value if isinstance(value, dict) else hasattr(value, key)


When = Annotated[
    Annotated[EveryConfig, Tag("<every>")] | Annotated[RateConfig, Tag("<rate>")],
    Discriminator(
        _tag_of_when,
        custom_error_type="when_kind",
        custom_error_message="needs exactly one of the keys 'every' and 'rate'",
    ),
]


class SupportConfig(StrictModel):
    """The candidate set of an injection: the tokens that pass every limit given here.

    All limits look at softmax(z) at T = 1 over the whole vocabulary, are inclusive, and keep ties.
    """

    min_p: Fraction | None = None
    """Tokens at least this likely, relative to the most likely one (2407.01082)."""
    top_p: Fraction | None = None
    """The smallest set of most likely tokens that holds this much probability."""
    top_k: int | None = Field(default=None, ge=2)
    """This many most likely tokens. One would leave nothing to choose from."""
    top_n_sigma: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Tokens whose logit is within this many standard deviations of the largest (2411.07641)."""
    epsilon: float | None = Field(default=None, gt=0, le=0.5, allow_inf_nan=False)
    """Tokens with at least this probability. Above 0.5 there is never a second one."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if all(limit is None for limit in self.model_dump().values()):
            raise ValueError("needs at least one limit; write `support: all` for no limit")
        return self


def _tag_of_support(value: Any) -> str | None:
    if value == "all":
        return "<all>"
    return "<limits>" if isinstance(value, dict | SupportConfig) else None


Support = Annotated[
    Annotated[SupportConfig, Tag("<limits>")] | Annotated[Literal["all"], Tag("<all>")],
    Discriminator(
        _tag_of_support,
        custom_error_type="support_kind",
        custom_error_message="must be `all` or limits such as {min_p: 0.05}",
    ),
]


class VocabularyConfig(StrictModel):
    """Which kinds of token an injection may draw."""

    include: list[TokenClass] = []
    """Only tokens of one of these classes; empty: all tokens."""
    exclude: list[TokenClass] = []
    """No token of these classes."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.include and set(self.include) <= set(self.exclude):
            raise ValueError("every included class is excluded too: no token is left")
        return self


class RuleConfig(StrictModel):
    """One injection rule: when it fires, and what it then draws from which candidates."""

    when: When
    """Positions at which the rule fires: `{every: …}` or `{rate: …}`."""
    temperature: SignedTemperature
    """T of p ∝ exp(z/T) on the support; negative as a rule, any value but nan is allowed."""
    support: Support = SupportConfig(min_p=0.05)
    """Candidate set. `all` is the unrestricted draw, which gives nonsense."""
    vocabulary: VocabularyConfig = VocabularyConfig(exclude=["special"])
    """Token classes that may be drawn; `{}` lifts the default exclusion of special tokens."""
    defer: int = Field(default=4, ge=0)
    """Steps that an injection may wait where fewer than two candidates exist; 0: skip it."""


class ScheduleConfig(StrictModel):
    """A way of sampling one completion."""

    base: BaseConfig = BaseConfig()
    """Sampling of all steps that are not injections."""
    inject: list[RuleConfig] = []
    """Rules in order of precedence: at each step the first that fires wins."""
