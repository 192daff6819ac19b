"""The metrics of a real run, scraped as Prometheus does, and what its output says meanwhile."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import pytest

from ray_cluster import RayCluster

JOB = """
version: 1
name: measured
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
N_PROMPTS = 240
ARMS = ("control", "negative")
EXPECTED = {
    f"ray_negtemp_{name}_total"
    for name in ("rows", "tokens", "injections", "engine_starts", "shards_committed")
}
DEADLINE_S = 240


def read_metrics(text):
    """Sums of our counters over all series, by name and by (name, arm)."""
    sums = Counter()
    for name, labels, value in re.findall(r"^(ray_negtemp_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        assert tags["run"] == "measured"
        sums[name] += float(value)
        if "arm" in tags:
            sums[name, tags["arm"]] += float(value)
    return sums


@pytest.mark.slow
def test_a_scrape_and_the_status_show_a_run_under_way(tiny_model, negtemp, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = ({"id": f"p{i}", "prompt": f"Tell me about the number {i}."} for i in range(N_PROMPTS))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(prompts=prompts, model=tiny_model, out=out))
    cluster = RayCluster()
    try:
        run = subprocess.Popen(
            [sys.executable, "-m", "negtemp_data", "run", job, "--address", cluster.gcs_address],
            env=cluster.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        with run:
            sums, live = Counter(), None
            end = time.monotonic() + DEADLINE_S
            while not (sums.keys() >= EXPECTED and live and live["tokens"]):
                assert run.poll() is None, run.stderr.read()
                assert time.monotonic() < end, sums
                with suppress(OSError):  # an agent that is not there yet
                    sums = read_metrics(cluster.scrape())
                if out.exists():
                    status = json.loads(negtemp("status", str(out), "--json").stdout or "{}")
                    live = status.get("live")
            run.wait(DEADLINE_S)
        assert run.returncode == 0
    finally:
        cluster.close()
    assert sums["ray_negtemp_engine_starts_total"] == 1
    assert 1 <= sums["ray_negtemp_shards_committed_total"] <= N_PROMPTS / 2
    assert all(1 <= sums["ray_negtemp_rows_total", arm] <= N_PROMPTS * 2 for arm in ARMS)
    assert sums["ray_negtemp_injections_total", "control"] == 0
    assert live["engines"] == 1 and live["arms"].keys() == set(ARMS)
    assert live["tokens_per_s"] > 0
    kinds = [json.loads(line)["event"] for line in (out / "_run" / "events.jsonl").open()]
    assert kinds[:3] == ["run_started", "engine_starts", "engine_ready"]
    assert kinds[3:] == ["shard_committed"] * (N_PROMPTS // 2) + ["run_finished"]
