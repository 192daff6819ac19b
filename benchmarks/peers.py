"""Peers on the same work: how fast, and what a `kill -9` midway costs.

    python benchmarks/peers.py
    python benchmarks/peers.py --sides distilabel --parts killed

The same prompts, limits, model and engine arguments go through `negtemp run` (no judge, a plain
base schedule), `ray.data.llm` with row checkpoints, and distilabel and Bespoke Curator as clients
of a `vllm serve` on this machine. Each side first runs undisturbed. Then it starts anew; when the
engine has finished half of the rows, the command and all its descendants are killed, and the
command is started again (negtemp: `negtemp resume`). A server stays up meanwhile, as its user would
leave it.

What the engines did is counted inside vLLM, on all sides alike, by a plug-in, peers/request_log.py.
Rows are lost when the final output lacks them, repeated when the engine finished a prompt more
often than was planned, and duplicates when the output holds an id twice. The clients are in peers/;
those with a requirement list get an environment of their own in the cache folder, made by uv.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from hashlib import blake2b
from pathlib import Path

import psutil

from negtemp_data.engine.arguments import machine_defaults
from negtemp_data.engine.catalogue import model_cache, resolve_model
from negtemp_data.jobspec import load_job
from negtemp_data.prompts import planned_ids, read_prompts
from negtemp_data.storage import Output, read_rows

CLIENTS = Path(__file__).with_name("peers")
MODEL = "smollm2-135m-instruct"
PROMPTS = 128
MAX_TOKENS = 48
TEMPERATURE = 0.8
SAMPLES = 1
ENGINE = {**machine_defaults(True), "max_model_len": 1024, "max_num_seqs": 32}
IN_FLIGHT = 50  # distilabel's own batch size; more than the engine takes at once
BLOCK_ROWS = 32  # ray.data.llm's own batch size
IDLE_S = 300  # a command that gives its engine nothing for so long is given up
JOB = f"""
version: 1
name: peers
seed: 11
prompts: {{source: jobs/prompts/everyday.jsonl, id: id, text: prompt, limit: {PROMPTS}}}
generate:
  model: {MODEL}
  max_tokens: {MAX_TOKENS}
  samples: {{control: {SAMPLES}}}
  engine: {json.dumps({name: ENGINE[name] for name in ("max_model_len", "max_num_seqs")})}
schedules: {{control: {{base: {{temperature: {TEMPERATURE}}}}}}}
output: {{path: OUT}}
"""
# The first file that holds a row which a kill can't take any more.
FIRST_ROWS = {
    "negtemp": "out/_run/wip/*/*.arrow",
    "ray.data.llm": "parquet/*.parquet",
    "distilabel": "cache/*/*/executions/*/data/steps_outputs/*/*.parquet",
    "curator": "cache/*/responses_0.jsonl",
}
SIDES = tuple(FIRST_ROWS)
SERVED = ("distilabel", "curator")


def read_plan(job):
    """The rows to make, and how often each prompt (a digest of its tokens) is to be finished."""
    from transformers import AutoTokenizer

    from negtemp_data.engine.tokens import PromptEncoder

    path = resolve_model(MODEL).path
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(path), ENGINE["max_model_len"] - 1)
    rows, planned = [], Counter()
    for prompt in read_prompts(job.prompts):
        text = " ".join(map(str, encoder.encode(prompt, None)))
        for row in planned_ids(prompt.id, job.generate.samples):
            rows.append({"id": row.id, "prompt": prompt.text})
            planned[blake2b(text.encode(), digest_size=8).hexdigest()] += 1
    return rows, planned


def python_of(side):
    """The side's Python, in an environment that is made when there is none yet."""
    requirements = CLIENTS / f"{side}.txt"
    if not requirements.exists():
        return sys.executable
    digest = blake2b(requirements.read_bytes(), digest_size=4).hexdigest()
    folder = model_cache().parent / "peers" / f"{side}-{digest}"
    if not (folder / "made").exists():
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        env = dict(os.environ)
        if links := env.get("PIP_FIND_LINKS"):
            env.setdefault("UV_FIND_LINKS", ",".join(links.split()))
        if index := env.get("PIP_INDEX_URL"):
            env.setdefault("UV_DEFAULT_INDEX", index)
        venv = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
        subprocess.run(venv, env=env, check=True)
        install = [uv, "pip", "install", "--quiet", "--python", f"{folder}/bin/python"]
        subprocess.run([*install, "-r", str(requirements)], env=env, check=True)
        (folder / "made").touch()
    return f"{folder}/bin/python"


