"""The base of a schedule as the job file writes it: how the steps that are not injections sample.

The plain form holds vLLM's own parameters, and vLLM carries it out wherever it can. What it can't
(T outside its range or moving, a support, a vocabulary) the project's processor does, in the order
support and vocabulary, T, min_p, top_k, top_p.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from negtemp_data.jobspec.candidates import Support, SupportConfig, VocabularyConfig
from negtemp_data.jobspec.strict import (
    MANY_TOKENS,
    Fraction,
    SignedTemperature,
    StrictModel,
    tag_by_key,
)

_ENGINE_MIN_TEMPERATURE = 0.01
"""Least temperature but 0 that vLLM takes as it is. Source: vllm 0.32, sampling_params.py."""
_ENGINE_MAX_TEMPERATURE = 2.0
"""Greatest that it accepts. Source: likewise."""

_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")
_WHY_NO_PENALTIES = (
    "vLLM's two runners apply penalties at different places, before or after the project applies "
    "such a base, so their strength would not be what the number says"
)


def _refuse_xtc(support: SupportConfig | Literal["all"]) -> SupportConfig | Literal["all"]:
    if support != "all" and support.xtc is not None:
        raise ValueError(
            "xtc leaves steps without candidates, so it belongs to an injection rule, for example "
            "{when: {rate: 0.5}, temperature: 1, support: {xtc: 0.1}, defer: 0}"
        )
    return support


class CandidatesConfig(StrictModel):
    """What a base may draw from: cuts before the temperature is applied, and cuts after it."""

    support: Annotated[Support, AfterValidator(_refuse_xtc)] = "all"
    """Candidate set, cut before T is applied; where nothing is left, the most likely token."""
    vocabulary: VocabularyConfig = VocabularyConfig()
    """Token classes that may be drawn. With an `include`, end of text is included too, unless `eos`
    or `special` is excluded."""
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    """Keep the smallest set of tokens with this much probability; 1 keeps all."""
    top_k: int = Field(default=0, ge=0, lt=MANY_TOKENS)
    """Keep this many most likely tokens; 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Keep tokens at least this likely, relative to the most likely one; 0 keeps all."""


class ConstantBaseConfig(CandidatesConfig):
    """The same at every step: vLLM's own parameters, a temperature of any size, and cuts."""

    temperature: SignedTemperature = 1.0
    """Softmax temperature; 0 is greedy, below 0 the least likely tokens are favoured."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    """Subtracted from the logit of every token that the completion already holds."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, allow_inf_nan=False)
    """Subtracted once per occurrence in the completion."""
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Divides positive, multiplies negative logits of tokens seen in prompt or completion."""

    @property
    def is_of_engine(self) -> bool:
        """Whether vLLM itself samples this."""
        in_range = _ENGINE_MIN_TEMPERATURE <= self.temperature <= _ENGINE_MAX_TEMPERATURE
        is_cut = self.support != "all" or self.vocabulary != VocabularyConfig()
        return (in_range or self.temperature == 0) and not is_cut

    @model_validator(mode="after")
    def _penalties_of_engine(self) -> Self:
        fields = type(self).model_fields
        given = [name for name in _PENALTIES if getattr(self, name) != fields[name].default]
        if given and not self.is_of_engine:
            raise ValueError(
                f"{given[0]} can't stand beside `support`, `vocabulary` or a temperature that is "
                f"neither 0 nor from {_ENGINE_MIN_TEMPERATURE:g} to {_ENGINE_MAX_TEMPERATURE:g}: "
                f"{_WHY_NO_PENALTIES}"
            )
        return self


class _MovingBase(StrictModel):
    """What the forms have in common that only the project's processor carries out."""

    @model_validator(mode="before")
    @classmethod
    def _no_penalties(cls, data: Any) -> Any:
        given = [name for name in _PENALTIES if isinstance(data, dict) and name in data]
        if given:
            raise ValueError(f"{given[0]} can't stand beside a moving base: {_WHY_NO_PENALTIES}")
        return data


class PieceConfig(CandidatesConfig, _MovingBase):
    """One stretch of a track."""

    until: int | None = Field(default=None, ge=1, lt=MANY_TOKENS)
    """First position that is not of this piece any more; null: the last piece."""
    temperature: SignedTemperature = 1.0
    """Softmax temperature of the stretch."""


