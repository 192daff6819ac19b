"""The strict base of every job-file model, and the field types that they share.

Knows nothing of files, engines or commands.
"""

import math
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)


class StrictModel(BaseModel):
    """Unknown keys and wrong types are errors; instances are immutable.

    Docstrings under attributes become the descriptions of the JSON Schema.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


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

Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
"""A number between 0 and 1, both excluded."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""A name that can stand in ids and file names: letters, digits, `_`, `.`, `-`."""
