"""Jobs on a real Ray cluster: submitted, followed, stopped, resumed, and every row made once."""

import base64
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ray_cluster import RayCluster

JOB = """
version: 1
name: on-a-cluster
seed: 3
prompts: {{source: {prompts}, id: id}}
generate:
  model: {model}
  max_tokens: 60
  min_tokens: 60
  samples: {{control: 2, negative: 2}}
  engine: {{dtype: float32, max_model_len: 1024, max_num_seqs: 16}}
schedules:
  control: {{base: {{temperature: 0.8}}}}
  negative:
    inject: [{{when: {{every: 8}}, temperature: -1.0}}]
output: {{path: {out}, shard_rows: 8}}
"""
N_PROMPTS, N_SHARDS = 64, 32
DEADLINE_S = 240


@pytest.fixture(scope="module")
def cluster():
    cluster = RayCluster()
    try:
        cluster.add_raylet("--num-cpus=1")
        cluster.add_raylet("--num-cpus=1")
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def job(tiny_model, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = ({"id": f"p{i}", "prompt": f"Tell me about the number {i}."} for i in range(N_PROMPTS))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(prompts=prompts, model=tiny_model, out=tmp_path / "out"))
    return path


def negtemp(cluster, *arguments, timeout_s=300):
    return subprocess.run(
        [sys.executable, "-m", "negtemp_data", *arguments],
        env=cluster.environment | {"RAY_API_SERVER_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def submit(cluster, job, *options):
    done = negtemp(cluster, "submit", str(job), "--pip", "none", "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["id"]


def state_of(cluster, job_id):
    done = negtemp(cluster, "jobs", "status", job_id, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wait_for_shards(cluster, job_id, out, n):
    end = time.monotonic() + DEADLINE_S
    while len(list(out.glob("shard-*.arrow"))) < n:
        if time.monotonic() > end or state_of(cluster, job_id)["status"] == "FAILED":
            pytest.fail(negtemp(cluster, "jobs", "logs", job_id).stdout)


def assert_whole(cluster, out):
    import datasets

    checked = negtemp(cluster, "check", str(out), "--json")
    assert checked.returncode == 0, checked.stdout
    report = json.loads(checked.stdout)
    assert report["planned"] == N_PROMPTS * 4 and report["not_done"] == 0
    ids = datasets.load_from_disk(str(out))["id"]
    assert len(ids) == len(set(ids)) == N_PROMPTS * 4


@pytest.mark.slow
def test_a_job_is_followed_stopped_and_resumed(cluster, job, tmp_path):
    out = tmp_path / "out"
    job_id = submit(cluster, job)
    follower = subprocess.Popen(
        [sys.executable, "-m", "negtemp_data", "jobs", "logs", "-f", job_id],
        env=cluster.environment | {"RAY_API_SERVER_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    again = negtemp(cluster, "submit", str(job), "--pip", "none")
    assert again.returncode == 2
    assert f"{job_id} is " in again.stderr and " already; follow it with" in again.stderr
    refused = negtemp(cluster, "jobs", "resume", job_id)
    assert refused.returncode == 2 and " already; follow it with" in refused.stderr
    (tmp_path / "prompts.jsonl").rename(tmp_path / "gone.jsonl")  # what travels is enough
    wait_for_shards(cluster, job_id, out, 1)
    follower.send_signal(signal.SIGINT)
    printed, said = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert "starting Ray and the engine" in printed
    assert f"{job_id} goes on" in said
    stopped = negtemp(cluster, "jobs", "stop", job_id)
    assert f"{job_id}: STOPPED" in stopped.stdout, stopped.stderr
    printed = negtemp(cluster, "jobs", "logs", job_id).stdout
    assert "negtemp resume" in printed  # the driver has left by itself
    before = {path.name: path.read_bytes() for path in out.glob("shard-*.arrow")}
    assert 1 <= len(before) < N_SHARDS

    resumed = negtemp(cluster, "jobs", "resume", job_id, "--follow")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"submitted {job_id}-2" in resumed.stdout
    assert all((out / name).read_bytes() == data for name, data in before.items())
    assert_whole(cluster, out)
    listed = json.loads(negtemp(cluster, "jobs", "list", "--json").stdout)
    assert [job["status"] for job in listed if job["ticket"]["base"] == job_id] == [
        "STOPPED",
        "SUCCEEDED",
    ]
    (tmp_path / "gone.jsonl").rename(tmp_path / "prompts.jsonl")
    done = negtemp(cluster, "submit", str(job), "--pip", "none")
    assert done.returncode == 2 and "has made this data set already" in done.stderr


@pytest.mark.slow
def test_what_the_cluster_can_not_do_is_refused_before_anything_starts(cluster, job):
    unknown = negtemp(cluster, "jobs", "stop", "no-such-job")
    assert unknown.returncode == 2 and "knows no negtemp job 'no-such-job'" in unknown.stderr
    silent = negtemp(cluster, "submit", str(job), "--address", "http://127.0.0.1:9")
    assert silent.returncode == 2 and "127.0.0.1:9" in silent.stderr
    assert silent.stderr.count("\n") == 1
    anonymous = cluster.environment | {"RAY_AUTH_MODE": "disabled"}
    refused = subprocess.run(
        [sys.executable, "-m", "negtemp_data", "jobs", "list", "--address", cluster.address],
        env=anonymous,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2 and "wants a token" in refused.stderr


@pytest.mark.slow
def test_a_job_that_fails_passes_its_exit_code_on(cluster, job):
    failing = negtemp(
        cluster, "submit", str(job), "--pip", "none", "--follow",
        "--set", "generate.engine.seed=1",
    )  # fmt: skip
    assert failing.returncode == 2, failing.stdout + failing.stderr
    assert "generate.engine.seed" in failing.stdout


@pytest.mark.slow
def test_the_manifests_command_runs_on_its_bundle_as_it_stands(cluster, job, tmp_path):
    out = tmp_path / "out"
    printed = negtemp(
        cluster, "submit", str(job), "--manifest", "kuberay", "--pip", "none",
        "--volume", f"claim:{tmp_path.parent.parent}", "--limit", "2",
    )  # fmt: skip
    assert printed.returncode == 0, printed.stderr
    config_map, ray_job = YAML(typ="safe", pure=True).load_all(printed.stdout)
    # What KubeRay's submitter does, in whose container the ConfigMap is mounted.
    mounted = tmp_path / "bundle.zip"
    mounted.write_bytes(base64.b64decode(config_map["binaryData"]["bundle.zip"]))
    runtime_env = json.loads(ray_job["spec"]["runtimeEnvYAML"]) | {"working_dir": str(mounted)}
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ray"), "job", "submit",
            "--runtime-env-json", json.dumps(runtime_env),
            "--submission-id", ray_job["metadata"]["name"],
            "--", *shlex.split(ray_job["spec"]["entrypoint"]),
        ],
        env=cluster.environment | {"RAY_API_SERVER_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    checked = negtemp(cluster, "check", str(out), "--json")
    report = json.loads(checked.stdout)
    assert (report["planned"], report["not_done"]) == (8, 0)


@pytest.mark.slow
def test_a_driver_whose_machine_dies_is_resumed(cluster, job, tmp_path):
    out = tmp_path / "out"
    machine = cluster.add_raylet("--num-cpus=1", '--resources={"driver": 1}')
    job_id = submit(cluster, job, "--entrypoint-resources", '{"driver": 1}')
    wait_for_shards(cluster, job_id, out, 2)
    cluster.lose(machine)
    end = time.monotonic() + DEADLINE_S
    while (state := state_of(cluster, job_id))["status"] == "RUNNING":
        assert time.monotonic() < end, state
        time.sleep(1)
    assert state["status"] == "FAILED"
    assert len(list(out.glob("shard-*.arrow"))) < N_SHARDS
    cluster.add_raylet("--num-cpus=1", '--resources={"driver": 1}')
    resumed = negtemp(cluster, "jobs", "resume", job_id, "--follow")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert_whole(cluster, out)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cluster_without_the_package_runs_a_job_from_its_submission_alone(job, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", str(bare)], check=True)
    python = str(bare / "bin" / "python")
    environment = {}
    if folders := os.environ.get("PIP_FIND_LINKS"):
        environment["UV_FIND_LINKS"] = ",".join(folders.split())
    if index := os.environ.get("PIP_INDEX_URL"):
        environment["UV_DEFAULT_INDEX"] = index
    from importlib.metadata import version

    subprocess.run(
        ["uv", "pip", "install", "--python", python, f"ray[default]=={version('ray')}"],
        env=os.environ | environment | {"PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"},
        check=True,
    )
    nothing = subprocess.run([python, "-c", "import vllm"], capture_output=True, check=False)
    assert nothing.returncode != 0
    cluster = RayCluster(python, environment)
    try:
        done = negtemp(cluster, "submit", str(job), "--pip", "cpu", "--follow", timeout_s=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        assert_whole(cluster, tmp_path / "out")
    finally:
        cluster.close()
