"""JSON Schemas that a job file holds, compiled. Reads neither files nor the network."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from negtemp_data.errors import quote

if TYPE_CHECKING:
    from jsonschema_rs import Validator


def compile_schema(schema: Mapping[str, Any]) -> "Validator":
    """The schema, ready to validate with.

    Formats are checked in every draft, though the later ones would let them pass unread. Messages
    don't show the values.

    Raises:
        ValueError: It is no JSON Schema, or refers to one that lies elsewhere.
    """
    # Takes 30 ms, which only jobs with such a check should pay.
    import jsonschema_rs  # noqa: PLC0415

    try:
        return jsonschema_rs.validator_for(
            dict(schema), offline=True, validate_formats=True, mask="the value"
        )
    except ValueError as error:
        # What is no Unicode, or nested too deeply, is a plain ValueError without a `message`.
        reason = quote(getattr(error, "message", str(error)))
        raise ValueError(f"is no JSON Schema that can be used: {reason}") from error
