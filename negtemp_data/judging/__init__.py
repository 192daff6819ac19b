"""What decides whether a sample is good: checks first, then a judge for what passes them.

A judge is handed its engine and never builds one. Nothing here knows of Ray, shards or files.
"""

from negtemp_data.judging.build import build_judge, check_environment, check_functions
from negtemp_data.judging.checks import perplexity, run_checks
from negtemp_data.judging.judge import CombinedJudge, CriterionScore, Judge, Judgement
from negtemp_data.judging.result import CheckResult
from negtemp_data.judging.rubric import RubricJudge
from negtemp_data.judging.sample import Sample
from negtemp_data.judging.verdict import Verdict, decide

__all__ = [
    "CheckResult",
    "CombinedJudge",
    "CriterionScore",
    "Judge",
    "Judgement",
    "RubricJudge",
    "Sample",
    "Verdict",
    "build_judge",
    "check_environment",
    "check_functions",
    "decide",
    "perplexity",
    "run_checks",
]