def environment(folder):
    """For a side's commands and its server: vLLM with the plug-in, nothing that calls home."""
    info = folder / "plugin" / "request_log-1.dist-info"
    if not info.exists():
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: request-log\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            "[vllm.general_plugins]\nrequest_log = request_log:register\n"
        )
    return {
        **os.environ,
        "PYTHONPATH": f"{folder / 'plugin'}:{CLIENTS}",
        "REQUEST_LOG": str(folder / "requests.jsonl"),
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TELEMETRY_ENABLED": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "NO_PROXY": "127.0.0.1",
    }


def engine_environment():
    """Both cores for vLLM's threads: left alone, a server on a CPU keeps one for itself."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return {"VLLM_CPU_OMP_THREADS_BIND": cores}


@contextmanager
def serve(folder):
    """A server on loopback; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What `vllm serve` starts; that command itself fails with vllm-cpu, which has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", resolve_model(MODEL).path, "--served-model-name", MODEL]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--generation-config", "vllm"]
    for name, value in ENGINE.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            command += [f"--{flag}", str(value)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command,
            env=environment(folder) | engine_environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while True:
            with suppress(urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            if server.poll() is not None:
                sys.exit(f"vllm serve failed:\n{(folder / 'server.log').read_text()[-4000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        kill(server)


@contextmanager
def started(side, folder, again=False):
    """The side's command; what is left of it is ended."""
    if side == "negtemp":
        negtemp = [sys.executable, "-m", "negtemp_data"]
        arguments = ["resume", "out"] if again else ["run", "job.yaml", "--out", "out"]
        command = [
            *negtemp,
            *(str(folder / a) if a in {"out", "job.yaml"} else a for a in arguments),
        ]
    else:
        client = CLIENTS / f"with_{side.split('.')[0]}.py"
        command = [python_of(side), str(client), str(folder)]
    with (folder / "command.log").open("a") as log:
        process = subprocess.Popen(
            command, env=environment(folder), stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process):
    """`kill -9` of a process and all that descend from it; waits until they are gone."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        while any(is_alive(member) for member in family[1:]):
            time.sleep(0.1)
    process.wait()


def is_alive(process):
    # In a container nobody may take note of the end of a process whose parent is gone.
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read_log(folder):
    log = folder / "requests.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]


def finished(requests):
    return [request for request in requests if request["event"] in {"stop", "length"}]


def in_flight(requests):
    return 2 * sum(request["event"] == "added" for request in requests) - len(requests)


def read_output(side, folder):
    """Id and text of each row of the final output."""
    if side == "negtemp":
        rows = read_rows(Output(str(folder / "out")))
        return [(row["id"], None if row["error"] else row["completion"]) for row in rows]
    output = folder / "output.jsonl"
    lines = output.read_text().splitlines() if output.exists() else []
    return [(row["id"], row["text"]) for row in map(json.loads, lines)]


def account(side, folder, rows, planned):
    """What became of the rows."""
    made = Counter(r["prompt"] for r in finished(read_log(folder)))
    if not made.keys() >= planned.keys():
        print(f"{side}: {len(planned - made)} rows never generated", file=sys.stderr)
    output = read_output(side, folder)
    ids = Counter(row_id for row_id, _ in output)
    whole = {row_id for row_id, text in output if text is not None}
    return {
        "lost": sum(row["id"] not in whole for row in rows),
        "repeated": (Counter({p: made[p] for p in planned}) - planned).total(),
        "duplicates": ids.total() - len(ids),
        "other_requests": sum(n for prompt, n in made.items() if prompt not in planned),
    }


def clear(side, folder):
    """Leaves nothing of an earlier run but the job; the server goes on writing the emptied log."""
    for name in ("out", "cache", "checkpoint", "parquet", "datasets"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "output.jsonl").unlink(missing_ok=True)
    (folder / "requests.jsonl").write_text("")


def run_whole(side, folder, rows, planned):
    started_at, first_row_at = time.time(), None
    with started(side, folder) as process:
        while process.poll() is None:
            if first_row_at is None and any(
                f.stat().st_size for f in folder.glob(FIRST_ROWS[side])
            ):
                first_row_at = time.time()
            time.sleep(0.1)
    command_s = time.time() - started_at
    if process.returncode:
        sys.exit(f"{side} failed:\n{(folder / 'command.log').read_text()[-4000:]}")
    log = [request for request in read_log(folder) if request["prompt"] in planned]
    done = finished(log)
    return {
        "requests": len(done),
        "tokens": sum(request["tokens"] for request in done),
        "work_s": max(r["time"] for r in done) - min(r["time"] for r in log),
        "first_row_s": first_row_at and first_row_at - started_at,
        "command_s": command_s,
        **account(side, folder, rows, planned),
    }


def run_killed(side, folder, rows, planned):
    def requests():
        return [request for request in read_log(folder) if request["prompt"] in planned]

    found = {}
    with started(side, folder) as process:
        while len(finished(requests())) < len(rows) / 2:
            if process.poll() is not None:
                sys.exit(f"{side} ended early:\n{(folder / 'command.log').read_text()[-4000:]}")
            time.sleep(0.1)
        found["at_kill"] = len(finished(requests()))
        found["in_flight"] = in_flight(requests())
    while side in SERVED and in_flight(requests()):
        time.sleep(0.1)  # the server notices that its client is gone
    started_at = time.time()
    with started(side, folder, again=True) as process:
        log = folder / "requests.jsonl"
        while (
            process.poll() is None and time.time() - max(started_at, log.stat().st_mtime) < IDLE_S
        ):
            time.sleep(0.1)
        found["exit"] = f"none, idle {IDLE_S} s" if process.poll() is None else process.returncode
    found["again_s"] = time.time() - started_at
    again = [request for request in requests() if request["time"] > started_at]
    found["again_requests"] = sum(request["event"] == "added" for request in again)
    return found | account(side, folder, rows, planned)


PARTS = {"whole": run_whole, "killed": run_killed}


def measure(side, parts, root, rows, planned):
    found = {"side": side}
    folder = Path(tempfile.mkdtemp(prefix=f"{side}-", dir=root))
    (folder / "job.yaml").write_text(JOB.replace("OUT", str(folder / "out")))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    python_of(side)
    with serve(folder) if side in SERVED else nullcontext() as url:
        job = {
            "model": resolve_model(MODEL).path,
            "served_model": MODEL,
            "url": url,
            "engine": ENGINE,
            "engine_environment": engine_environment(),
            "max_tokens": MAX_TOKENS,
            "temperature": TEMPERATURE,
            "in_flight": IN_FLIGHT,
            "block_rows": BLOCK_ROWS,
        }
        (folder / "job.json").write_text(json.dumps(job))
        for part in parts:
            clear(side, folder)
            found[part] = PARTS[part](side, folder, rows, planned)
            (folder / f"{part}.json").write_text(json.dumps(found[part], indent=1))
    return found


def print_whole(results):
    print(
        "| round | side | rows | tokens | s | rows/s | tokens/s | first row kept, s | command, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for round_, found in results:
        whole = found["whole"]
        first = whole["first_row_s"]
        print(
            f"| {round_} | {found['side']} | {whole['requests']} | {whole['tokens']:,} "
            f"| {whole['work_s']:.1f} | {whole['requests'] / whole['work_s']:.2f} "
            f"| {whole['tokens'] / whole['work_s']:,.0f} "
            f"| {'–' if first is None else f'{first:.1f}'} | {whole['command_s']:.1f} |"
        )


def print_killed(results):
    print(
        "| round | side | finished at the kill | in flight | second command: exit code | s "
        "| its requests | rows lost | repeated | duplicates | other requests |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for round_, found in results:
        killed = found["killed"]
        print(
            f"| {round_} | {found['side']} | {killed['at_kill']} | {killed['in_flight']} "
            f"| {killed['exit']} | {killed['again_s']:.1f} | {killed['again_requests']} "
            f"| {killed['lost']} | {killed['repeated']} | {killed['duplicates']} "
            f"| {killed['other_requests']} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="peers-"))
    job = root / "job.yaml"
    job.write_text(JOB.replace("OUT", str(root / "out")))
    rows, planned = read_plan(load_job(job))
    results = []
    for round_ in range(options.rounds):
        cut = round_ % len(options.sides)
        for side in options.sides[cut:] + options.sides[:cut]:
            print(f"round {round_ + 1}: {side}", file=sys.stderr, flush=True)
            results.append((round_ + 1, measure(side, options.parts, root, rows, planned)))
    if "whole" in options.parts:
        print_whole(results)
        print()
    if "killed" in options.parts:
        print_killed(results)
    print(f"\nlogs and results: {root}", file=sys.stderr)


if __name__ == "__main__":
    main()
