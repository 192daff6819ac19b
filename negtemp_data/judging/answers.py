"""Whether a completion gives the right answer: a number, a choice, or a whole text."""

import json
from decimal import Decimal
from typing import Literal

import regex

from negtemp_data.errors import quote
from negtemp_data.jobspec import AnswerCheckConfig
from negtemp_data.judging.numbers import is_close, read_number
from negtemp_data.judging.patterns import find_last
from negtemp_data.judging.result import CheckResult
from negtemp_data.judging.sample import Sample

Form = Literal["number", "exact", "choice"]

_CHOICE = regex.compile(
    r"""
    (?<! [\p{Latin}\p{N}_] ) (?<! [\p{Latin}\p{N}]['’.-] )
    [A-Z]
    (?! [\p{Latin}\p{N}_+#] | ['’.-]\p{Latin} )     # not of I'm, U.S., X-ray, C++
    (?! (?<=I) \s (?!is\b) \p{Ll} )                 # nor the pronoun
    """,
    regex.VERBOSE,
)
_BOX = "\\boxed{"
_ENDS = ".,;:!?…。，！？、\"'“”‘’«»„`()[]{}*_ "
"""What may stand around a text without making it another one; a sign or a unit may not."""


def check_answer(config: AnswerCheckConfig, sample: Sample) -> CheckResult:
    """Whether the completion's answer is that of the column."""
    try:
        expected = _expect(config, sample.source)
        found = _read(config.form, _place(config, sample.completion))
    except (ValueError, TimeoutError) as error:
        return CheckResult(config.kind, False, str(error))
    if isinstance(found, Decimal) and isinstance(expected, Decimal):
        passed = is_close(found, expected, config.tolerance)
    else:
        passed = found == expected
    detail = f"found {quote(str(found))}, expected {quote(str(expected))}"
    return CheckResult(config.kind, passed, detail)


def _expect(config: AnswerCheckConfig, source: str | None) -> Decimal | str:
    """The right answer. Every reason that there is none is a ValueError."""
    name = quote(config.column)
    try:
        # Decimals keep what a float would round, and all digits of a long integer.
        row = json.loads(source or "{}", parse_float=Decimal, parse_int=Decimal)
    except (ValueError, RecursionError) as error:
        raise ValueError("the input row is no JSON that can be read") from error
    if not isinstance(row, dict) or config.column not in row:
        known = quote(sorted(row)) if row and isinstance(row, dict) else "none"
        raise ValueError(f"the input row has no column {name}; it has {known}")
    value = row[config.column]
    if isinstance(value, Decimal):
        if config.form == "number":
            return value
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"column {name} holds no answer but {quote(value)}")
    try:
        return _read(config.form, _last_box(value) or value)
    except ValueError as error:
        raise ValueError(f"column {name} holds {quote(value)}: {error}") from error


def _place(config: AnswerCheckConfig, completion: str) -> str:
    """The part of the completion to read."""
    if config.extract is None:
        return _last_box(completion) or completion
    match = find_last(regex.compile(config.extract), completion)
    if match is None:
        raise ValueError("`extract` is not found")
    group = match[1] if match.re.groups else None
    return str(match[0] if group is None else group)


def _last_box(text: str) -> str | None:
    """What stands in the last LaTeX box; None where there is none that ends."""
    begin = text.rfind(_BOX)
    if begin < 0:
        return None
    begin += len(_BOX)
    depth = 1
    for match in regex.finditer(r"[{}]", text, pos=begin):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return text[begin : match.start()]
    return None


def _read(form: Form, text: str) -> Decimal | str:
    if form == "number":
        return read_number(text)
    plain = " ".join(text.casefold().split()).strip(_ENDS)
    if form == "exact":
        if not plain:
            raise ValueError("there is nothing to compare")
        return plain
    # A letter that is all there is may be a small one.
    match = find_last(_CHOICE, plain.upper() if len(plain) == 1 else text)
    if match is None:
        raise ValueError("no single letter found")
    return match[0]
