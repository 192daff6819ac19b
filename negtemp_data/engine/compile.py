"""From the job file's schedules to sampling's records and vLLM's parameters."""

from typing import TYPE_CHECKING

from negtemp_data.jobspec import EveryConfig, GenerateConfig, RuleConfig, ScheduleConfig
from negtemp_data.sampling import (
    BernoulliTrigger,
    PeriodicTrigger,
    Rule,
    Schedule,
    Support,
    Vocabulary,
)

if TYPE_CHECKING:
    from vllm import SamplingParams

KEY = "negtemp_key"
"""Name in a request's `extra_args` of the key under which its trace is taken."""
SCHEDULE = "negtemp_schedule"
"""Name in a request's `extra_args` of the schedule, as JSON."""


def compile_schedule(config: ScheduleConfig) -> Schedule:
    """Sampling's record of a schedule's injection rules."""
    return Schedule(tuple(_compile_rule(rule) for rule in config.inject))


def _compile_rule(config: RuleConfig) -> Rule:
    when = config.when
    return Rule(
        trigger=(
            PeriodicTrigger(when.every, when.jitter)
            if isinstance(when, EveryConfig)
            else BernoulliTrigger(when.rate)
        ),
        temperature=config.temperature,
        support=Support() if config.support == "all" else Support(**config.support.model_dump()),
        vocabulary=Vocabulary(
            include=tuple(config.vocabulary.include), exclude=tuple(config.vocabulary.exclude)
        ),
        start=when.start,
        stop=when.stop,
        cooldown=when.cooldown,
        burst=when.burst,
        max_injections=when.max,
        defer=config.defer,
    )


class ArmParameters:
    """Makes the vLLM parameters of an arm's samples."""

    def __init__(self, generate: GenerateConfig, schedule: ScheduleConfig) -> None:
        """Compiles `schedule` once for all its samples."""
        self._generate = generate
        self._base = schedule.base.model_dump()
        self.schedule = compile_schedule(schedule)
        self._schedule_json = self.schedule.to_json() if self.schedule.rules else None

    def sampling_params(self, key: str, seed: int, room: int) -> "SamplingParams":
        """Parameters of one sample.

        Args:
            key: Name of the request, under which its trace is taken.
            seed: Row seed; also the key of the injections' random numbers.
            room: Tokens that the context has left after the prompt.
        """
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

        stop = self._generate.stop
        return SamplingParams(
            **self._base,
            seed=seed,
            max_tokens=min(self._generate.max_tokens, room),
            min_tokens=min(self._generate.min_tokens, room),
            stop=stop,
            logprobs=0,
            flat_logprobs=True,
            # Text is made at the end, from all tokens at once; only stop strings need it earlier.
            detokenize=bool(stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=self._extra_args(key),
        )

    def _extra_args(self, key: str) -> dict[str, str] | None:
        if self._schedule_json is None:
            return None
        return {KEY: key, SCHEDULE: self._schedule_json}
