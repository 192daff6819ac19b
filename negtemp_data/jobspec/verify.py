"""Checks and judge as the job file writes them."""

from typing import Annotated, Any, Literal, Self

import regex
from pydantic import Discriminator, Field, Tag, model_validator

from negtemp_data.jobspec.strict import Name, StrictModel

CRITERIA: dict[str, str] = {
    "coherence": "Is the answer readable, grammatical and consistent from start to end?",
    "relevance": "Does the answer address what the request asks for, and nothing else?",
    "helpfulness": "Would the person who wrote the request be well served by the answer?",
    "correctness": "Are the statements in the answer true, and is its reasoning sound?",
    "creativity": "Is the answer original, rather than the first thing that anyone would write?",
}
"""Questions behind the criteria that a job may name without a text of its own."""


class LengthCheckConfig(StrictModel):
    """Number of generated tokens."""

    kind: Literal["length"]
    min_tokens: int = Field(default=1, ge=0)
    """Fewest tokens that pass."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens that pass; null: no limit."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"max_tokens ({self.max_tokens}) is below min_tokens ({self.min_tokens})"
            )
        return self


class RepetitionCheckConfig(StrictModel):
    """Share of the completion's token n-grams that occurred before in it."""

    kind: Literal["repetition"]
    max_ratio: float = Field(ge=0, le=1, allow_inf_nan=False)
    """Largest share that passes: 0 allows no n-gram twice."""
    n: int = Field(default=3, ge=1, le=16)
    """Length of the n-grams, in tokens."""


class RegexCheckConfig(StrictModel):
    """A pattern that the completion must, or must not, contain."""

    kind: Literal["regex"]
    pattern: str = Field(min_length=1)
    """Regular expression (the `regex` library), searched anywhere in the completion."""
    match: bool = True
    """true: the pattern must be found; false: it must not."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            regex.compile(self.pattern)
        except (regex.error, RecursionError) as error:
            raise ValueError(
                f"pattern {self.pattern!r} is no regular expression: {error}"
            ) from error
        return self


class PerplexityCheckConfig(StrictModel):
    """exp(−mean raw log-probability) of the completion, injected tokens left out.

    It comes free from generation and asks whether the text found its way back after an injection.
    It is the generator's own view, so it is a check and never a judge.
    """

    kind: Literal["perplexity"]
    max: float = Field(gt=1, allow_inf_nan=False)
    """Largest perplexity that passes."""


_CHECKS = {
    "length": "<LengthCheckConfig>",
    "repetition": "<RepetitionCheckConfig>",
    "regex": "<RegexCheckConfig>",
    "perplexity": "<PerplexityCheckConfig>",
}


def _tag_of_check(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return _CHECKS.get(str(kind))


CheckConfig = Annotated[
    Annotated[LengthCheckConfig, Tag("<LengthCheckConfig>")]
    | Annotated[RepetitionCheckConfig, Tag("<RepetitionCheckConfig>")]
    | Annotated[RegexCheckConfig, Tag("<RegexCheckConfig>")]
    | Annotated[PerplexityCheckConfig, Tag("<PerplexityCheckConfig>")],
    Discriminator(
        _tag_of_check,
        custom_error_type="check_kind",
        custom_error_message="`kind` must be length, repetition, regex or perplexity",
    ),
]


class CriterionConfig(StrictModel):
    """One question that the rubric judge answers on the scale."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Weight in the mean score."""
    text: str | None = Field(default=None, min_length=1)
    """The question; null: the built-in text of a criterion of this name."""


class JudgeConfig(StrictModel):
    """A rubric judge: one decoded step per criterion gives an expected score on the scale."""

    model: Literal["same"] = "same"
    """The generator's own engine."""
    criteria: dict[Name, CriterionConfig] = Field(min_length=1)
    """Questions by name."""
    scale: Annotated[list[int], Field(min_length=2, max_length=2)] = [1, 5]
    """Lowest and highest score; every whole number between is a label of one token."""
    accept_at: float = Field(allow_inf_nan=False)
    """Smallest weighted mean score that is accepted."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.scale
        if not 0 <= low < high <= 100:
            raise ValueError(f"scale must rise, within 0 to 100; found [{low}, {high}]")
        if not low <= self.accept_at <= high:
            raise ValueError(f"accept_at ({self.accept_at}) lies outside the scale [{low}, {high}]")
        for name, criterion in self.criteria.items():
            if criterion.text is None and name not in CRITERIA:
                raise ValueError(
                    f"criterion {name!r} needs a text; built in are {', '.join(CRITERIA)}"
                )
        return self


class VerifyConfig(StrictModel):
    """What decides whether a sample is good. Empty: every completion is accepted."""

    checks: list[CheckConfig] = []
    """Programmatic checks, run first; the judge sees only what passes them all."""
    judge: JudgeConfig | None = None
    """The judge; null: checks alone decide."""
