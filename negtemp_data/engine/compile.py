"""From the job file's schedules to sampling's records and vLLM's parameters.

A request carries its schedule as JSON of the job file's own model, which `parse_schedule` reads on
the other side: so the pipeline and a served request speak one language.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from negtemp_data.errors import quote
from negtemp_data.jobspec import (
    AdaptiveBaseConfig,
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
    GenerateConfig,
    MarginConfig,
    RateConfig,
    RuleConfig,
    ScheduleConfig,
    SupportConfig,
    TrackBaseConfig,
    VocabularyConfig,
    When,
    explain_errors,
)
from negtemp_data.sampling import (
    AnnealedTemperature,
    BernoulliTrigger,
    DynamicTemperature,
    EntropyTemperature,
    EntropyTrigger,
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
    Trigger,
    Vocabulary,
)

if TYPE_CHECKING:
    from vllm import SamplingParams

KEY = "negtemp_key"
"""Name in a request's `extra_args` of the key under which its trace is taken."""
SCHEDULE = "negtemp_schedule"
"""Name in a request's `extra_args` of the schedule, as JSON of a `ScheduleConfig`."""
SIBLINGS = "negtemp_siblings"
"""Name in a request's `extra_args` of its place among its siblings: [seed, index], or [seed], where
the index is the request's own seed minus that."""

_MAX_PARSED = 1024


def compile_schedule(config: ScheduleConfig) -> Schedule:
    """Sampling's record of a schedule; without a base where vLLM itself samples that."""
    return Schedule(
        rules=tuple(_compile_rule(rule) for rule in config.inject), base=_compile_base(config.base)
    )


def parse_schedule(text: object) -> Schedule:
    """The compiled schedule of a request, from JSON of a `ScheduleConfig`.

    Raises:
        ValueError: The text is no schedule, or has a base that vLLM itself samples and that would
            not be applied; the message is one line and names the path.
    """
    if not isinstance(text, str):
        raise ValueError(f"must be a schedule as JSON text; found {quote(text)}")
    return _parse_schedule(text)


@lru_cache(_MAX_PARSED)
def _parse_schedule(text: str) -> Schedule:
    try:
        config = ScheduleConfig.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(" ".join(explain_errors(error, ScheduleConfig, "schedule"))) from error
    schedule = compile_schedule(config)
    if not schedule.base and config.base != ConstantBaseConfig():
        raise ValueError(
            "base: vLLM itself samples this; leave it out and set temperature, top_p, … of the "
            "request"
        )
    return schedule


def _compile_rule(config: RuleConfig) -> Rule:
    when = config.when
    return Rule(
        trigger=_compile_trigger(when),
        temperature=config.temperature,
        support=_compile_support(config.support),
        vocabulary=_compile_vocabulary(config.vocabulary),
        guard=tuple(config.guard),
        is_distinct=config.draw == "distinct",
        start=when.start,
        stop=when.stop,
        cooldown=when.cooldown,
        burst=when.burst,
        max_injections=when.max,
        defer=config.defer,
    )


def _compile_trigger(when: When) -> Trigger:
    trigger: Trigger
    match when:
        case EveryConfig():
            trigger = PeriodicTrigger(when.every, when.jitter)
        case RateConfig():
            trigger = BernoulliTrigger(when.rate)
        case AtConfig():
            trigger = PositionTrigger(tuple(when.at))
        case EntropyConfig():
            trigger = EntropyTrigger(**when.entropy.model_dump(exclude_none=True))
        case MarginConfig():
            trigger = MarginTrigger(when.margin.below)
        case AfterConfig(after="sentence" | "line" | "word" as kind):
            trigger = TextTrigger(kind)
        case AfterConfig():
            trigger = TextTrigger("literal", when.after)
    return trigger


def _compile_support(config: SupportConfig | Literal["all"]) -> Support:
    return Support() if config == "all" else Support(**config.model_dump())


def _compile_vocabulary(config: VocabularyConfig) -> Vocabulary:
    return Vocabulary(include=tuple(config.include), exclude=tuple(config.exclude))


