"""What the user asks for: the job file's models, loading, overrides, fingerprint, schema.

Imports nothing else of the project but its errors, and nothing heavy.
"""

from negtemp_data.jobspec.job import GenerateConfig, Job, OutputConfig, PromptsConfig
from negtemp_data.jobspec.load import apply_overrides, build_job, load_job, read_yaml, write_job
from negtemp_data.jobspec.schedules import (
    BaseConfig,
    EveryConfig,
    RateConfig,
    RuleConfig,
    ScheduleConfig,
    SupportConfig,
    VocabularyConfig,
)
from negtemp_data.jobspec.verify import (
    CRITERIA,
    CheckConfig,
    CriterionConfig,
    JudgeConfig,
    LengthCheckConfig,
    PerplexityCheckConfig,
    RegexCheckConfig,
    RepetitionCheckConfig,
    VerifyConfig,
)

__all__ = [
    "CRITERIA",
    "BaseConfig",
    "CheckConfig",
    "CriterionConfig",
    "EveryConfig",
    "GenerateConfig",
    "Job",
    "JudgeConfig",
    "LengthCheckConfig",
    "OutputConfig",
    "PerplexityCheckConfig",
    "PromptsConfig",
    "RateConfig",
    "RegexCheckConfig",
    "RepetitionCheckConfig",
    "RuleConfig",
    "ScheduleConfig",
    "SupportConfig",
    "VerifyConfig",
    "VocabularyConfig",
    "apply_overrides",
    "build_job",
    "load_job",
    "read_yaml",
    "write_job",
]
