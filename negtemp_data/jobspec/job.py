"""The job file's own model: prompts, generation, output, and how the sections fit together."""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, field_validator, model_validator

from negtemp_data.jobspec.json_schemas import compile_schema
from negtemp_data.jobspec.judges import (
    SAME,
    LikelihoodJudgeConfig,
    PairwiseJudgeConfig,
    RubricJudgeConfig,
    needs_twin,
    single_judges,
)
from negtemp_data.jobspec.schedules import ScheduleConfig
from negtemp_data.jobspec.strict import GpuCount, Name, StrictModel
from negtemp_data.jobspec.verify import VerifyConfig


class PromptsConfig(StrictModel):
    """Where prompts come from, and which part of a row is the prompt."""

    source: str = Field(min_length=1)
    """File, directory, glob or URI: jsonl, json, csv, parquet, arrow, txt (a line is a prompt)."""
    id: str | None = None
    """Column with the prompt's id; null: a hash of its content."""
    text: str | None = None
    """Column with the prompt's text. Default, if messages and template are null too: `prompt`."""
    messages: str | None = None
    """Column with a chat: a list of {role, content}."""
    template: str | None = None
    """Jinja template over the row's columns that gives the prompt's text."""
    system: str | None = None
    """System message put before every prompt; null: none."""
    limit: int | None = Field(default=None, ge=1)
    """Use this many rows at most, from the start."""

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        given = [k for k in ("text", "messages", "template") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: a prompt has one shape")
        return self

    @property
    def text_column(self) -> str:
        """Column of the prompt text, where neither messages nor template is used."""
        return self.text or "prompt"


class StructuredConfig(StrictModel):
    """A form that every completion is held to (vLLM's structured outputs): exactly one of these."""

    choice: list[Annotated[str, Field(min_length=1)]] | None = Field(default=None, min_length=1)
    """The completion is one of these texts."""
    regex: str | None = Field(default=None, min_length=1)
    """It matches this pattern from start to end; the dialect is that of vLLM's backend."""
    json_schema: dict[str, JsonValue] | None = Field(default=None, alias="json")
    """It is JSON of this JSON Schema."""
    grammar: str | None = Field(default=None, min_length=1)
    """It is derived from this EBNF grammar."""

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        if schema is not None:
            compile_schema(schema)
        return schema

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if len(self.given) != 1:
            raise ValueError("needs exactly one of the keys 'choice', 'regex', 'json', 'grammar'")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """The form by its key in the job file, which is vLLM's too."""
        data = self.model_dump()
        return {key: value for key, value in data.items() if value is not None}


class ReplicaRange(StrictModel):
    """How many engines, by what the cluster has free at the time."""

    min: int = Field(default=1, ge=1)
    """Engines that the run waits for at its start."""
    max: int = Field(ge=1)
    """Most engines; machines that join a running cluster are used up to here."""

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


def count_gpus(gpus_per_replica: float | str, engine: Mapping[str, Any], has_gpus: bool) -> float:
    """GPUs of one engine.

    Args:
        gpus_per_replica: As the job file has it; `auto`: one for each part that the engine cuts its
            model into.
        engine: vLLM's engine arguments.
        has_gpus: Whether the cluster has any; without, `auto` is 0.
    """
    if not isinstance(gpus_per_replica, str):
        return gpus_per_replica
    parts = (engine.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
    return float(math.prod(parts)) if has_gpus else 0.0


class GenerateConfig(StrictModel):
    """The generator: model, limits, samples per prompt, engine."""

    model: str = Field(min_length=1)
    """Catalogue name (`negtemp models`), Hugging Face id, or local folder."""
    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of a completion."""
    min_tokens: int = Field(default=0, ge=0)
    """No end of text before this many tokens."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Strings that end a completion; they are not part of it."""
    chat_template_kwargs: dict[str, JsonValue] = {}
    """Passed to the model's chat template, for example {enable_thinking: false}."""
    structured: StructuredConfig | None = None
    """A form that completions are held to; null: none."""
    lora: str | None = Field(default=None, min_length=1)
    """LoRA adapter to generate with: a folder or a Hugging Face id; the judge works without it."""
    samples: dict[Name, Annotated[int, Field(ge=1, le=65536)]] = Field(min_length=1)
    """Samples per prompt, by arm (a name in `schedules`)."""
    engine: dict[str, Any] = {}
    """vLLM engine arguments, for example {dtype: float32, max_model_len: 2048}."""
    replicas: Annotated[
        Annotated[int, Field(ge=1), Tag("<number>")] | Annotated[ReplicaRange, Tag("<range>")],
        Discriminator(
            lambda value: "<range>" if isinstance(value, dict | ReplicaRange) else "<number>"
        ),
    ] = 1
    """Engines that generate side by side: a number, or {min, max}."""
    gpus_per_replica: GpuCount = "auto"
    """GPUs of each engine, all of one machine; auto: tensor_parallel_size ×
    pipeline_parallel_size, 1 by default, and 0 where there are no GPUs."""

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens})"
            )
        return self

    @property
    def replica_range(self) -> ReplicaRange:
        """`replicas` as a range."""
        if isinstance(self.replicas, ReplicaRange):
            return self.replicas
        return ReplicaRange(min=self.replicas, max=self.replicas)


