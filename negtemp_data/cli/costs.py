"""What a job takes, as `negtemp plan` shows it: memory by arithmetic, time by a calibration."""

import os
import shutil
import signal
import subprocess
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negtemp_data import api
from negtemp_data.jobspec import Job, count_gpus

if TYPE_CHECKING:
    from negtemp_data.pipeline.estimate import Estimate

_KV_BYTES = "kv_cache_memory_bytes"
_GPU_SHARE = 0.92
"""Share of a GPU's memory that vLLM takes. Source: vllm 0.32, config/cache.py,
`gpu_memory_utilization`."""


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a job can have."""

    count: float
    smallest_gib: float | None
    """Memory of the smallest; None: nobody says."""


def cluster_gpus(address: str) -> Gpus:
    """The GPUs of the cluster whose dashboard is at `address`.

    Raises:
        ClusterError: It does not answer.
    """
    from negtemp_data.cluster.client import JobsClient  # noqa: PLC0415

    nodes = JobsClient(address).nodes()
    sizes = [gib for node in nodes for gib in node.gpu_memory_gib]
    return Gpus(sum(node.gpus for node in nodes), min(sizes, default=None))


def describe_memory(job: Job, gpus: Gpus) -> dict[str, Any] | None:
    """What the model takes, and what an engine has for it.

    Args:
        job: The job.
        gpus: What there is to run it on; without GPUs it is a CPU.

    Returns:
        `weights_gib`, `kv_mib_per_1000_tokens`, `engine_gib` (weights and KV cache together),
        `fits`, `samples_at_once` (of `max_tokens` each) and `engines`, as many as the GPUs have
        room for (None for CPUs). None where the model is not on this machine, its config does not
        say, or nobody knows the memory of the GPUs, or how much of a CPU's is meant.
    """
    from negtemp_data.engine.arguments import CPU_KV_CACHE_BYTES  # noqa: PLC0415
    from negtemp_data.engine.catalogue import local_path, measure_model  # noqa: PLC0415

    path = local_path(job.generate.model)
    model = measure_model(Path(path)) if path else None
    if model is None:
        return None
    weights_gib = model["weights_gib"]
    engines = None
    if not gpus.count:
        kv_bytes = job.generate.engine.get(_KV_BYTES, CPU_KV_CACHE_BYTES)
        if not isinstance(kv_bytes, int):  # vLLM takes texts such as 4G, and null for its own rule
            return None
        engine_gib = weights_gib + kv_bytes / 2**30
    elif gpus.smallest_gib is None:
        return None
    else:
        share = float(job.generate.engine.get("gpu_memory_utilization", _GPU_SHARE))
        each = count_gpus(job.generate.gpus_per_replica, job.generate.engine, has_gpus=True)
        engine_gib = gpus.smallest_gib * share * each
        engines = int(gpus.count / each) if each else None
    kv_mib = (engine_gib - weights_gib) * 1024
    tokens = kv_mib / model["kv_mib_per_1000_tokens"] * 1000
    return {
        **model,
        "engine_gib": engine_gib,
        "fits": tokens >= job.generate.max_tokens,
        "samples_at_once": max(0, int(tokens / job.generate.max_tokens)),
        "engines": engines,
    }


def memory_lines(job: Job, gpus: Gpus, memory: dict[str, Any] | None, where: str) -> list[str]:
    """What `describe_memory` says, in words; `where` the GPUs are."""
    model = job.generate.model
    if memory is None and gpus.count and gpus.smallest_gib is None:
        return [f"{where} does not say how much memory its {gpus.count:g} GPUs have."]
    is_told = isinstance(job.generate.engine.get(_KV_BYTES, 0), int)
    if memory is None and not gpus.count and not is_told:
        return [f"engine.{_KV_BYTES} is no number of bytes: no estimate of memory."]
    if memory is None:
        return [f"{model} is not on this machine yet: no estimate of memory."]
    takes = (
        f"{model}: weights {memory['weights_gib']:.2f} GiB, KV cache "
        f"{memory['kv_mib_per_1000_tokens']:.1f} MiB per 1,000 tokens"
    )
    has = f"an engine on {where} has {memory['engine_gib']:.1f} GiB for both"
    if not memory["fits"]:
        return [takes, f"{has}: too little; use more or larger GPUs (tensor_parallel_size)"]
    n = memory["samples_at_once"]
    room = f"{has}: room for {n:,} samples of {job.generate.max_tokens} tokens at a time"
    if memory["engines"] is None:
        return [takes, room]
    wanted = job.generate.replica_range
    engines = f"its {gpus.count:g} GPUs have room for {memory['engines']} engines; the job wants "
    engines += f"{wanted.min}" if wanted.min == wanted.max else f"{wanted.min} to {wanted.max}"
    return [takes, room, engines]


def run_calibration(job: Job, n_prompts: int, address: str | None, quiet: bool) -> "Estimate":
    """Runs a calibration and shows how it gets on."""
    from negtemp_data.cli.display import RunDisplay  # noqa: PLC0415
    from negtemp_data.cli.run import interrupt  # noqa: PLC0415

    signal.signal(signal.SIGTERM, interrupt)
    # A duplicate, because a run sends what Ray and vLLM print to a file.
    with (
        os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8") as screen,
        closing(RunDisplay(screen, quiet)) as display,
    ):
        return api.calibrate(job, n_prompts, address=address, reporter=display)


def estimate_json(estimate: "Estimate", job: Job, address: str | None) -> dict[str, Any]:
    """The estimate for programs."""
    return {**asdict(estimate), "gpu_hours": _gpu_hours(estimate, job, address)}


def estimate_lines(estimate: "Estimate", job: Job, address: str | None) -> list[str]:
    """The estimate in words."""
    engines = "1 engine" if estimate.replicas == 1 else f"{estimate.replicas} engines"
    lines = [
        f"calibrated on {estimate.calibrated_rows} rows: {estimate.tokens:,.0f} tokens "
        f"(± {estimate.tokens_error:,.0f}), {estimate.accepted_rows:,.0f} of {estimate.rows:,} "
        "rows accepted",
        f"about {_duration(estimate.seconds)} on {engines}, of which {_duration(estimate.start_s)} "
        "start and end",
    ]
    if hours := _gpu_hours(estimate, job, address):
        lines[-1] += f"; {hours:.2f} GPU hours"
    if not estimate.is_full:
        lines.append(
            "The calibration did not fill the engine's batch, so the time is extrapolated; more "
            "prompts make it surer."
        )
    return lines


def _gpu_hours(estimate: "Estimate", job: Job, address: str | None) -> float | None:
    """None on a cluster, whose GPUs are not known here."""
    if address is not None:
        return None
    has_gpus = machine_gpus().count > 0
    gpus = count_gpus(job.generate.gpus_per_replica, job.generate.engine, has_gpus)
    return estimate.seconds / 3600 * gpus * estimate.replicas


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


def machine_gpus() -> Gpus:
    """This machine's GPUs, those that answer."""
    none = Gpus(0, None)
    if shutil.which("nvidia-smi") is None:
        return none
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return none
    sizes = [int(line) / 1024 for line in done.stdout.split() if line.isdigit()]
    return none if done.returncode else Gpus(len(sizes), min(sizes, default=None))
