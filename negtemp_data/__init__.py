"""Judge-verified, high-variance completions from scheduled negative-temperature sampling.

    import negtemp_data

    result = negtemp_data.run("job.yaml")
    print(negtemp_data.status("out/example").totals)
    submission = negtemp_data.submit("job.yaml", "http://HOST:8265")
    negtemp_data.Cluster(submission.address).stop(submission.id)

Importing the package loads nothing heavy: torch, ray and vllm come in with the part that needs
them (`negtemp_data.sampling`, `negtemp_data.pipeline`, `negtemp_data.engine`).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negtemp_data.api import (
        RunStatus,
        calibrate,
        check,
        export_dataset,
        resume,
        run,
        status,
        submit,
    )
    from negtemp_data.cluster.jobs import Cluster
    from negtemp_data.export.reader import open_dataset
    from negtemp_data.jobspec import Job, load_job

__version__ = "0.1.0"

__all__ = [
    "Cluster",
    "Job",
    "RunStatus",
    "calibrate",
    "check",
    "export_dataset",
    "load_job",
    "open_dataset",
    "resume",
    "run",
    "status",
    "submit",
]

_HOMES = {
    "Cluster": "cluster.jobs",
    "Job": "jobspec",
    "load_job": "jobspec",
    "open_dataset": "export.reader",
}


def __getattr__(name: str) -> Any:
    """Loads a public name's module when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'api')}")
    return getattr(module, name)
