"""From the job's judge to one that can be asked."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from negtemp_data.jobspec import (
    CombinedJudgeConfig,
    EndpointJudgeConfig,
    EngineJudgeConfig,
    JudgeConfig,
    LikelihoodJudgeConfig,
    PairwiseJudgeConfig,
    PythonCheckConfig,
    PythonJudgeConfig,
    RubricJudgeConfig,
    SingleJudgeConfig,
    VerifyConfig,
    single_judges,
)
from negtemp_data.judging.asking import JudgingEngine
from negtemp_data.judging.endpoint import EndpointJudge, read_key
from negtemp_data.judging.functions import load_function
from negtemp_data.judging.judge import CombinedJudge, Judge
from negtemp_data.judging.likelihood import LikelihoodJudge, LikelihoodReader
from negtemp_data.judging.pairwise import PairwiseJudge
from negtemp_data.judging.python import PythonJudge
from negtemp_data.judging.reward import RewardJudge
from negtemp_data.judging.rubric import RubricJudge

if TYPE_CHECKING:
    from negtemp_data.engine.tokens import PromptEncoder

EngineOf = Callable[[str, EngineJudgeConfig], "tuple[JudgingEngine, PromptEncoder]"]
"""Gives the engine of the judge at a path of the job file, and an encoder for its prompts; the same
engine to all judges that share one."""


def build_judge(config: JudgeConfig, engine_of: EngineOf, generator_tokenizer: Any) -> Judge:
    """The job's judge.

    Args:
        config: The judge as the job describes it.
        engine_of: Asked once for each judge that needs an engine. Likelihood judges on one engine
            read a text once for all of them.
        generator_tokenizer: What the samples' tokens are in.

    Raises:
        JobError: A judge does not suit its model, or a function can't be loaded.
    """
    readers: dict[int, LikelihoodReader] = {}

    def reader_on(engine: JudgingEngine, encoder: "PromptEncoder") -> LikelihoodReader:
        return readers.setdefault(id(engine), LikelihoodReader(engine, encoder))

    judges = [
        _build(path, single, engine_of, reader_on, generator_tokenizer)
        for path, single in single_judges(config)
    ]
    if isinstance(config, CombinedJudgeConfig):
        return CombinedJudge(config, dict(zip(config.judges, judges, strict=True)))
    return judges[0]


def _build(
    path: str,
    config: SingleJudgeConfig,
    engine_of: EngineOf,
    reader_on: "Callable[[JudgingEngine, PromptEncoder], LikelihoodReader]",
    generator_tokenizer: Any,
) -> Judge:
    if isinstance(config, EndpointJudgeConfig):
        return EndpointJudge(config, path)
    if isinstance(config, PythonJudgeConfig):
        return PythonJudge(config, path)
    engine, encoder = engine_of(path, config)
    if isinstance(config, RubricJudgeConfig):
        return RubricJudge(config, engine, encoder, path)
    if isinstance(config, PairwiseJudgeConfig):
        return PairwiseJudge(config, engine, encoder, path)
    if isinstance(config, LikelihoodJudgeConfig):
        return LikelihoodJudge(config, reader_on(engine, encoder), generator_tokenizer)
    return RewardJudge(config, engine, encoder)


def check_functions(verify: VerifyConfig) -> None:
    """Loads the functions of a job's checks and judges.

    Raises:
        JobError: One can't be loaded.
    """
    for index, check in enumerate(verify.checks):
        if isinstance(check, PythonCheckConfig):
            load_function(check.function, f"verify.checks[{index}].function")
    for path, judge in single_judges(verify.judge):
        if isinstance(judge, PythonJudgeConfig):
            load_function(judge.function, f"{path}.function")


def check_environment(verify: VerifyConfig) -> None:
    """What a job's checks and judges need of the machine that they run on: functions and keys.

    Raises:
        JobError: A function can't be loaded, or a key is not set.
    """
    check_functions(verify)
    for path, judge in single_judges(verify.judge):
        if isinstance(judge, EndpointJudgeConfig):
            read_key(judge, path)
