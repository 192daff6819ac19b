"""Which tokens a step may draw: supports go by the model's probabilities, classes by the token.

Injections and bases share them. Definitions of the limits and classes are those of
`negtemp_data.sampling`; here is only what the job file may say.
"""

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from negtemp_data.errors import quote
from negtemp_data.jobspec.patterns import check_pattern, check_script, is_script
from negtemp_data.jobspec.strict import MANY_TOKENS, Fraction, StrictModel

TOKEN_CLASSES = (
    "special",
    "eos",
    "undertrained",
    "byte_fragment",
    "word_start",
    "digits",
    "ascii",
    "code_fence",
    "json_punctuation",
    "english",
)
"""Token classes with a name of their own; beside them there are `script:NAME`, `regex:PATTERN`."""


def _check_class(name: str) -> str:
    kind, colon, rest = name.partition(":")
    if name in TOKEN_CLASSES:
        return name
    if colon and kind == "regex":
        if not rest:
            raise ValueError("regex: needs a pattern behind it")
        check_pattern(rest, prefix="regex:")
    elif colon and kind == "script":
        check_script(rest)
    else:
        raise ValueError(f"{quote(name)} is no token class; {_hint(name)}")
    return name


def _hint(name: str) -> str:
    near = get_close_matches(name, TOKEN_CLASSES, n=1) or [f"script:{name}"] * is_script(name)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known classes: {', '.join(TOKEN_CLASSES)}, script:NAME, regex:PATTERN"


TokenClass = Annotated[
    str,
    AfterValidator(_check_class),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(TOKEN_CLASSES)},
                {"type": "string", "pattern": "^script:[A-Za-z_]+$"},
                {"type": "string", "pattern": "^regex:."},
            ]
        }
    ),
]
"""Name of a kind of token; the table in docs/job.md says what each holds."""


class SupportConfig(StrictModel):
    """A candidate set: the tokens that pass every limit given here.

    All limits look at softmax(z) at T = 1 over the whole vocabulary, are inclusive, and keep ties.
    """

    min_p: Fraction | None = None
    """Tokens at least this likely, relative to the most likely one (2407.01082)."""
    top_p: Fraction | None = None
    """The smallest set of most likely tokens that holds this much probability."""
    top_k: int | None = Field(default=None, ge=2, lt=MANY_TOKENS)
    """This many most likely tokens. One would leave nothing to choose from."""
    top_n_sigma: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Tokens whose logit is within this many standard deviations of the largest (2411.07641)."""
    epsilon: float | None = Field(default=None, gt=0, le=0.5, allow_inf_nan=False)
    """Tokens with at least this probability. Above 0.5 there is never a second one."""
    xtc: float | None = Field(default=None, gt=0, le=0.5, allow_inf_nan=False)
    """Of the tokens with at least this probability only the least likely one, and all below; where
    fewer than two are so likely, nothing (XTC, "exclude top choices")."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if all(limit is None for limit in self.model_dump().values()):
            raise ValueError("needs at least one limit; write `support: all` for no limit")
        return self


def _tag_of_support(value: Any) -> str | None:
    if value == "all":
        return "<all>"
    return "<SupportConfig>" if isinstance(value, dict | SupportConfig) else None


Support = Annotated[
    Annotated[SupportConfig, Tag("<SupportConfig>")] | Annotated[Literal["all"], Tag("<all>")],
    Discriminator(
        _tag_of_support,
        custom_error_type="support_kind",
        custom_error_message="must be `all` or limits such as {min_p: 0.05}",
    ),
]
"""Limits, or `all` for none."""


class VocabularyConfig(StrictModel):
    """Which kinds of token may be drawn."""

    include: list[TokenClass] = []
    """Only tokens of one of these classes; empty: all tokens."""
    exclude: list[TokenClass] = []
    """No token of these classes."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.include and set(self.include) <= set(self.exclude):
            raise ValueError("every included class is excluded too: no token is left")
        return self
