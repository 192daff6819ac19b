"""Schedules in words, for `negtemp plan`."""

from collections.abc import Iterable, Sequence
from typing import Literal

from negtemp_data.errors import quote
from negtemp_data.jobspec import (
    AfterConfig,
    AnnealBaseConfig,
    AtConfig,
    Base,
    CandidatesConfig,
    ConstantBaseConfig,
    DynatempConfig,
    EdtConfig,
    EntropyConfig,
    EveryConfig,
    MarginConfig,
    PieceConfig,
    RateConfig,
    RuleConfig,
    SupportConfig,
    TrackBaseConfig,
    VocabularyConfig,
    When,
)

_POSITIONS_SHOWN = 8


def describe_base(base: Base) -> str:
    """How the steps that are not injections sample, in one line."""
    if isinstance(base, TrackBaseConfig):
        return "; ".join(map(_describe_piece, base.track))
    match base:
        case ConstantBaseConfig():
            temperature = f"T {base.temperature:g}"
        case AnnealBaseConfig(anneal=way):
            temperature = f"T from {way.first:g} to {way.last:g} over {way.over}, {way.shape}"
        case _:
            temperature = _describe_adaptive(base.adaptive)
    cuts = [temperature + _describe_candidates(base.support, base.vocabulary), *_limits(base)]
    if isinstance(base, ConstantBaseConfig):
        penalties = base.model_dump(
            include={"presence_penalty", "frequency_penalty", "repetition_penalty"},
            exclude_defaults=True,
        )
        cuts += [f"{name} {value:g}" for name, value in penalties.items()]
    return ", ".join(cuts)


def describe_rule(rule: RuleConfig) -> str:
    """When a rule fires and what it then draws, in one line."""
    draw = f"T {rule.temperature:g}"
    if rule.support == "all":
        draw += " on all tokens"
    parts = [
        draw + _describe_candidates(rule.support, rule.vocabulary),
        *([f"not in place of {_names(rule.guard)}"] if rule.guard else []),
        *(["distinct among siblings"] if rule.draw == "distinct" else []),
    ]
    return f"{_describe_when(rule.when)}: {', '.join(parts)}"


def _describe_piece(piece: PieceConfig) -> str:
    temperature = f"T {piece.temperature:g}"
    text = temperature + _describe_candidates(piece.support, piece.vocabulary)
    text = ", ".join([text, *_limits(piece)])
    return text if piece.until is None else f"{text} until {piece.until}"


def _describe_adaptive(rule: EdtConfig | DynatempConfig) -> str:
    if isinstance(rule, EdtConfig):
        return f"T = {rule.t0:g}·{rule.n:g}^({rule.theta:g}/H), H the step's entropy in nats"
    return f"T from {rule.low:g} to {rule.high:g} with (H/H_max)^{rule.exponent:g}, H the entropy"


def _describe_candidates(
    support: SupportConfig | Literal["all"], vocabulary: VocabularyConfig
) -> str:
    text = ""
    if support != "all":
        limits = support.model_dump(exclude_none=True)
        text += " on " + " and ".join(f"{name} {limit:g}" for name, limit in limits.items())
    if vocabulary.include:
        text += f", only {_names(vocabulary.include)}"
    if vocabulary.exclude:
        text += f", without {_names(vocabulary.exclude)}"
    return text


def _limits(config: CandidatesConfig) -> list[str]:
    given = config.model_dump(include={"top_p", "top_k", "min_p"}, exclude_defaults=True)
    return [f"{name} {limit:g}" for name, limit in given.items()]


def _names(classes: Sequence[str]) -> str:
    return " and ".join(name if name.isprintable() else quote(name) for name in classes)


def _describe_when(when: When) -> str:
    parts = [
        _describe_kind(when),
        f"from {when.start}" if when.start else "",
        "" if when.stop is None else f"before {when.stop}",
        f"{when.burst} at a time" if when.burst > 1 else "",
        f"then {when.cooldown} left alone" if when.cooldown else "",
        "" if when.max is None else f"{when.max} at most",
    ]
    return _join(parts)


def _join(parts: Iterable[str]) -> str:
    return ", ".join(filter(None, parts))


def _describe_kind(when: When) -> str:
    match when:
        case EveryConfig():
            text = f"every {when.every}" + (f" + 0…{when.jitter}" if when.jitter else "")
        case RateConfig():
            text = f"with probability {when.rate:g}"
        case AtConfig():
            rest = ", …" if when.at[_POSITIONS_SHOWN:] else ""
            text = f"at {', '.join(map(str, when.at[:_POSITIONS_SHOWN]))}{rest}"
        case EntropyConfig(entropy=bound):
            limit = f"< {bound.below:g}" if bound.above is None else f"> {bound.above:g}"
            text = f"where entropy {limit} nats"
        case MarginConfig():
            text = f"where p₁ − p₂ < {when.margin.below:g}"
        case AfterConfig(after="sentence" | "line" | "word" as kind):
            text = f"after a {kind}"
        case AfterConfig():
            text = f"after {quote(when.after)}"
    return text