class OutputConfig(StrictModel):
    """Where rows go."""

    path: str = Field(min_length=1)
    """Output: a folder, or a URI (s3://, gs://, az://); a run continues what it finds there."""
    shard_rows: int = Field(default=256, ge=1, le=65536)
    """Rows of a shard: a shard holds the samples of whole prompts, at least of one."""
    keep: Literal["all", "accepted"] = "all"
    """`accepted` leaves rejected and failed rows out of the shards; they are still counted."""


class Job(StrictModel):
    """A data set to be made: what `negtemp run` is given."""

    version: Literal[1]
    """Version of this format."""
    name: Name
    """Name of the job."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the job; with prompt id, sample index and attempt it gives each row its own."""
    prompts: PromptsConfig
    """Where prompts come from."""
    generate: GenerateConfig
    """What generates, and how much."""
    schedules: dict[Name, ScheduleConfig] = Field(min_length=1)
    """Ways of sampling, by name."""
    verify: VerifyConfig = VerifyConfig()
    """What decides whether a sample is good."""
    output: OutputConfig
    """Where the data set is written."""

    @model_validator(mode="after")
    def _arms_exist(self) -> Self:
        for arm in self.generate.samples:
            if arm not in self.schedules:
                near = get_close_matches(arm, self.schedules, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"generate.samples names the arm {arm!r}, but schedules has only "
                    f"{', '.join(self.schedules)}{hint}"
                )
        return self

    @model_validator(mode="after")
    def _judges_fit(self) -> Self:
        for path, judge in single_judges(self.verify.judge):
            if (
                isinstance(judge, LikelihoodJudgeConfig)
                and judge.reads_text
                and (judge.model == self.generate.model)
            ):
                raise ValueError(
                    f"{path}.model is the generator's own, whose likelihood only shows that an "
                    "injection happened; name another model"
                )
            if needs_twin(judge):
                self._check_twins(path)
            if isinstance(judge, RubricJudgeConfig | PairwiseJudgeConfig):
                is_same = judge.model == SAME
                self._check_labels(path, self.generate.engine if is_same else judge.engine)
        return self

    def _check_labels(self, path: str, engine: Mapping[str, Any]) -> None:
        # Source: vllm 0.32, v1/worker/gpu/model_runner.py, on its rejection sampler.
        if engine.get("speculative_config"):
            raise ValueError(
                f"{path} reads the probabilities of labels, which vLLM does not give on an engine "
                "with a speculative_config; give the judge a model of its own without one"
            )

    def _check_twins(self, path: str) -> None:
        control = self.control_arm
        if control is None:
            raise ValueError(
                f"{path} compares samples with their twins, but generate.samples has no arm "
                "without injections"
            )
        most = max(self.generate.samples.values())
        if self.generate.samples[control] < most:
            raise ValueError(
                f"{path} compares samples with their twins: the arm {control!r} needs as many "
                f"samples as the largest arm, {most}"
            )

    @property
    def control_arm(self) -> str | None:
        """The first arm without injections, whose samples are the others' twins."""
        arms = self.generate.samples
        return next((arm for arm in arms if not self.schedules[arm].inject), None)

    @property
    def samples_per_prompt(self) -> int:
        """Rows that each prompt gives, over all arms."""
        return sum(self.generate.samples.values())
