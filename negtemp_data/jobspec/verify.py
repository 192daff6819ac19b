"""What decides whether a sample is good, as the job file writes it."""

from pydantic import Field

from negtemp_data.jobspec.checks import CheckConfig
from negtemp_data.jobspec.judges import JudgeConfig
from negtemp_data.jobspec.strict import StrictModel


class VerifyConfig(StrictModel):
    """What decides whether a sample is good. Empty: every completion is accepted."""

    checks: list[CheckConfig] = []
    """Programmatic checks, run first; the judge sees only what passes them all."""
    judge: JudgeConfig | None = None
    """The judge; null: checks alone decide."""
    attempts: int = Field(default=1, ge=1, le=100)
    """Times that a sample is generated, each with a seed of its own, until one is accepted."""
