"""The strict base of every job-file model, and the field types that they share.

Knows nothing of files, engines or commands.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

MANY_TOKENS = 2**31
"""More than any completion has; numbers of tokens are below it, so that the sampler's sums fit."""


class StrictModel(BaseModel):
    """Unknown keys and wrong types are errors; instances are immutable.

    Docstrings under attributes become the descriptions of the JSON Schema.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        # Keys that Python or pydantic keep for themselves (`from`, `json`) are aliases.
        serialize_by_alias=True,
    )


def tag_by_key(value: Any, models: Mapping[str, str], plain: str | None = None) -> str | None:
    """Tag of the alternative of a union whose own key stands in `value`.

    Args:
        value: The data of a mapping, or the model that was made of it.
        models: Name of the model of each key. A tag is a model's name in angle brackets, by which
            `negtemp_data.jobspec.load` finds it in an error's path.
        plain: Name of the model that has no key of its own.

    Returns:
        None where several keys stand there, or none and there is no plain form.
    """
    found = [models[key] for key in models if _has(value, key)] or ([plain] if plain else [])
    return f"<{found[0]}>" if len(found) == 1 else None


def _has(value: Any, key: str) -> bool:
    return key in value if isinstance(value, dict) else hasattr(value, key)


def _read_infinity(value: Any) -> Any:
    return (
        {"inf": math.inf, "-inf": -math.inf}.get(value, value) if isinstance(value, str) else value
    )


def _write_infinity(value: float) -> float | str:
    return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _reject_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("must be a number or inf or -inf, not nan")
    return value


SignedTemperature = Annotated[
    float,
    BeforeValidator(_read_infinity),
    AfterValidator(_reject_nan),
    PlainSerializer(_write_infinity, return_type=float | str),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["inf", "-inf"]}]}),
]
"""A temperature of any sign. Below 0 the least likely tokens of the support are favoured; ±inf is
uniform on it. Infinity is written `inf` and `-inf` (JSON has no literal for it)."""


def _check_gpus(count: float | str) -> float | str:
    if not isinstance(count, str) and count > 1 and not count.is_integer():
        raise ValueError("must be a share of one GPU, up to 1, or a whole number")
    return count


GpuCount = Annotated[
    Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)],
    AfterValidator(_check_gpus),
]
"""GPUs of one engine, or a share of one (Ray has no other numbers); auto: what its model takes."""

Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
"""A number between 0 and 1, both excluded."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""A name that can stand in ids and file names: letters, digits, `_`, `.`, `-`."""
