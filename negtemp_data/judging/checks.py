"""Programmatic checks of one sample.

None needs a model, and none raises: a check that can't be carried out is a check that failed, with
its reason.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

from negtemp_data.jobspec import (
    CheckConfig,
    LengthCheckConfig,
    PerplexityCheckConfig,
    RegexCheckConfig,
    RepetitionCheckConfig,
)
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
    return [_run(check, sample) for check in checks]


def perplexity(logprobs: NDArray[np.float32], injected: Sequence[int]) -> float:
    """exp(−mean log-probability) of the tokens that were not injected; nan if there is none."""
    kept = np.delete(logprobs, list(injected))
    if not kept.size:
        return math.nan
    try:
        return math.exp(-float(kept.mean(dtype=np.float64)))
    except OverflowError:
        return math.inf


def _run(check: CheckConfig, sample: Sample) -> CheckResult:
    match check:
        case LengthCheckConfig(min_tokens=low, max_tokens=high):
            n_tokens = len(sample.token_ids)
            passed = low <= n_tokens and (high is None or n_tokens <= high)
            return CheckResult("length", passed, f"{n_tokens} tokens")
        case RepetitionCheckConfig(max_ratio=limit, n=n):
            ratio = _repeated_share(sample.token_ids, n)
            return CheckResult("repetition", ratio <= limit, f"{ratio:.3f} of {n}-grams repeated")
        case RegexCheckConfig():
            return _search(check, sample.completion)
        case PerplexityCheckConfig(max=limit):
            value = perplexity(sample.logprobs, sample.injected)
            # Comparing with nan is False: no token left to measure is not a pass.
            return CheckResult("perplexity", value <= limit, f"{value:.2f}")


def _repeated_share(token_ids: Sequence[int], n: int) -> float:
    grams = list(zip(*(token_ids[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _search(check: RegexCheckConfig, text: str) -> CheckResult:
    try:
        found = regex.search(check.pattern, text, timeout=_REGEX_TIMEOUT_S) is not None
    except TimeoutError:
        return CheckResult("regex", False, f"gave up after {_REGEX_TIMEOUT_S:g} s")
    return CheckResult("regex", found == check.match, "found" if found else "not found")
