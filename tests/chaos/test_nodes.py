"""Machines of a cluster that go and come while a run is under way."""

import psutil
import pytest
from runs import (
    Command,
    assert_complete,
    digests,
    read_events,
    wait_until,
    write_job,
)

from ray_cluster import RayCluster

N_PROMPTS = 480  # more rows than two workers have open at a time
MAX_TOKENS = 50
REPLICAS = "{min: 1, max: 3}"


@pytest.fixture
def cluster():
    """A head that has no room for workers."""
    cluster = RayCluster(cpus=0)
    try:
        yield cluster
    finally:
        cluster.close()


def workers_on(raylet):
    """The generating workers that run on a machine."""
    children = psutil.Process(raylet.pid).children(recursive=True)
    return [p for p in children if "GeneratorActor" in " ".join(p.cmdline())]


def start_run(cluster, job):
    return Command("run", job, "--address", cluster.gcs_address, env=cluster.environment)


@pytest.mark.slow
def test_a_run_outlives_a_machine_and_uses_a_new_one(cluster, tiny_model, negtemp, tmp_path):
    out = tmp_path / "out"
    cluster.add_raylet("--num-cpus=1")
    second = cluster.add_raylet("--num-cpus=1")
    job = write_job(tmp_path, tiny_model, N_PROMPTS, max_tokens=MAX_TOKENS, replicas=REPLICAS)
    process = start_run(cluster, job)
    wait_until(lambda: len(read_events(out, "engine_ready")) >= 2 and workers_on(second), process)
    cluster.lose(second)
    committed = digests(out)
    third = cluster.add_raylet("--num-cpus=1")
    wait_until(lambda: workers_on(third), process)
    stderr = process.end(400)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr
    assert_complete(negtemp, out, N_PROMPTS, committed)


@pytest.mark.slow
def test_a_run_whose_machine_is_not_replaced_ends_on_those_left(
    cluster, tiny_model, negtemp, tmp_path
):
    out = tmp_path / "out"
    cluster.add_raylet("--num-cpus=1")
    second = cluster.add_raylet("--num-cpus=1")
    job = write_job(tmp_path, tiny_model, N_PROMPTS, max_tokens=MAX_TOKENS, replicas="3")
    process = start_run(cluster, job)
    wait_until(lambda: len(read_events(out, "engine_ready")) >= 3 and workers_on(second), process)
    cluster.lose(second)
    committed = digests(out)
    stderr = process.end(400)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr
    assert_complete(negtemp, out, N_PROMPTS, committed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_has_lost_all_machines_stops_and_goes_on_on_another_one(
    cluster, tiny_model, negtemp, tmp_path
):
    out = tmp_path / "out"
    machine = cluster.add_raylet("--num-cpus=1")
    job = write_job(tmp_path, tiny_model, N_PROMPTS, max_tokens=MAX_TOKENS, replicas="1")
    process = start_run(cluster, job)
    wait_until(lambda: digests(out), process)
    cluster.lose(machine)
    stderr = process.end(500)
    committed = digests(out)
    assert process.returncode == 1 and "Traceback" not in stderr, stderr
    assert "no room for another one" in stderr and "negtemp resume" in stderr, stderr
    cluster.add_raylet("--num-cpus=1")
    resumed = start_run(cluster, job)
    stderr = resumed.end(400)
    assert resumed.returncode == 0 and "Traceback" not in stderr, stderr
    assert_complete(negtemp, out, N_PROMPTS, committed)