def _compile_base(base: Base) -> tuple[Piece, ...]:
    match base:
        case ConstantBaseConfig():
            return () if base.is_of_engine else (_compile_piece(base, base.temperature),)
        case TrackBaseConfig():
            return tuple(_compile_piece(p, p.temperature, p.until) for p in base.track)
        case AnnealBaseConfig(anneal=way):
            moving = AnnealedTemperature(way.first, way.last, way.over, way.shape)
            return (_compile_piece(base, moving),)
        case AdaptiveBaseConfig(adaptive=rule):
            return (_compile_piece(base, _adaptive_temperature(rule)),)


def _adaptive_temperature(config: EdtConfig | DynatempConfig) -> Temperature:
    if isinstance(config, EdtConfig):
        return EntropyTemperature(config.t0, config.n, config.theta)
    return DynamicTemperature(config.low, config.high, config.exponent)


def _compile_piece(
    config: CandidatesConfig, temperature: Temperature, until: int | None = None
) -> Piece:
    vocabulary = _compile_vocabulary(config.vocabulary)
    if vocabulary.include and not {"eos", "special"} & set(vocabulary.exclude):
        # Else no completion could end before max_tokens.
        include = dict.fromkeys((*vocabulary.include, "eos"))
        vocabulary = Vocabulary(tuple(include), vocabulary.exclude)
    return Piece(
        temperature=temperature,
        until=until,
        support=_compile_support(config.support),
        vocabulary=vocabulary,
        min_p=config.min_p,
        top_k=config.top_k,
        top_p=config.top_p,
    )


class ArmParameters:
    """Makes the vLLM parameters of an arm's samples."""

    def __init__(self, generate: GenerateConfig, schedule: ScheduleConfig) -> None:
        """Compiles `schedule` once for all its samples."""
        self._generate = generate
        self.schedule = compile_schedule(schedule)
        self._engine_base = _engine_base(schedule.base)
        self._schedule_json = None
        if self.schedule != Schedule():
            # What the engine does itself is left out, so that nobody does it twice.
            left_out = None if self.schedule.base else {"base"}
            self._schedule_json = schedule.model_dump_json(exclude_defaults=True, exclude=left_out)

    def sampling_params(
        self, key: str, seed: int, room: int, siblings: Siblings | None = None
    ) -> "SamplingParams":
        """Parameters of one sample.

        Args:
            key: Name of the request, under which its trace is taken.
            seed: Row seed; also the key of the injections' random numbers.
            room: Tokens that the context has left after the prompt.
            siblings: Place among the samples of its prompt and arm; None: it has none.
        """
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.sampling_params import (  # noqa: PLC0415
            RequestOutputKind,
            StructuredOutputsParams,
        )

        stop, structured = self._generate.stop, self._generate.structured
        return SamplingParams(
            **self._engine_base,
            seed=seed,
            max_tokens=min(self._generate.max_tokens, room),
            min_tokens=min(self._generate.min_tokens, room),
            stop=stop,
            logprobs=0,
            flat_logprobs=True,
            # Text is made at the end, from all tokens at once; only stop strings need it earlier.
            detokenize=bool(stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            # vLLM notes its choice of a backend in it, so each request has its own.
            structured_outputs=StructuredOutputsParams(**structured.given) if structured else None,
            extra_args=self.extra_args(key, siblings),
        )

    def extra_args(self, key: str, siblings: Siblings | None = None) -> dict[str, Any] | None:
        """What the request tells the project's processor; None: it takes no part."""
        if self._schedule_json is None:
            return None
        arguments: dict[str, Any] = {KEY: key, SCHEDULE: self._schedule_json}
        if siblings is not None and self.schedule.is_distinct:
            arguments[SIBLINGS] = [siblings.seed, siblings.index]
        return arguments


def _engine_base(base: Base) -> dict[str, Any]:
    """vLLM's parameters: the base itself, or T = 1 and no limits where the project applies it."""
    if not isinstance(base, ConstantBaseConfig) or not base.is_of_engine:
        return {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    return base.model_dump(exclude={"support", "vocabulary"})
