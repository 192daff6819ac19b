"""Judges as the job file writes them."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, JsonValue, Tag, model_validator

from negtemp_data.jobspec.strict import GpuCount, Name, StrictModel

SAME = "same"
"""Name of the judge model that stands for the generator's own engine."""

CRITERIA: dict[str, str] = {
    "coherence": "Is the answer readable, grammatical and consistent from start to end?",
    "relevance": "Does the answer address what the request asks for, and nothing else?",
    "helpfulness": "Would the person who wrote the request be well served by the answer?",
    "correctness": "Are the statements in the answer true, and is its reasoning sound?",
    "creativity": "Is the answer original, rather than the first thing that anyone would write?",
}
"""Questions behind the criteria that a job may name without a text of its own."""


class CriterionConfig(StrictModel):
    """One question that a judge answers on the scale."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Weight in the mean score."""
    text: str | None = Field(default=None, min_length=1)
    """The question; null: the built-in text of a criterion of this name."""


class ExampleConfig(StrictModel):
    """A rated answer, shown to the judge before the one that it rates."""

    request: str = Field(min_length=1)
    """What was asked."""
    answer: str = Field(min_length=1)
    """What was answered."""
    rating: int
    """The right rating, on the scale."""


class EngineJudgeConfig(StrictModel):
    """A judge that asks a model which vLLM runs."""

    model: str = Field(default=SAME, min_length=1)
    """`same`: the generator's own engine. Else a catalogue name, Hugging Face id or local path, for
    engines of its own beside the generator's."""
    engine: dict[str, Any] = {}
    """vLLM engine arguments of those engines."""
    replicas: int = Field(default=1, ge=1)
    """Engines for this judge, where it has its own."""
    gpus_per_replica: GpuCount = "auto"
    """GPUs of each, all of one machine; auto: tensor_parallel_size × pipeline_parallel_size, 1 by
    default, and 0 where there are no GPUs."""

    @model_validator(mode="after")
    def _own_engine(self) -> Self:
        if self.model == SAME and (self.engine or self.replicas > 1):
            name = "engine" if self.engine else "replicas"
            raise ValueError(
                f"{name} is of no effect with model: same, which uses the generator's engine; name "
                "a model, or leave it out"
            )
        return self


