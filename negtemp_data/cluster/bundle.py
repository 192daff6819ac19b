"""The folder that travels with a job: job file, small prompt files, this package, the user's code.

The cluster unpacks it as the working directory of the driver and of every worker, so that
`python -m negtemp_data` finds the package there.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from negtemp_data.cluster.visibility import Visibility, localise
from negtemp_data.errors import ClusterError, PromptSourceError
from negtemp_data.jobspec import (
    EndpointJudgeConfig,
    Job,
    apply_overrides,
    build_job,
    single_judges,
    write_job,
)
from negtemp_data.prompts import source_digest
from negtemp_data.prompts.sources import find_files

MAX_BUNDLE_BYTES = 64 << 20
"""Prompt files and the user's working directory together. Ray keeps the bundle in the memory of the
head, so what is larger belongs on storage."""

JOB_FILE = "job.yaml"
_PROMPTS = "negtemp-prompts"
_LEFT_OUT = (".git", ".venv", "__pycache__", "out")


@dataclass(frozen=True)
class Bundle:
    """A job ready to travel."""

    job: Job
    """As the cluster runs it."""
    id: str
    """Follows from the job and its prompts: the same submission has the same id."""
    keys: tuple[str, ...]
    """Environment variables that the cluster has to have: names only, values never travel."""


def write_bundle(
    job: Job, folder: Path, visibility: Visibility, working_dir: str | Path | None = None
) -> Bundle:
    """Fills `folder` with what `job` needs on the cluster.

    Args:
        job: The job as it was loaded here.
        folder: An empty folder.
        visibility: What the cluster sees of this machine.
        working_dir: The user's own modules and files, put beside ours.

    Raises:
        ClusterError: A path is not visible to the cluster, or the whole is too large.
        PromptSourceError: The prompts can't be found.
    """
    write_code(folder, working_dir)
    job = localise(job, visibility)
    source = job.prompts.source
    digest = source if "://" in source else source_digest(job.prompts)
    if "://" not in source:
        source = _pack_prompts(source, folder, visibility)
    text = json.dumps([job.model_dump(mode="json", exclude={"prompts": {"source"}}), digest])
    identity = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    data = apply_overrides(job.model_dump(mode="json"), [f"prompts.source={json.dumps(source)}"])
    job = build_job(data, f"job {job.name}")
    (folder / JOB_FILE).write_text(write_job(job), encoding="utf-8")
    # Kubernetes takes it for a name too: KubeRay's have 47 characters at most, a letter first.
    name = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")
    name = (f"job-{name}" if name[:1].isdigit() else name)[:36].strip("-")
    return Bundle(job, f"{name}-{identity}", _key_names(job))


def write_code(folder: Path, working_dir: str | Path | None = None) -> None:
    """Copies the user's files, then this package, into `folder`.

    Raises:
        ClusterError: The working directory can't be read or is too large.
    """
    ignore = shutil.ignore_patterns(*_LEFT_OUT)
    size_bytes = 0

    def copy(source: str, target: str) -> None:
        nonlocal size_bytes
        size_bytes += os.path.getsize(source)
        if size_bytes > MAX_BUNDLE_BYTES:  # found before it has filled the disk
            raise ClusterError(
                f"--working-dir {working_dir} has more than {MAX_BUNDLE_BYTES >> 20} MiB, which is "
                f"what travels with a job at most; {', '.join(_LEFT_OUT)} are left out."
            )
        shutil.copy2(source, target)

    try:
        if working_dir is not None:
            shutil.copytree(
                working_dir, folder, ignore=ignore, copy_function=copy, dirs_exist_ok=True
            )
        package = Path(str(resources.files("negtemp_data")))
        shutil.copytree(package, folder / "negtemp_data", ignore=ignore, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise ClusterError(f"--working-dir {working_dir}: can't be copied: {error}.") from error


def run_command() -> str:
    """What the driver runs in the unpacked bundle. `exec`: a SIGTERM reaches it, not a shell."""
    return f"exec python -m negtemp_data run {JOB_FILE} --address auto"


def resume_command(output: str) -> str:
    """What goes on with an output."""
    return f"exec python -m negtemp_data resume {shlex.quote(output)} --address auto"


def _pack_prompts(source: str, folder: Path, visibility: Visibility) -> str:
    """Copies the prompt files; returns what the job calls them in the bundle."""
    paths = [Path(file.path).absolute() for file in find_files(source)]
    size_bytes = sum(path.stat().st_size for path in paths)
    if size_bytes > MAX_BUNDLE_BYTES:
        if all(visibility.sees(path) for path in paths):
            return os.path.abspath(os.path.expanduser(source))
        raise ClusterError(
            f"prompts.source: {source} has {size_bytes / 2**20:.0f} MiB, and "
            f"{MAX_BUNDLE_BYTES >> 20} MiB at most travel with a job; put them on a store (s3://, "
            "gs://, hf://), or into a folder that the cluster sees, named with --shared-path."
        )
    root = Path(os.path.commonpath([path.parent for path in paths]))
    # A working directory may have such a folder, from a bundle of before.
    shutil.rmtree(folder / _PROMPTS, ignore_errors=True)
    for path in paths:
        target = folder / _PROMPTS / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, target)
        except OSError as error:
            raise PromptSourceError(f"{path}: can't be read: {error}.") from error
    _check_size(folder, "the bundle")
    if len(paths) == 1:
        return f"{_PROMPTS}/{paths[0].name}"
    return f"{_PROMPTS}/**"


def _check_size(folder: Path, what: str) -> None:
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size_bytes > MAX_BUNDLE_BYTES:
        raise ClusterError(
            f"{what} has {size_bytes / 2**20:.0f} MiB; {MAX_BUNDLE_BYTES >> 20} MiB at most travel "
            "with a job."
        )


def _key_names(job: Job) -> tuple[str, ...]:
    judges = (judge for _, judge in single_judges(job.verify.judge))
    names = (j.api_key_env for j in judges if isinstance(j, EndpointJudgeConfig))
    return tuple(dict.fromkeys(name for name in names if name))
