"""Programmatic checks of one sample.

None needs a model, and none fails a row: a check that can't be carried out is a check that failed,
with its reason.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
from negtemp_data.judging.duplicates import check_near_duplicate
from negtemp_data.judging.functions import check_by_function
from negtemp_data.judging.json_values import check_json_schema
from negtemp_data.judging.languages import check_language, check_script
from negtemp_data.judging.patterns import check_contains, check_regex
from negtemp_data.judging.result import CheckResult
from negtemp_data.judging.sample import Sample


async def run_checks(checks: Sequence[CheckConfig], sample: Sample) -> list[CheckResult]:
    """Results in the order of `checks`.

    Raises:
        RunError: Too many calls of the user's functions have not returned.
    """
    return [await _run(check, sample) for check in checks]


def perplexity(logprobs: NDArray[np.float32], injected: Sequence[int]) -> float:
    """exp(−mean log-probability) of the tokens that were not injected; nan if there is none."""
    kept = np.delete(logprobs, list(injected))
    if not kept.size:
        return math.nan
    try:
        return math.exp(-float(kept.mean(dtype=np.float64)))
    except OverflowError:
        return math.inf


async def _run(check: CheckConfig, sample: Sample) -> CheckResult:  # noqa: PLR0911
    match check:
        case LengthCheckConfig():
            return _check_length(check, sample)
        case RepetitionCheckConfig():
            return _check_repetition(check, sample)
        case PerplexityCheckConfig():
            return _check_perplexity(check, sample)
        case RegexCheckConfig():
            return check_regex(check, sample.completion)
        case ContainsCheckConfig():
            return check_contains(check, sample.completion)
        case JsonSchemaCheckConfig():
            return check_json_schema(check, sample.completion)
        case AnswerCheckConfig():
            return check_answer(check, sample)
        case LanguageCheckConfig():
            return check_language(check, sample.completion)
        case ScriptCheckConfig():
            return check_script(check, sample.completion)
        case NearDuplicateCheckConfig():
            return check_near_duplicate(check, sample)
        case PythonCheckConfig():
            return await check_by_function(check, sample)


def _check_length(config: LengthCheckConfig, sample: Sample) -> CheckResult:
    n_tokens = len(sample.token_ids)
    is_short_enough = config.max_tokens is None or n_tokens <= config.max_tokens
    passed = config.min_tokens <= n_tokens and is_short_enough
    return CheckResult(config.kind, passed, f"{n_tokens} tokens")


def _check_repetition(config: RepetitionCheckConfig, sample: Sample) -> CheckResult:
    n = config.n
    grams = list(zip(*(sample.token_ids[i:] for i in range(n)), strict=False))
    ratio = 1 - len(set(grams)) / len(grams) if grams else 0.0
    return CheckResult(config.kind, ratio <= config.max_ratio, f"{ratio:.3f} of {n}-grams repeated")


def _check_perplexity(config: PerplexityCheckConfig, sample: Sample) -> CheckResult:
    value = perplexity(sample.logprobs, sample.injected)
    # Comparing with nan is False: no token left to measure is not a pass.
    return CheckResult(config.kind, value <= config.max, f"{value:.2f}")