class RubricConfig(StrictModel):
    """Questions, and the scale of their answers."""

    criteria: dict[Name, CriterionConfig] = Field(min_length=1)
    """Questions by name."""
    scale: Annotated[list[int], Field(min_length=2, max_length=2)] = [1, 5]
    """Lowest and highest score; every whole number between is a label of one token."""
    accept_at: float = Field(allow_inf_nan=False)
    """Smallest weighted mean score that is accepted."""
    examples: list[ExampleConfig] = []
    """Rated answers that go before every question (few-shot)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.scale
        if not 0 <= low < high <= 100:
            raise ValueError(f"scale must rise, within 0 to 100; found [{low}, {high}]")
        if not low <= self.accept_at <= high:
            raise ValueError(f"accept_at ({self.accept_at}) lies outside the scale [{low}, {high}]")
        for example in self.examples:
            if not low <= example.rating <= high:
                raise ValueError(
                    f"an example's rating ({example.rating}) lies outside the scale [{low}, {high}]"
                )
        for name, criterion in self.criteria.items():
            if criterion.text is None and name not in CRITERIA:
                raise ValueError(
                    f"criterion {name!r} needs a text; built in are {', '.join(CRITERIA)}"
                )
        return self


class RubricJudgeConfig(RubricConfig, EngineJudgeConfig):
    """A rubric judge: one decoded step per criterion gives an expected score on the scale."""

    kind: Literal["rubric"] = "rubric"
    rationale_tokens: int = Field(default=0, ge=0)
    """Longest rationale that the judge writes before it rates; 0: it rates at once."""


class LikelihoodJudgeConfig(EngineJudgeConfig):
    """Log-probabilities of the completion as an answer, injected tokens left out."""

    kind: Literal["likelihood"]
    measure: Literal["text", "twin", "request", "end", "order"] = "text"
    """text: mean over the tokens, how well the answer reads. twin: that, less the twin's. request:
    mean gain over the same text as an answer to no request in particular, whether it answers this
    one. end: of ending where it ends, whether it is complete. order: gain over the same sentences
    in other orders, per sentence, whether one leads to the next."""
    accept_at: float = Field(allow_inf_nan=False)
    """Smallest accepted score, in nats; for `text` 0 is certainty, for `order` no order matters."""

    @model_validator(mode="after")
    def _another_model(self) -> Self:
        if self.model == SAME and self.reads_text:
            raise ValueError(
                f"measure: {self.measure} needs a model other than the generator, whose own "
                "likelihood only shows that an injection happened; `perplexity` is a check for that"
            )
        return self

    @property
    def reads_text(self) -> bool:
        """Whether it asks how likely the tokens are, which the generator knows too well."""
        return self.measure in ("text", "twin")


class PairwiseJudgeConfig(EngineJudgeConfig):
    """Compares the completion with its twin, in both orders."""

    kind: Literal["pairwise"]
    question: str = "Which answer serves the person who wrote the request better?"
    """What is asked of the two answers."""
    accept_at: float = Field(default=0.5, ge=0, le=1)
    """Smallest accepted probability that the completion is the better one."""


class RewardJudgeConfig(EngineJudgeConfig):
    """A reward model: one that gives a sequence a number."""

    kind: Literal["reward"]
    accept_at: float = Field(allow_inf_nan=False)
    """Smallest accepted reward."""

    @model_validator(mode="after")
    def _another_model(self) -> Self:
        if self.model == SAME:
            raise ValueError("a reward judge needs a model of its own, made for rewards")
        return self


class PythonJudgeConfig(StrictModel):
    """A function of the user's own."""

    kind: Literal["python"]
    function: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """`package.module:function`; it gets a Sample and returns a number."""
    accept_at: float = Field(allow_inf_nan=False)
    """Smallest accepted number."""


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_host = (parts.hostname or "").encode("idna") != b"" and parts.port != 0
    except ValueError:
        is_host = False
    if not is_host or not url.isprintable() or " " in url or parts.fragment:
        raise ValueError("must be an address such as http://localhost:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user name or password; api_key_env is the place of a key")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise ValueError("must end before /chat/completions, which is added")
    return url


def _check_extra_body(fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name in ("messages", "model", "n", "stream"):
        if name in fields:
            raise ValueError(f"{name} can't be set here")
    try:
        json.dumps(fields, allow_nan=False)
    except ValueError:
        raise ValueError("must hold no nan or inf, which JSON does not have") from None
    return fields


class EndpointJudgeConfig(RubricConfig):
    """A rubric judge behind an OpenAI-compatible server."""

    kind: Literal["endpoint"]
    url: Annotated[str, AfterValidator(_check_url)] = Field(pattern=r"^https?://")
    """Address of the API, such as http://localhost:8000/v1. It is saved with the job, so it must
    hold no password or key."""
    model: str = Field(min_length=1)
    """Name of the model there."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key; null: none is sent. The key itself is saved
    nowhere."""
    extra_body: Annotated[dict[str, JsonValue], AfterValidator(_check_extra_body)] = {}
    """Fields of the request beside ours, or in their place (temperature, max_tokens, logprobs,
    top_logprobs); null leaves a field out."""
    concurrency: int = Field(default=16, ge=1)
    """Requests of one worker under way at a time, at most."""
    timeout_s: float = Field(default=60, gt=0, allow_inf_nan=False)
    """Longest time for one request, answer included."""
    attempts: int = Field(default=5, ge=1, le=100)
    """Times that a request is tried before its row fails."""


_KINDS = {
    "rubric": "<RubricJudgeConfig>",
    "likelihood": "<LikelihoodJudgeConfig>",
    "pairwise": "<PairwiseJudgeConfig>",
    "reward": "<RewardJudgeConfig>",
    "python": "<PythonJudgeConfig>",
    "endpoint": "<EndpointJudgeConfig>",
}


def _kind_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("kind", "rubric"))
    return str(getattr(value, "kind", None))


