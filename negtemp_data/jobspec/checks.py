"""Programmatic checks as the job file writes them."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, field_validator, model_validator

from negtemp_data.jobspec.json_schemas import compile_schema
from negtemp_data.jobspec.languages import Language
from negtemp_data.jobspec.patterns import Pattern, Script
from negtemp_data.jobspec.strict import StrictModel


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
    pattern: Pattern
    """Regular expression (the `regex` library), searched anywhere in the completion."""
    match: bool = True
    """true: the pattern must be found; false: it must not."""


class PerplexityCheckConfig(StrictModel):
    """exp(−mean raw log-probability) of the completion, injected tokens left out.

    It comes free from generation and asks whether the text found its way back after an injection.
    It is the generator's own view, so it is a check and never a judge.
    """

    kind: Literal["perplexity"]
    max: float = Field(gt=1, allow_inf_nan=False)
    """Largest perplexity that passes."""


class ContainsCheckConfig(StrictModel):
    """Literal texts that the completion must, or must not, contain."""

    kind: Literal["contains"]
    all: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that must all be there."""
    any: list[Annotated[str, Field(min_length=1)]] = []
    """Texts of which one must be there, where the list is not empty."""
    none: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that must not be there."""
    ignore_case: bool = False
    """Whether A and a are the same."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.all or self.any or self.none):
            raise ValueError("give at least one text, in all, any or none")
        return self


class JsonSchemaCheckConfig(StrictModel):
    """A completion that is one JSON value, of a given schema."""

    kind: Literal["json_schema"]
    json_schema: dict[str, JsonValue] = Field(alias="schema")
    """JSON Schema; {} takes any JSON value. It can refer only to its own parts."""

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
        compile_schema(schema)
        return schema


class AnswerCheckConfig(StrictModel):
    """The right answer, from a column of the prompt's input row."""

    kind: Literal["answer"]
    column: str = Field(min_length=1)
    """Column with the right answer."""
    form: Literal["number", "exact", "choice"]
    r"""number: the last number of the completion equals it; exact: the whole completion does, but
    for case, punctuation at its ends and white space; choice: the last capital letter that stands
    alone does. A completion with a \boxed{} is read only in its last one. The column is read by the
    same rules."""
    extract: Pattern | None = None
    """Regular expression whose first group, or whole match, is read instead; the last match
    counts. null: no such place."""
    tolerance: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    """Largest relative error of a number."""


class LanguageCheckConfig(StrictModel):
    """The language that the completion is written in."""

    kind: Literal["language"]
    allowed: list[Language] = Field(min_length=1)
    """ISO 639 codes, such as en; give near relatives too (zh, yue, wuu), which are easily taken for
    each other."""


class ScriptCheckConfig(StrictModel):
    """The script that the completion's letters are of."""

    kind: Literal["script"]
    allowed: list[Script] = Field(min_length=1)
    """Unicode scripts, such as Latin. Letters that several scripts share belong to each of them."""
    min_share: float = Field(default=0.95, ge=0, le=1, allow_inf_nan=False)
    """Smallest share of the letters that must be of them."""


class NearDuplicateCheckConfig(StrictModel):
    """A completion that repeats an accepted one of the same prompt, earlier in the plan."""

    kind: Literal["near_duplicate"]
    max_similarity: float = Field(default=0.8, ge=0, le=1, allow_inf_nan=False)
    """Largest Jaccard similarity of the sets of word n-grams that passes, estimated by MinHash;
    texts that are equal but for case and white space never pass."""
    n: int = Field(default=3, ge=1, le=16)
    """Length of the n-grams, in words; a text that is shorter is one n-gram. Where a script has no
    spaces between words, each character is a word."""


class PythonCheckConfig(StrictModel):
    """A function of the user's own; what it raises is a failed check with its message."""

    kind: Literal["python"]
    function: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """`package.module:function`; it gets a Sample and returns whether it passes, or that and a
    text that says why."""


_CHECKS = {
    "length": "<LengthCheckConfig>",
    "repetition": "<RepetitionCheckConfig>",
    "regex": "<RegexCheckConfig>",
    "perplexity": "<PerplexityCheckConfig>",
    "contains": "<ContainsCheckConfig>",
    "json_schema": "<JsonSchemaCheckConfig>",
    "answer": "<AnswerCheckConfig>",
    "language": "<LanguageCheckConfig>",
    "script": "<ScriptCheckConfig>",
    "near_duplicate": "<NearDuplicateCheckConfig>",
    "python": "<PythonCheckConfig>",
}


def _tag_of_check(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return _CHECKS.get(str(kind))


CheckConfig = Annotated[
    Annotated[LengthCheckConfig, Tag("<LengthCheckConfig>")]
    | Annotated[RepetitionCheckConfig, Tag("<RepetitionCheckConfig>")]
    | Annotated[RegexCheckConfig, Tag("<RegexCheckConfig>")]
    | Annotated[PerplexityCheckConfig, Tag("<PerplexityCheckConfig>")]
    | Annotated[ContainsCheckConfig, Tag("<ContainsCheckConfig>")]
    | Annotated[JsonSchemaCheckConfig, Tag("<JsonSchemaCheckConfig>")]
    | Annotated[AnswerCheckConfig, Tag("<AnswerCheckConfig>")]
    | Annotated[LanguageCheckConfig, Tag("<LanguageCheckConfig>")]
    | Annotated[ScriptCheckConfig, Tag("<ScriptCheckConfig>")]
    | Annotated[NearDuplicateCheckConfig, Tag("<NearDuplicateCheckConfig>")]
    | Annotated[PythonCheckConfig, Tag("<PythonCheckConfig>")],
    Discriminator(
        _tag_of_check,
        custom_error_type="check_kind",
        custom_error_message=f"`kind` must be one of {', '.join(_CHECKS)}",
    ),
]
