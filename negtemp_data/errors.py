"""Every error that the project raises on purpose.

Each class says its *scope*, which is what a failure costs: `row` becomes a failed row of the data
set, `worker` costs a restart of the engine's process and its work is done again, `run` stops the
run, which can be resumed. `exit_code` is what the command line returns: 1 the run failed, 2 the
request was wrong and nothing started.

    NegtempError
    ├── RequestError            run, exit 2   something in the request has to change
    │   ├── JobError            the job file, or a --set
    │   ├── PromptSourceError   the prompts can't be opened or hold no row
    │   ├── ModelError          the model is unknown or can't be loaded
    │   ├── OutputError         the output can't be used: another job's, unwritable, not an output
    │   ├── OutputLockedError   another run writes to this output
    │   ├── ClusterError        a Ray cluster can't be reached, or can't take the job
    │   │   └── ClusterTokenError   it wants a token, or another one
    │   └── ExportError         nothing to export, or not in this format or to this place
    ├── RunError                run, exit 1   the run can't go on
    │   ├── EngineStartError    the engine does not start
    │   └── StorageError        disk full, output gone or read-only, a damaged file
    ├── EngineDeadError         worker        the engine died with requests in flight
    └── RowError                row           this sample can't be made or judged
        ├── PromptError         the prompt is unusable: empty, too long, wrong type
        ├── GenerationError     the engine refused or aborted the request
        └── JudgeError          the judge could not say anything
"""

from typing import ClassVar, Literal

Scope = Literal["row", "worker", "run"]

QUOTE_CHARS = 200
"""Prompt text and other people's input are cut at this many characters inside a message."""


def quote(value: object) -> str:
    """`value` as it may stand in an error message: one line, escaped, at most 200 characters."""
    text = repr(value)
    return text if len(text) <= QUOTE_CHARS else text[: QUOTE_CHARS - 1] + "…"


class NegtempError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one paragraph for the user."""

    scope: ClassVar[Scope] = "run"
    exit_code: ClassVar[int] = 1


class RequestError(NegtempError):
    """The request was wrong; nothing was started."""

    exit_code = 2


class JobError(RequestError):
    """The job file, or an override of it, does not describe a job."""


class PromptSourceError(RequestError):
    """The prompt source can't be opened, has an unknown format or no rows."""


class ModelError(RequestError):
    """The model is unknown, or its files are not there or not usable."""


class OutputError(RequestError):
    """The output folder belongs to another job, can't be written, or is no output at all."""


class OutputLockedError(RequestError):
    """Another run holds the output's lock."""


class ClusterError(RequestError):
    """The Ray cluster can't be reached, refuses the request, or can't see what the job needs."""


class ClusterTokenError(ClusterError):
    """The Ray cluster wants a token, or another one."""


class ExportError(RequestError):
    """The data set can't be exported like this; nothing was left at the destination."""


class RunError(NegtempError):
    """The run can't go on; what is committed stays, and `negtemp resume` continues."""


class EngineStartError(RunError):
    """The engine could not be started with the job's arguments."""


class StorageError(RunError):
    """Reading or writing the output failed."""


class EngineDeadError(NegtempError):
    """The engine died; its worker has to be replaced and its open requests done again."""

    scope = "worker"


class RowError(NegtempError):
    """One sample failed; it becomes a failed row with this error as its reason."""

    scope = "row"


class PromptError(RowError):
    """The prompt can't be used."""


class GenerationError(RowError):
    """The engine refused or aborted this request."""


class JudgeError(RowError):
    """The judge could not score this sample."""
