"""Whether a completion is a JSON value of a given schema.

Completions are hostile: what JSON does not have (NaN, Infinity) or leaves open (a key twice,
numbers that no double holds) is refused, and so is nesting that would end the process.
"""

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from negtemp_data.errors import quote
from negtemp_data.jobspec import JsonSchemaCheckConfig, compile_schema
from negtemp_data.judging.result import CheckResult

if TYPE_CHECKING:
    from jsonschema_rs import Validator

MAX_DEPTH = 200
"""jsonschema_rs recurses without a limit of its own: 50,000 lists in each other and a schema that
refers to itself overflow the stack. Source: jsonschema-rs 0.61.0, tried."""


def check_json_schema(config: JsonSchemaCheckConfig, completion: str) -> CheckResult:
    """Whether all of the completion is one JSON value that fits."""
    try:
        value = _read_json(completion)
    except ValueError as error:
        return CheckResult(config.kind, False, f"no JSON: {error}")
    try:
        misfit = next(_validator(json.dumps(config.json_schema)).iter_errors(value), None)
    except ValueError as error:  # a text that is no Unicode
        return CheckResult(config.kind, False, f"can't be validated: {quote(str(error))}")
    if misfit is None:
        return CheckResult(config.kind, True, "fits the schema")
    place = f"at {quote(misfit.instance_path)}: " if misfit.instance_path else ""
    return CheckResult(config.kind, False, place + _on_one_line(misfit.message))


def _read_json(text: str) -> Any:
    """Raises only ValueError, whose message may stand in a detail."""
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_read_float,
            object_pairs_hook=_read_object,
        )
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from error
    if _is_deep(value):
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it has no {name}")


def _read_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{quote(text)} is larger than a double can be")
    return value


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        children: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                children += node.values()
            elif isinstance(node, list):
                children += node
        level = children
    return any(isinstance(node, dict | list) for node in level)


def _on_one_line(message: str) -> str:
    """The validator's message, which names keys and parts of the schema."""
    return message if message.isprintable() and len(message) <= 200 else quote(message)


@lru_cache(maxsize=16)
def _validator(schema: str) -> "Validator":
    return compile_schema(json.loads(schema))
