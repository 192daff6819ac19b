"""Functions of the user's own, named in the job file as `package.module:function`."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from negtemp_data.errors import JobError, quote
from negtemp_data.jobspec import PythonCheckConfig
from negtemp_data.judging.result import CheckResult
from negtemp_data.judging.sample import Sample


def load_function(name: str, where: str) -> Callable[..., Any]:
    """The function; modules of the working directory are found too.

    Args:
        name: `package.module:function`.
        where: Path in the job file, for errors.

    Raises:
        JobError: There is no such module or function.
    """
    module_name, _, attribute = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module raises whatever it raises
        raise JobError(
            f"{where}: {name!r} can't be loaded: {type(error).__name__}: {error}; it is written as "
            "package.module:function, and the module must be importable where the run works."
        ) from error
    if not callable(found):
        raise JobError(f"{where}: {name!r} is no function but {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def check_by_function(config: PythonCheckConfig, sample: Sample) -> CheckResult:
    """What the function says of the sample; what it raises is a failed check."""
    try:
        # Where the module is loaded already, which it is after the first sample, this is quick.
        return _result_of(config, load_function(config.function, "verify.checks")(sample))
    # A user's function raises whatever it raises, and may try to end the process.
    except (Exception, SystemExit) as error:
        detail = f"{type(error).__name__}: {quote(str(error))}"
        return CheckResult(config.kind, False, detail)


def _result_of(config: PythonCheckConfig, answer: object) -> CheckResult:
    match answer:
        case bool() | np.bool():
            return CheckResult(config.kind, bool(answer), f"returned {bool(answer)}")
        case (bool() | np.bool() as passed, str(text)):
            return CheckResult(config.kind, bool(passed), quote(text))
    raise TypeError(f"must return a bool, or a bool and a text; it gave {quote(answer)}")
