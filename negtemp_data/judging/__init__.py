"""What decides whether a sample is good: checks first, then a judge for what passes them.

The judge is handed an engine and never builds one. Nothing here knows of Ray, shards or files.
"""

from negtemp_data.judging.checks import CheckResult, Sample, perplexity, run_checks
from negtemp_data.judging.rubric import CriterionScore, Judgement, RubricJudge
from negtemp_data.judging.verdict import Verdict, decide

__all__ = [
    "CheckResult",
    "CriterionScore",
    "Judgement",
    "RubricJudge",
    "Sample",
    "Verdict",
    "decide",
    "perplexity",
    "run_checks",
]
