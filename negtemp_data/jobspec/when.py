"""When an injection rule fires, as the job file writes it: six kinds, and what all of them take."""

from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from negtemp_data.jobspec.strict import MANY_TOKENS, StrictModel, tag_by_key


class WhenConfig(StrictModel):
    """What every kind of `when` takes."""

    start: int = Field(default=0, ge=0, lt=MANY_TOKENS)
    """First position (generated tokens, counted from 0) at which the rule may fire."""
    stop: int | None = Field(default=None, ge=1, lt=MANY_TOKENS)
    """The rule does not fire at this position or later; null: never stops."""
    cooldown: int = Field(default=0, ge=0, lt=MANY_TOKENS)
    """Tokens to leave alone after a burst."""
    burst: int = Field(default=1, ge=1, lt=MANY_TOKENS)
    """Consecutive injections per firing."""
    max: int | None = Field(default=None, ge=1, lt=MANY_TOKENS)
    """Most tokens that the rule injects into one sample; null: no limit."""

    @model_validator(mode="after")
    def _stop_after_start(self) -> Self:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop ({self.stop}) must be greater than start ({self.start})")
        return self


class EveryConfig(WhenConfig):
    """Fires at start + k·every + U{0…jitter}."""

    every: int = Field(ge=1, lt=MANY_TOKENS)
    """Tokens from one firing to the next."""
    jitter: int = Field(default=0, ge=0, lt=MANY_TOKENS)
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


class AtConfig(WhenConfig):
    """Fires at given positions."""

    at: list[Annotated[int, Field(ge=0, lt=MANY_TOKENS)]] = Field(min_length=1, max_length=4096)
    """Positions, rising; 0 is the first generated token."""

    @model_validator(mode="after")
    def _can_fire(self) -> Self:
        for before, after in pairwise(self.at):
            if after <= before:
                raise ValueError(f"the positions of at must rise; found {after} after {before}")
        if self.at[-1] < self.start or (self.stop is not None and self.at[0] >= self.stop):
            raise ValueError("no position of at lies from start on and before stop")
        return self


class EntropyBoundConfig(StrictModel):
    """A bound on the entropy of a step: softmax(z) at T = 1 over the whole vocabulary."""

    above: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Fires where the entropy is greater than this many nats: where the model is unsure."""
    below: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Fires where it is less: where the model is sure."""

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("needs exactly one of the keys 'above' and 'below'")
        return self


class EntropyConfig(WhenConfig):
    """Fires where the entropy of the step passes a bound."""

    entropy: EntropyBoundConfig
    """`{above: nats}` or `{below: nats}`."""


class MarginBoundConfig(StrictModel):
    """A bound on the lead of the most likely token."""

    below: float = Field(gt=0, le=1, allow_inf_nan=False)
    """Fires where p₁ − p₂, at T = 1, is less than this."""


class MarginConfig(WhenConfig):
    """Fires where the most likely token has little lead over the second."""

    margin: MarginBoundConfig
    """`{below: probability}`."""


class AfterConfig(WhenConfig):
    """Fires where the generated text has just come to an end of some kind."""

    after: str = Field(min_length=1, max_length=64)
    """`sentence`, `line`, `word`, or any other text, which is then waited for literally."""


_KINDS = {
    "every": "EveryConfig",
    "rate": "RateConfig",
    "at": "AtConfig",
    "entropy": "EntropyConfig",
    "margin": "MarginConfig",
    "after": "AfterConfig",
}


def _tag_of_when(value: Any) -> str | None:
    return tag_by_key(value, _KINDS)


When = Annotated[
    Annotated[EveryConfig, Tag("<EveryConfig>")]
    | Annotated[RateConfig, Tag("<RateConfig>")]
    | Annotated[AtConfig, Tag("<AtConfig>")]
    | Annotated[EntropyConfig, Tag("<EntropyConfig>")]
    | Annotated[MarginConfig, Tag("<MarginConfig>")]
    | Annotated[AfterConfig, Tag("<AfterConfig>")],
    Discriminator(
        _tag_of_when,
        custom_error_type="when_kind",
        custom_error_message=(
            "needs exactly one of the keys 'every', 'rate', 'at', 'entropy', 'margin' and 'after'"
        ),
    ),
]
"""One of the kinds, told apart by its key."""
