"""Field types for what the `regex` library reads: patterns, and the scripts of Unicode."""

from typing import Annotated

import regex
from pydantic import AfterValidator, Field, WithJsonSchema

from negtemp_data.errors import quote


def check_pattern(pattern: str, *, prefix: str = "") -> str:
    """The pattern, if it is one; `prefix` goes before it in the message.

    Raises:
        ValueError: It is no regular expression.
    """
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{prefix}{quote(pattern)} is no regular expression: {error}") from error
    return pattern


def is_script(name: str) -> bool:
    """Whether Unicode has a script of this name; case and `_` don't matter."""
    if not regex.fullmatch(r"[A-Za-z_]+", name):
        return False
    try:
        regex.compile(rf"\p{{Script={name}}}")
    except regex.error:
        return False
    return True


def check_script(name: str) -> str:
    """The name, if it is a script's.

    Raises:
        ValueError: It is none.
    """
    if not is_script(name):
        raise ValueError(f"{quote(name)} is no script of Unicode; write for example Latin")
    return name


Pattern = Annotated[str, Field(min_length=1), AfterValidator(check_pattern)]
"""A regular expression."""

Script = Annotated[
    str,
    AfterValidator(check_script),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z_]+$"}),
]
"""Name of a script of Unicode."""
