"""Checks that look for texts, and the search with a time limit behind them."""

import time

import regex

from negtemp_data.errors import quote
from negtemp_data.jobspec import ContainsCheckConfig, RegexCheckConfig
from negtemp_data.judging.result import CheckResult

TIMEOUT_S = 1.0
"""Longest time that one pattern may take with one completion."""


def check_regex(config: RegexCheckConfig, completion: str) -> CheckResult:
    """Whether the pattern is found, or is not, as wanted."""
    try:
        found = regex.search(config.pattern, completion, timeout=TIMEOUT_S) is not None
    except TimeoutError:
        return CheckResult(config.kind, False, f"gave up after {TIMEOUT_S:g} s")
    return CheckResult(config.kind, found == config.match, "found" if found else "not found")


def check_contains(config: ContainsCheckConfig, completion: str) -> CheckResult:
    """Whether the texts are there, or are not, as wanted."""

    def has(part: str) -> bool:
        return (part.casefold() if config.ignore_case else part) in text

    text = completion.casefold() if config.ignore_case else completion
    for part in config.all:
        if not has(part):
            return CheckResult(config.kind, False, f"{quote(part)} is missing")
    if config.any and not any(map(has, config.any)):
        return CheckResult(config.kind, False, f"none of {quote(config.any)} is there")
    for part in config.none:
        if has(part):
            return CheckResult(config.kind, False, f"{quote(part)} is there")
    return CheckResult(config.kind, True, "as wanted")


def find_last(pattern: "regex.Pattern[str]", text: str) -> "regex.Match[str] | None":
    """The pattern's last match.

    Raises:
        TimeoutError: It takes too long; the message says so.
    """
    last = None
    deadline = time.monotonic() + TIMEOUT_S
    try:
        for last in pattern.finditer(text, timeout=TIMEOUT_S):  # noqa: B007
            # The library's limit does not count the time between matches.
            if time.monotonic() > deadline:
                raise TimeoutError
    except TimeoutError as error:
        raise TimeoutError(f"gave up after {TIMEOUT_S:g} s") from error
    return last
