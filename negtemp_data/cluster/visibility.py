"""What the machines of a cluster see of this machine's files, and a job rewritten for them.

Large inputs and the output do not travel: they are URIs, or lie where the cluster sees them too. A
path that it can't see is refused here, before anything starts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from negtemp_data.engine.adapter import is_known_adapter
from negtemp_data.engine.catalogue import CATALOGUE, is_known
from negtemp_data.errors import ClusterError, ModelError
from negtemp_data.jobspec import (
    Job,
    apply_overrides,
    build_job,
    judges_with_engines,
)


@dataclass(frozen=True)
class Visibility:
    """Which local paths mean the same on every machine of the cluster."""

    is_this_machine: bool
    """The cluster's only machine is this one, so it sees everything."""
    shared: tuple[Path, ...] = ()
    """Folders that are mounted at the same place everywhere, by the user's word."""

    def sees(self, path: Path) -> bool:
        """Whether the cluster finds at `path`, which is absolute, what this machine finds there."""
        return self.is_this_machine or any(path.is_relative_to(folder) for folder in self.shared)

    @property
    def model_cache(self) -> dict[str, str]:
        """Environment that keeps models on the first shared folder: one download for all machines.

        Empty where nothing is shared, so that each machine keeps its own.
        """
        if not self.shared:
            return {}
        folder = self.shared[0] / "negtemp-cache"
        return {"NEGTEMP_CACHE": str(folder), "HF_HUB_CACHE": str(folder / "hub")}

    def require(self, path: Path, field: str) -> None:
        """Refuses a path that the cluster can't see.

        Raises:
            ClusterError: Names the field and what to write instead.
        """
        if not self.sees(path):
            raise ClusterError(
                f"{field}: {path} is a path of this machine, which the cluster can't see; give a "
                "URI (s3://, gs://, hf://), or a folder that all its machines mount at the same "
                "place, and name that with --shared-path (in a manifest: --volume)."
            )


def shared_folders(paths: Sequence[str | Path]) -> tuple[Path, ...]:
    """Folders as `Visibility.shared` takes them.

    Raises:
        ClusterError: One is not absolute, so it can't be the same everywhere.
    """
    folders = tuple(Path(path) for path in paths)
    for folder in folders:
        if not folder.is_absolute():
            raise ClusterError(f"--shared-path {folder}: has to be an absolute path.")
    return folders


def localise(job: Job, visibility: Visibility) -> Job:
    """`job` with absolute paths for output and models; its prompts are left alone.

    Raises:
        ClusterError: One of them is not visible to the cluster.
        ModelError: A model is no name, folder or Hugging Face id.
    """
    changes = {}
    if "://" not in job.output.path:
        path = Path(job.output.path).absolute()
        visibility.require(path, "output.path")
        changes["output.path"] = str(path)
    models = {"generate.model": job.generate.model, "generate.lora": job.generate.lora}
    for name, judge in judges_with_engines(job.verify.judge):
        models[f"{name}.model"] = judge.model
    for field, model in models.items():
        folder = _local_folder(model, field)
        if folder is not None:
            visibility.require(folder, field)
            changes[field] = str(folder)
    overrides = [f"{field}={json.dumps(value)}" for field, value in changes.items()]
    return build_job(apply_overrides(job.model_dump(mode="json"), overrides), f"job {job.name}")


def _local_folder(model: str | None, field: str) -> Path | None:
    """The absolute path of a model that is a folder; None: it is no folder.

    Raises:
        ModelError: It is nothing at all.
    """
    if model is None or model in CATALOGUE:
        return None
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.absolute()
    known = is_known_adapter(model) if field == "generate.lora" else is_known(model)
    if not known:
        raise ModelError(
            f"{field}: {model!r} is no name that `negtemp models` lists, no local folder and no "
            "Hugging Face id."
        )
    return None