def _tag_of_single(value: Any) -> str | None:
    return _KINDS.get(_kind_of(value))


def _tag_of_judge(value: Any) -> str | None:
    is_combined = "judges" in value if isinstance(value, Mapping) else hasattr(value, "judges")
    return "<CombinedJudgeConfig>" if is_combined else _tag_of_single(value)


_Single = (
    Annotated[RubricJudgeConfig, Tag("<RubricJudgeConfig>")]
    | Annotated[LikelihoodJudgeConfig, Tag("<LikelihoodJudgeConfig>")]
    | Annotated[PairwiseJudgeConfig, Tag("<PairwiseJudgeConfig>")]
    | Annotated[RewardJudgeConfig, Tag("<RewardJudgeConfig>")]
    | Annotated[PythonJudgeConfig, Tag("<PythonJudgeConfig>")]
    | Annotated[EndpointJudgeConfig, Tag("<EndpointJudgeConfig>")]
)
_MESSAGE = f"`kind` must be one of {', '.join(_KINDS)}"

SingleJudgeConfig = Annotated[
    _Single,
    Discriminator(_tag_of_single, custom_error_type="judge_kind", custom_error_message=_MESSAGE),
]


class CombinedJudgeConfig(StrictModel):
    """Several judges, and how their verdicts become one."""

    combine: Literal["all", "any", "mean"]
    """all: each has to accept, and the score is the least of the margins weight·(score − its
    accept_at). any: one has to, and it is the largest of them. mean: the weighted mean of the
    scores counts."""
    judges: dict[Name, SingleJudgeConfig] = Field(min_length=2)
    """Judges by name."""
    weights: dict[Name, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """Weights of the scores, which have units of their own; 1 where a judge has none here."""
    accept_at: float | None = Field(default=None, allow_inf_nan=False)
    """With mean: smallest accepted weighted mean."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = sorted(self.weights.keys() - self.judges.keys())
        if unknown:
            raise ValueError(
                f"weights.{unknown[0]}: no judge has this name; there are {', '.join(self.judges)}"
            )
        if (self.accept_at is None) == (self.combine == "mean"):
            raise ValueError(
                "combine: mean needs accept_at for the mean; with all and any each judge has its "
                "own and there is none beside them"
            )
        return self


JudgeConfig = Annotated[
    _Single | Annotated[CombinedJudgeConfig, Tag("<CombinedJudgeConfig>")],
    Discriminator(_tag_of_judge, custom_error_type="judge_kind", custom_error_message=_MESSAGE),
]


def single_judges(judge: Any) -> Iterator[tuple[str, Any]]:
    """The single judges of a job's judge, with their paths in the job file."""
    if isinstance(judge, CombinedJudgeConfig):
        for name, member in judge.judges.items():
            yield f"verify.judge.judges.{name}", member
    elif judge is not None:
        yield "verify.judge", judge


def judges_with_engines(judge: Any) -> Iterator[tuple[str, EngineJudgeConfig]]:
    """Those of the single judges that have engines of their own, beside the generator's."""
    for path, single in single_judges(judge):
        if isinstance(single, EngineJudgeConfig) and single.model != SAME:
            yield path, single


def score_of_twins(judge: Any) -> float | None:
    """What a judge that compares with the twin would say of the twin itself; None for others."""
    if isinstance(judge, PairwiseJudgeConfig):
        return 0.5
    return 0.0 if needs_twin(judge) else None


def needs_twin(judge: Any) -> bool:
    """Whether a single judge compares a sample with its twin."""
    if isinstance(judge, LikelihoodJudgeConfig):
        return judge.measure == "twin"
    return isinstance(judge, PairwiseJudgeConfig)
