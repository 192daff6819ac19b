"""Programmatic checks of one sample.

None needs a model, and none raises: a check that can't be carried out is a check that failed, with
its reason.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
import regex
from numpy.typing import NDArray

from negtemp_data.errors import quote
from negtemp_data.jobspec import (
    AnswerCheckConfig,
    CheckConfig,
    ContainsCheckConfig,
    JsonSchemaCheckConfig,
    LanguageCheckConfig,
    LengthCheckConfig,
    NearDuplicateCheckConfig,
    PerplexityCheckConfig,
    PythonCheckConfig,
    RegexCheckConfig,
    RepetitionCheckConfig,
    ScriptCheckConfig,
)
from negtemp_data.judging.answers import check_answer
from negtemp_data.judging.duplicates import check_duplicate
from negtemp_data.judging.functions import load_function
from negtemp_data.judging.languages import check_language, check_script
from negtemp_data.judging.sample import Sample

_REGEX_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check; `detail` is what was measured."""

    name: str
    passed: bool
    detail: str


def run_checks(checks: Sequence[CheckConfig], sample: Sample) -> list[CheckResult]:
    """Results in the order of `checks`."""
    return [CheckResult(check.kind, *_run(check, sample)) for check in checks]


def perplexity(logprobs: NDArray[np.float32], injected: Sequence[int]) -> float:
    """exp(−mean log-probability) of the tokens that were not injected; nan if there is none."""
    kept = np.delete(logprobs, list(injected))
    if not kept.size:
        return math.nan
    try:
        return math.exp(-float(kept.mean(dtype=np.float64)))
    except OverflowError:
        return math.inf


def _run(check: CheckConfig, sample: Sample) -> tuple[bool, str]:  # noqa: PLR0911
    match check:
        case LengthCheckConfig(min_tokens=low, max_tokens=high):
            n_tokens = len(sample.token_ids)
            return low <= n_tokens and (high is None or n_tokens <= high), f"{n_tokens} tokens"
        case RepetitionCheckConfig(max_ratio=limit, n=n):
            ratio = _repeated_share(sample.token_ids, n)
            return ratio <= limit, f"{ratio:.3f} of {n}-grams repeated"
        case RegexCheckConfig():
            return _search(check, sample.completion)
        case PerplexityCheckConfig(max=limit):
            value = perplexity(sample.logprobs, sample.injected)
            # Comparing with nan is False: no token left to measure is not a pass.
            return value <= limit, f"{value:.2f}"
        case ContainsCheckConfig():
            return _contains(check, sample.completion)
        case JsonSchemaCheckConfig():
            return _fits_schema(check, sample.completion)
        case AnswerCheckConfig():
            return check_answer(check, sample.completion, sample.source)
        case LanguageCheckConfig():
            return check_language(check, sample.completion)
        case ScriptCheckConfig():
            return check_script(check, sample.completion)
        case NearDuplicateCheckConfig():
            return check_duplicate(check, sample.completion, sample.siblings)
        case PythonCheckConfig():
            return _call(check, sample)


def _repeated_share(token_ids: Sequence[int], n: int) -> float:
    grams = list(zip(*(token_ids[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _search(check: RegexCheckConfig, text: str) -> tuple[bool, str]:
    try:
        found = regex.search(check.pattern, text, timeout=_REGEX_TIMEOUT_S) is not None
    except TimeoutError:
        return False, f"gave up after {_REGEX_TIMEOUT_S:g} s"
    return found == check.match, "found" if found else "not found"


def _contains(check: ContainsCheckConfig, text: str) -> tuple[bool, str]:
    def has(part: str) -> bool:
        return part.casefold() in folded if check.ignore_case else part in text

    folded = text.casefold() if check.ignore_case else ""
    for part in check.all:
        if not has(part):
            return False, f"{quote(part)} is missing"
    for part in check.none:
        if has(part):
            return False, f"{quote(part)} is there"
    if check.any and not any(map(has, check.any)):
        return False, f"none of {quote(check.any)} is there"
    return True, "as wanted"


def _fits_schema(check: JsonSchemaCheckConfig, text: str) -> tuple[bool, str]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return False, f"no JSON: {quote(str(error))}"
    try:
        fault = next(_validator(json.dumps(check.json_schema)).iter_errors(value), None)
    except (ValueError, RecursionError, OverflowError) as error:
        return False, f"could not be checked: {quote(str(error))}"
    if fault is None:
        return True, "fits the schema"
    place = "".join(f"[{key!r}]" for key in fault.instance_path)
    return False, f"{place or 'the value'}: {quote(fault.message)}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


@lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    import jsonschema_rs  # noqa: PLC0415

    return jsonschema_rs.validator_for(json.loads(schema))


def _call(check: PythonCheckConfig, sample: Sample) -> tuple[bool, str]:
    try:
        answer = load_function(check.function, "verify.checks")(sample)
    except Exception as error:  # a user's function raises whatever it raises
        return False, f"{type(error).__name__}: {quote(str(error))}"
    if isinstance(answer, bool):
        return answer, "passed" if answer else "not passed"
    match answer:
        case (bool() as passed, str() as detail):
            return passed, detail
    return (
        False,
        f"{check.function} must return a bool, or a bool and a text; it gave {quote(answer)}",
    )
