"""A job as a KubeRay manifest: a ConfigMap with the bundle, and a RayJob that runs it.

Needs neither ray nor a cluster. The bundle is uploaded by KubeRay's submitter, in whose container
the ConfigMap is mounted. Source: kuberay 1.7, ray-operator/controllers/ray/common/job.go.
"""

import base64
import json
import math
import shutil
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from negtemp_data.cluster.bundle import run_command, write_bundle
from negtemp_data.cluster.pins import uv_field
from negtemp_data.cluster.visibility import Visibility
from negtemp_data.errors import ClusterError
from negtemp_data.jobspec import (
    Job,
    RewardJudgeConfig,
    count_gpus,
    judges_with_engines,
)

MAX_CONFIG_MAP_BYTES = 1_000_000
"""Kubernetes refuses a ConfigMap of more than 1 MiB, names and all."""

_BUNDLE_FOLDER = "/negtemp"
_SECRET = "negtemp-keys"


def write_manifest(
    job: Job,
    *,
    image: str | None = None,
    volume: str | None = None,
    pip: str | None = None,
    working_dir: str | Path | None = None,
) -> str:
    """The manifest's text.

    Args:
        job: The job.
        image: Container image with Ray; None: Ray's own of this version and Python.
        volume: CLAIM:PATH, a PersistentVolumeClaim that all machines mount at PATH.
        pip: `cpu`, `gpu`, `none` (the image has everything) or a requirements file; None: gpu,
            unless `gpus_per_replica` is 0.
        working_dir: Modules and files of your own that the job needs.

    Raises:
        RequestError: A path is not on the volume, or the bundle is too large for a ConfigMap.
    """
    claim, mount_path = _split_volume(volume)
    variant = pip or ("cpu" if job.generate.gpus_per_replica == 0 else "gpu")
    visibility = Visibility(False, (Path(mount_path),) if mount_path else ())
    with tempfile.TemporaryDirectory(prefix="negtemp-") as name:
        folder = Path(name, "bundle")
        folder.mkdir()
        bundle = write_bundle(job, folder, visibility, working_dir)
        archive = Path(shutil.make_archive(f"{name}/bundle", "zip", folder))
        data = base64.b64encode(archive.read_bytes()).decode()
    if len(data) > MAX_CONFIG_MAP_BYTES:
        raise ClusterError(
            f"job {job.name}: job file, prompts and code have {len(data):,} bytes, and a ConfigMap "
            f"holds {MAX_CONFIG_MAP_BYTES:,}; put the prompts on a store, and your own modules "
            "into the image."
        )
    pods = _worker_pods(job, has_gpus=variant != "cpu")
    uv = uv_field(variant)
    runtime_env = {
        "working_dir": f"{_BUNDLE_FOLDER}/bundle.zip",
        "env_vars": visibility.model_cache,
        **({"uv": uv} if uv else {}),
    }
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    source = resources.files(__package__).joinpath("kuberay.yaml.j2").read_text(encoding="utf-8")
    ray_version = metadata.version("ray")
    return environment.from_string(source).render(
        job=job,
        id=bundle.id,
        keys=bundle.keys,
        bundle_base64=data,
        bundle_path=_BUNDLE_FOLDER,
        command=run_command(),
        # JSON is YAML; KubeRay hands it on as JSON.
        runtime_env=json.dumps(runtime_env),
        image=image or _default_image(ray_version, has_gpus=pods.gpus > 0),
        ray_version=ray_version,
        pods=pods,
        env=[_from_secret(key) for key in bundle.keys],
        **_storage(claim, mount_path),
    )


def _split_volume(volume: str | None) -> tuple[str, str]:
    if volume is None:
        return "", ""
    claim, _, path = volume.partition(":")
    if not claim or not path.startswith("/"):
        raise ClusterError(f"--volume {volume}: write it as CLAIM:/PATH.")
    return claim, path


def _storage(claim: str, path: str) -> dict[str, list[dict[str, Any]]]:
    # vLLM's processes and Ray's object store share memory; a container has 64 MiB of it by default.
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "data", "mountPath": path})
    return {"volumes": volumes, "mounts": mounts}


class WorkerPods(NamedTuple):
    """Pods with engines, one in each."""

    min: int
    max: int
    gpus: int
    """GPUs of each."""


def _worker_pods(job: Job, has_gpus: bool) -> WorkerPods:
    # Judges of the same needs share their engines.
    judges = {
        (
            judge.model,
            json.dumps(judge.engine, sort_keys=True),
            judge.replicas,
            count_gpus(judge.gpus_per_replica, judge.engine, has_gpus),
            isinstance(judge, RewardJudgeConfig),
        )
        for _, judge in judges_with_engines(job.verify.judge)
    }
    n_judges = sum(replicas for _, _, replicas, *_ in judges)
    generators = job.generate.replica_range
    gpus = [count_gpus(job.generate.gpus_per_replica, job.generate.engine, has_gpus)]
    gpus += [each for *_, each, _ in judges]
    return WorkerPods(generators.min + n_judges, generators.max + n_judges, math.ceil(max(gpus)))


def _default_image(ray_version: str, has_gpus: bool) -> str:
    """Source: the tags of rayproject/ray, as docs.ray.io's page on its images describes them."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return f"rayproject/ray:{ray_version}-{python}" + ("-gpu" if has_gpus else "")


def _from_secret(key: str) -> dict[str, Any]:
    return {"name": key, "valueFrom": {"secretKeyRef": {"name": _SECRET, "key": key}}}
