"""Whether a completion gives the right answer: numbers, choices, whole texts."""

import json
import math
from typing import Any

import regex

from negtemp_data.errors import quote
from negtemp_data.jobspec import AnswerCheckConfig

TIMEOUT_S = 1.0

# A sign counts where nothing stands before it: in 3-4 it is none.
_NUMBER = regex.compile(
    r"(?<![\w.,])[-+−]?\p{Sc}?\s?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w)"
    r"|(?<![\w.,])[-+−]?\.\d+(?!\w)"
)
_CHOICE = regex.compile(r"(?<![\p{L}\p{N}])\p{Lu}(?![\p{L}\p{N}'’])")


class NoAnswerError(Exception):
    """There is nothing to compare; says why."""


def check_answer(
    config: AnswerCheckConfig, completion: str, source: str | None
) -> tuple[bool, str]:
    """Whether the completion's answer is that of the column, and what was compared."""
    try:
        expected = _expected(config, source)
        found = _extract(config, completion)
        if config.form == "number":
            is_right = _is_close(_to_number(found), _to_number(str(expected)), config.tolerance)
        elif config.form == "choice":
            is_right = found.casefold() == str(expected).strip().casefold()
        else:
            is_right = _plain(found) == _plain(str(expected))
    except NoAnswerError as error:
        return False, str(error)
    return is_right, f"found {quote(found)}, expected {quote(expected)}"


def _expected(config: AnswerCheckConfig, source: str | None) -> Any:
    columns = json.loads(source) if source else {}
    if config.column not in columns:
        known = ", ".join(columns) or "none"
        raise NoAnswerError(f"the input row has no column {config.column!r}; it has {known}")
    value = columns[config.column]
    if isinstance(value, bool | list | dict) or value is None:
        raise NoAnswerError(f"column {config.column!r} holds no answer: {quote(value)}")
    return value


def _extract(config: AnswerCheckConfig, completion: str) -> str:
    if config.extract is not None:
        pattern = regex.compile(config.extract)
    elif config.form == "exact":
        return completion
    else:
        pattern = _NUMBER if config.form == "number" else _CHOICE
    last = None
    try:
        for last in pattern.finditer(completion, timeout=TIMEOUT_S):  # noqa: B007
            pass
    except TimeoutError as error:
        raise NoAnswerError(f"gave up after {TIMEOUT_S:g} s") from error
    if last is None:
        raise NoAnswerError("no answer found")
    return str(last[1] if pattern.groups and last[1] is not None else last[0])


def _to_number(text: str) -> float:
    plain = regex.sub(r"[\p{Sc}\s,%]", "", text).replace("−", "-")
    try:
        number = float(plain)
    except ValueError as error:
        raise NoAnswerError(f"{quote(text)} is no number") from error
    if not math.isfinite(number):
        raise NoAnswerError(f"{quote(text)} is no finite number")
    return number


def _is_close(found: float, expected: float, tolerance: float) -> bool:
    return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance * 1e-6)


def _plain(text: str) -> str:
    """Without case, runs of white space, and punctuation at the ends."""
    return regex.sub(r"^[\p{P}\s]+|[\p{P}\s]+$", "", " ".join(text.casefold().split()))
