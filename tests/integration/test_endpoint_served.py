"""A run whose judge is vLLM's own server, which wants a key, behind a forwarder that makes trouble.

Another run finds nobody at the judge's address. Neither leaves the key anywhere.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pytest
from test_serving import end, flags, wait_until_healthy

from negtemp_data.engine.arguments import machine_defaults

pytestmark = pytest.mark.slow

SECRET = "sk-kept-out-of-sight-8c1f"
TIMEOUT_S = 6
JOB = """
version: 1
name: judged
seed: 3
prompts: {{source: {prompts}, id: id}}
generate:
  model: {model}
  max_tokens: 8
  samples: {{control: 1, negative: 1}}
  engine: {{dtype: float32, max_model_len: 512}}
schedules:
  control: {{base: {{temperature: 0.8}}}}
  negative:
    inject: [{{when: {{every: 2}}, temperature: -1.0, support: {{top_k: 5}}}}]
verify:
  judge:
    kind: endpoint
    url: {url}
    model: judge
    api_key_env: JUDGE_KEY
    criteria: {{coherence: {{}}}}
    accept_at: 1.0
    concurrency: 4
    timeout_s: {timeout_s}
    attempts: 2
    examples:
      - {{request: Say hello., answer: "Hello!", rating: 5}}
      - {{request: What is the sun?, answer: qx zzk the of, rating: 1}}
output: {{path: {out}}}
"""

PROMPTS = {
    "plain": "Why does it rain?",
    "other": "Name an animal.",
    "busy": "Say: 429, once.",
    "broken": "Say: 500, once.",
    "garbled": "Say: no JSON, once.",
    "lost": "Say: no JSON, ever.",
    "slow": "Say: nothing.",
}
"""The judge's question holds the prompt, by which the forwarder knows what to do."""

HOPELESS = {"lost": "is no chat completion: '<html>'", "slow": f"no answer within {TIMEOUT_S} s"}


class Forwarder(ThreadingHTTPServer):
    """Hands requests to the server at `target` and its answers back, where it does not fail."""

    daemon_threads = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), ForwardingHandler)
        self.target = target
        self.seen = Counter()
        """Times that each question came."""
        self.is_over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """Clients that hang up are expected."""


class ForwardingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        question = json.loads(body)["messages"][-1]["content"]
        self.server.seen[question] += 1
        is_first = self.server.seen[question] == 1
        if PROMPTS["slow"] in question:
            self.server.is_over.wait()
        elif PROMPTS["busy"] in question and is_first:
            self._send(429, b"", {"retry-after": "0.2"})
        elif PROMPTS["broken"] in question and is_first:
            self._send(500, b"Traceback (most recent call last)")
        elif PROMPTS["lost"] in question or (PROMPTS["garbled"] in question and is_first):
            self._send(200, b"<html>")
        else:
            headers = {name: self.headers[name] for name in ("authorization", "content-type")}
            request = urllib.request.Request(self.server.target + self.path, body, headers)
            with urllib.request.urlopen(request, timeout=60) as response:
                self._send(response.status, response.read())

    def _send(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"content-length": len(body), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        """Keeps quiet."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(model, folder):
    """vLLM's server as a process, its address and its log."""
    port, log = free_port(), folder / "server.txt"
    arguments = machine_defaults(is_cpu=True) | {
        "model": model,
        "served_model_name": "judge",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max_model_len": 1024,
        "kv_cache_memory_bytes": 64 << 20,
    }
    environment = os.environ | {
        "VLLM_API_KEY": SECRET,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "KMP_BLOCKTIME": "0",
        "OMP_WAIT_POLICY": "passive",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags(arguments)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return process, f"http://127.0.0.1:{port}", log


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all is written, Ray's session files too."""
    folder = tmp_path_factory.mktemp("endpoint")
    lines = [json.dumps({"id": name, "prompt": text}) for name, text in PROMPTS.items()]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    # Ray's sockets lie there, whose paths must be short.
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as sessions,
        pytest.MonkeyPatch.context() as patch,
    ):
        (folder / "ray").symlink_to(sessions)
        patch.setenv("RAY_TMPDIR", sessions)
        patch.setenv("JUDGE_KEY", SECRET)
        yield folder


@pytest.fixture(scope="module")
def run_at(negtemp, tiny_model, folder):
    """Runs the job with the judge at an address; the process, and the rows by id."""

    def run(url, name):
        job = folder / f"{name}.yaml"
        out = folder / name
        job.write_text(
            JOB.format(
                prompts=folder / "prompts.jsonl",
                model=tiny_model,
                url=url,
                timeout_s=TIMEOUT_S,
                out=out,
            )
        )
        done = negtemp("run", str(job))
        return done, {row["id"]: row for row in datasets.load_from_disk(str(out))}

    return run


@pytest.fixture(scope="module")
def runs(run_at, smol_model, folder):
    """A run with a server and one without, each with its judge's address; and the forwarder."""
    process, target, log = serve(smol_model, folder)
    try:
        # Meanwhile, since a server takes as long to start as a run takes.
        nobody = f"http://127.0.0.1:{free_port()}/v1"
        abandoned = run_at(nobody, "abandoned")
        wait_until_healthy(process, target, log)
        with Forwarder(target) as forwarder:
            thread = threading.Thread(target=forwarder.serve_forever)
            thread.start()
            try:
                judged = run_at(forwarder.url, "judged")
            finally:
                forwarder.is_over.set()
                forwarder.shutdown()
                thread.join()
    finally:
        end(process)
    return judged, abandoned, nobody, forwarder


def test_a_server_judges_the_rows_and_its_failures_cost_single_rows(runs):
    (done, rows), _, _, forwarder = runs
    assert len(rows) == 2 * len(PROMPTS)
    for row in rows.values():
        reason = HOPELESS.get(row["prompt_id"])
        assert row["completion"]
        if reason is None:
            assert row["status"] == "accepted", row["error"]
            (score,) = row["scores"]
            assert score["criterion"] == "coherence"
            assert row["score"] == score["score"]
            assert 1 <= score["score"] <= 5
            assert 0 <= score["mass"] < 1
        else:
            assert row["status"] == "failed"
            assert row["error"].startswith("criterion 'coherence': ")
            assert reason in row["error"]
            assert row["score"] is None and row["scores"] == []
    times = Counter()
    for question, n_times in forwarder.seen.items():
        times[next(name for name, text in PROMPTS.items() if text in question), n_times] += 1
    assert times == {(name, 1 if name in ("plain", "other") else 2): 2 for name in PROMPTS}
    assert done.returncode == 3
    assert "4 of 14 rows have failed" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_without_a_server_every_row_fails_and_keeps_its_completion(runs):
    (_, judged), (done, rows), nobody, _ = runs
    assert rows.keys() == judged.keys()
    for name, row in rows.items():
        assert row["status"] == "failed"
        assert f"{nobody} can't be reached: " in row["error"]
        assert row["error"].endswith("(attempt 2 of 2)")
        assert row["completion"] == judged[name]["completion"]
    assert done.returncode == 3
    assert "14 of 14 rows have failed" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_key_is_found_nowhere(runs, folder):
    for done, _ in runs[:2]:
        assert SECRET not in done.stdout + done.stderr
    files = [path for root in (folder, folder / "ray") for path in root.rglob("*")]
    searched = [path for path in files if path.is_file()]
    kinds = {path.suffix for path in searched}
    assert {".arrow", ".json", ".yaml", ".log", ".out"} <= kinds, kinds
    assert any("worker" in path.name and path.is_relative_to(folder / "ray") for path in searched)
    for path in searched:
        assert SECRET.encode() not in path.read_bytes(), path
