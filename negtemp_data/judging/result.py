"""What a check has to say."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check."""

    name: str
    passed: bool
    detail: str
    """What was measured, or why that failed: one line, text of others cut and escaped."""
