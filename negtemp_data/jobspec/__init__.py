"""What the user asks for: the job file's models, loading, overrides, fingerprint, schema.

Imports nothing else of the project but its errors, and nothing heavy.
"""

from negtemp_data.jobspec.base import (
    AdaptiveBaseConfig,
    AnnealBaseConfig,
    AnnealConfig,
    Base,
    CandidatesConfig,
    ConstantBaseConfig,
    DynatempConfig,
    EdtConfig,
    PieceConfig,
    TrackBaseConfig,
)
from negtemp_data.jobspec.candidates import (
    TOKEN_CLASSES,
    Support,
    SupportConfig,
    VocabularyConfig,
)
from negtemp_data.jobspec.job import (
    GenerateConfig,
    Job,
    OutputConfig,
    PromptsConfig,
    StructuredConfig,
)
from negtemp_data.jobspec.load import (
    apply_overrides,
    build_job,
    explain_errors,
    load_job,
    read_yaml,
    write_job,
)
from negtemp_data.jobspec.schedules import RuleConfig, ScheduleConfig
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
from negtemp_data.jobspec.when import (
    AfterConfig,
    AtConfig,
    EntropyBoundConfig,
    EntropyConfig,
    EveryConfig,
    MarginBoundConfig,
    MarginConfig,
    RateConfig,
    When,
)

__all__ = [
    "CRITERIA",
    "TOKEN_CLASSES",
    "AdaptiveBaseConfig",
    "AfterConfig",
    "AnnealBaseConfig",
    "AnnealConfig",
    "AtConfig",
    "Base",
    "CandidatesConfig",
    "CheckConfig",
    "ConstantBaseConfig",
    "CriterionConfig",
    "DynatempConfig",
    "EdtConfig",
    "EntropyBoundConfig",
    "EntropyConfig",
    "EveryConfig",
    "GenerateConfig",
    "Job",
    "JudgeConfig",
    "LengthCheckConfig",
    "MarginBoundConfig",
    "MarginConfig",
    "OutputConfig",
    "PerplexityCheckConfig",
    "PieceConfig",
    "PromptsConfig",
    "RateConfig",
    "RegexCheckConfig",
    "RepetitionCheckConfig",
    "RuleConfig",
    "ScheduleConfig",
    "StructuredConfig",
    "Support",
    "SupportConfig",
    "TrackBaseConfig",
    "VerifyConfig",
    "VocabularyConfig",
    "When",
    "apply_overrides",
    "build_job",
    "explain_errors",
    "load_job",
    "read_yaml",
    "write_job",
]