class TrackBaseConfig(_MovingBase):
    """Pieces, one after the other."""

    track: list[PieceConfig] = Field(min_length=1)
    """Pieces with rising `until`; the last has none."""

    @model_validator(mode="after")
    def _covers_every_position_once(self) -> Self:
        begin = 0
        for index, piece in enumerate(self.track[:-1]):
            if piece.until is None:
                raise ValueError(f"track[{index}] needs `until`: only the last piece has no end")
            if piece.until <= begin:
                raise ValueError(
                    f"track[{index}].until ({piece.until}) must be greater than the one before it "
                    f"({begin})"
                )
            begin = piece.until
        if self.track[-1].until is not None:
            raise ValueError("the last piece of a track must not have `until`: it has no end")
        return self


class AnnealConfig(StrictModel):
    """A way from one temperature to another."""

    first: SignedTemperature = Field(alias="from")
    """Temperature at position 0."""
    last: SignedTemperature = Field(alias="to")
    """Temperature from position `over` on."""
    over: int = Field(ge=1, le=1_000_000)
    """Tokens that the way takes."""
    shape: Literal["linear", "cosine", "exponential"] = "linear"
    """linear: in β = 1/T, so that ±inf and a change of sign are on the way; cosine: half a cosine
    wave in T; exponential: by the same factor at each step."""

    @model_validator(mode="after")
    def _has_a_way(self) -> Self:
        ends = (self.first, self.last)
        if 0 in ends:
            raise ValueError("from and to must not be 0; write for example 0.05")
        if self.shape != "linear" and not (all(map(math.isfinite, ends)) and self._one_sign):
            raise ValueError(
                f"from ({self.first:g}) and to ({self.last:g}) must be finite and of one sign for "
                f"the shape {self.shape}; only linear passes through infinity"
            )
        return self

    @property
    def _one_sign(self) -> bool:
        return (self.first > 0) == (self.last > 0)


class AnnealBaseConfig(CandidatesConfig, _MovingBase):
    """The temperature moves from one value to another, and stays there."""

    anneal: AnnealConfig
    """`{from, to, over, shape}`."""


class EdtConfig(StrictModel):
    """T = t0·n^(θ/H), H the entropy of the step in nats (EDT, 2403.14541)."""

    kind: Literal["edt"]
    t0: float = Field(gt=0, allow_inf_nan=False)
    """Temperature towards which T rises where the model is unsure."""
    n: Fraction = 0.8
    """Base of the power: the smaller, the colder where the model is sure."""
    theta: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Entropy, in nats, at which T is t0·n."""


class DynatempConfig(StrictModel):
    """T = low + (high − low)·(H/ln m)^exponent, m the number of tokens not masked (llama.cpp)."""

    kind: Literal["dynatemp"]
    low: float = Field(ge=0, allow_inf_nan=False)
    """Temperature where the model is sure."""
    high: float = Field(gt=0, allow_inf_nan=False)
    """Temperature where all tokens are equally likely."""
    exponent: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """1: T is linear in the entropy."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be less than high ({self.high:g})")
        return self


_ADAPTIVE = {"edt": "<EdtConfig>", "dynatemp": "<DynatempConfig>"}


def _tag_of_adaptive(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return _ADAPTIVE.get(str(kind))


class AdaptiveBaseConfig(CandidatesConfig, _MovingBase):
    """The temperature follows the entropy of each step."""

    adaptive: Annotated[
        Annotated[EdtConfig, Tag("<EdtConfig>")]
        | Annotated[DynatempConfig, Tag("<DynatempConfig>")],
        Discriminator(
            _tag_of_adaptive,
            custom_error_type="adaptive_kind",
            custom_error_message="`kind` must be edt or dynatemp",
        ),
    ]
    """`{kind: edt, t0, n, theta}` or `{kind: dynatemp, low, high, exponent}`."""


_MOVING = {
    "track": "TrackBaseConfig",
    "anneal": "AnnealBaseConfig",
    "adaptive": "AdaptiveBaseConfig",
}


def _tag_of_base(value: Any) -> str | None:
    return tag_by_key(value, _MOVING, plain="ConstantBaseConfig")


Base = Annotated[
    Annotated[ConstantBaseConfig, Tag("<ConstantBaseConfig>")]
    | Annotated[TrackBaseConfig, Tag("<TrackBaseConfig>")]
    | Annotated[AnnealBaseConfig, Tag("<AnnealBaseConfig>")]
    | Annotated[AdaptiveBaseConfig, Tag("<AdaptiveBaseConfig>")],
    Discriminator(
        _tag_of_base,
        custom_error_type="base_kind",
        custom_error_message=("needs at most one of the keys 'track', 'anneal' and 'adaptive'"),
    ),
]
"""One of the forms, told apart by its key; the plain one has none of its own."""
