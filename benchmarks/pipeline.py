"""The pipeline against vLLM's own `LLM.generate` and against `ray.data.llm`, on the same requests.

    python benchmarks/pipeline.py smollm2
    python benchmarks/pipeline.py tiny
    python benchmarks/pipeline.py tiny --sides negtemp llm --profile

Each side is a process of its own, started anew in every round, the order rotating. All get the same
prompt tokens, sampling parameters (a seed for each request, log-probabilities) and engine
arguments. Prints generated tokens a second from the engine's readiness to the last row, seconds
from command to readiness, and the ratios round by round, with their median and range.

Sides: `negtemp` is `negtemp run` on a job without judge, rows committed to disk; `llm` is
`LLM.generate` with its engine in the same process, `llm-process` with vLLM's default, a process for
the engine; `ray.data.llm` is its vLLM processor, rows kept in memory.

`--profile` reads the kernel's accounts of all threads every two seconds, and tells where the cores
went while the engine worked: what its two threads of arithmetic ran, how long they were ready to
run and another thread had their core, and what all others ran.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path

SEED = 11
JOB = """
version: 1
name: pipeline
seed: {seed}
prompts: {{source: jobs/prompts/everyday.jsonl, id: id, text: prompt}}
generate:
  model: {model}
  max_tokens: {max_tokens}
  samples: {{control: {samples}}}
  engine: {{max_model_len: 1024}}
schedules: {{control: {{base: {{temperature: 0.8}}}}}}
output: {{path: {out}}}
"""
SIZES = {"smollm2": {"max_tokens": 128, "samples": 2}, "tiny": {"max_tokens": 256, "samples": 10}}
SIDES = ("negtemp", "llm", "llm-process", "ray.data.llm")


def read_requests(job):
    """Prompt tokens and seed of each row, as a run has them."""
    from transformers import AutoTokenizer

    from negtemp_data.engine.catalogue import resolve_model
    from negtemp_data.engine.tokens import PromptEncoder
    from negtemp_data.prompts import planned_ids, read_prompts, row_seed

    model = resolve_model(job.generate.model).path
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(model), 1023)
    for prompt in read_prompts(job.prompts):
        token_ids = encoder.encode(prompt, None)
        for row in planned_ids(prompt.id, job.generate.samples):
            yield token_ids, row_seed(job.seed, prompt.id, row.sample)


def sampling(job, seed):
    return {
        "temperature": 0.8,
        "seed": seed,
        "max_tokens": job.generate.max_tokens,
        "logprobs": 0,
        "flat_logprobs": True,
        "detokenize": False,
        "output_kind": 2,  # only the whole
    }


def run_llm(job, command_at):
    from negtemp_data.engine.arguments import machine_defaults
    from negtemp_data.engine.catalogue import resolve_model

    requests = list(read_requests(job))
    from vllm import LLM, SamplingParams

    llm = LLM(
        resolve_model(job.generate.model).path, **machine_defaults(True) | job.generate.engine
    )
    ready_at = time.time()
    prompts = [{"prompt_token_ids": token_ids} for token_ids, _ in requests]
    params = [SamplingParams(**sampling(job, seed)) for _, seed in requests]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.time() - ready_at
    n_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {"tokens": n_tokens, "seconds": seconds, "start_s": ready_at - command_at}


def run_ray_data_llm(job, command_at):
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from negtemp_data.engine.arguments import machine_defaults
    from negtemp_data.engine.catalogue import resolve_model

    requests = list(read_requests(job))
    # Logical CPUs: each of its stages asks for one of its own.
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = vLLMEngineProcessorConfig(
        model_source=resolve_model(job.generate.model).path,
        engine_kwargs=machine_defaults(True) | job.generate.engine,
        placement_group_config={"bundles": [{"CPU": 1}]},
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "prompt": "",
            "tokenized_prompt": row["token_ids"],
            "sampling_params": sampling(job, row["seed"]),
        },
        postprocess=lambda row: {
            "n_tokens": row["num_generated_tokens"],
            "taken_s": row["time_taken_llm"],
        },
    )
    rows = [{"token_ids": list(token_ids), "seed": seed} for token_ids, seed in requests]
    n_tokens, ready_at = 0, float("inf")
    for row in processor(ray.data.from_items(rows)).iter_rows():
        n_tokens += row["n_tokens"]
        # The engine is ready when the first request is begun; of all rows, one that comes out at
        # once tells it best.
        ready_at = min(ready_at, time.time() - row["taken_s"])
    seconds = time.time() - ready_at
    return {"tokens": n_tokens, "seconds": seconds, "start_s": ready_at - command_at}


def run_negtemp(job_path, command_at):
    command = [sys.executable, "-m", "negtemp_data", "run", job_path, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    result = json.loads(done.stdout)
    lines = Path(result["output"], "_run", "events.jsonl").read_text().splitlines()
    (ready,) = (line for line in map(json.loads, lines) if line["event"] == "engine_ready")
    ready_at = datetime.fromisoformat(ready["time"]).timestamp()
    return {
        "tokens": result["tokens"],
        "seconds": result["seconds"],
        "start_s": ready_at - command_at,
    }


def run_side(side, job_path):
    """One side, in this process; leaves its result beside the job."""
    from negtemp_data.jobspec import load_job

    command_at = float(os.environ["COMMAND_AT"])
    if side == "negtemp":
        result = run_negtemp(job_path, command_at)
    else:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(side != "llm"))
        if side != "llm":
            # Left alone, an engine in a process of its own keeps a core free for the other process.
            cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
        run = run_ray_data_llm if side == "ray.data.llm" else run_llm
        result = run(load_job(job_path), command_at)
    # Engines print to stdout.
    Path(job_path).with_name("result.json").write_text(json.dumps(result))


class Profile:
    """Accounts of all threads of this machine, taken every two seconds while it is open."""

    def __init__(self):
        self._snapshots = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._is_over.set()
        self._thread.join()

    def _watch(self):
        while not self._is_over.wait(2):
            self._snapshots.append((time.time(), self._read()))

    @staticmethod
    def _read():
        """Nanoseconds run, nanoseconds waited and turns of each thread, with its names."""
        accounts = {}
        for path in Path("/proc").glob("[0-9]*/task/[0-9]*"):
            with suppress(OSError):  # it has ended
                numbers = [int(number) for number in (path / "schedstat").read_text().split()]
                process = (path.parents[1] / "comm").read_text().strip()
                accounts[path.parents[1].name, path.name] = process, numbers
        return accounts

    def describe(self, begin, end):
        """What happened between two times, in lines."""
        inside = [snapshot for snapshot in self._snapshots if begin <= snapshot[0] <= end]
        (first_at, first), (last_at, last) = inside[0], inside[-1]
        seconds = last_at - first_at
        grown = {}
        for key, (process, numbers) in last.items():
            before = first[key][1] if key in first else (0, 0, 0)
            grown[key] = process, [now - then for now, then in zip(numbers, before, strict=True)]
        engine = sorted(grown, key=lambda key: grown[key][1][0])[-2:]
        yield f"{seconds:.0f} s"
        for key in reversed(engine):
            process, (ran, waited, turns) = grown.pop(key)
            yield (
                f"engine's thread in {process}: ran {ran / 1e9 / seconds:.1%}, ready but not "
                f"running {waited / 1e9 / seconds:.1%}, {turns / seconds:.0f} turns/s"
            )
        others, turns = Counter(), Counter()
        for key, (process, numbers) in grown.items():
            whose = "others in the engine's process" if key[0] == engine[-1][0] else process
            others[whose] += numbers[0]
            turns[whose] += numbers[2]
        yield (
            f"all others: {others.total() / 1e9 / seconds:.1%} of a core, "
            f"{turns.total() / seconds:.0f} turns/s"
        )
        for whose, ran in others.most_common(8):
            rate = turns[whose] / seconds
            yield f"  {whose}: {ran / 1e9 / seconds:.1%} of a core, {rate:.0f} turns/s"


def measure(side, size, model, is_profiled):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.yaml")
        path.write_text(JOB.format(**SIZES[size], model=model, seed=SEED, out=f"{folder}/out"))
        command_at = time.time()
        profile = Profile() if is_profiled else nullcontext()
        with profile:
            done = subprocess.run(
                [sys.executable, __file__, size, "--side", side, "--job", str(path)],
                env={**os.environ, "COMMAND_AT": str(command_at)},
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            sys.exit(f"{side} failed:\n{done.stderr[-4000:]}")
        found = json.loads(path.with_name("result.json").read_text())
        if is_profiled:
            ready_at = command_at + found["start_s"]
            print(side, *profile.describe(ready_at, ready_at + found["seconds"]), sep="\n  ")
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--profile", action="store_true", help="tell where the cores went")
    parser.add_argument("--side", choices=SIDES, help="run this side alone, in this process")
    parser.add_argument("--job")
    options = parser.parse_args()
    if options.side:
        run_side(options.side, options.job)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = "smollm2-135m-instruct"
        if options.size == "tiny":
            sys.path.insert(0, "tests")
            from small_model import write_model

            model = write_model(Path(folder))
        rates = {side: [] for side in options.sides}
        starts = {side: [] for side in options.sides}
        print("| round | side | tokens | seconds | tokens/s | command to ready, s |")
        print("|---|---|---|---|---|---|")
        for round_ in range(options.rounds):
            cut = round_ % len(options.sides)
            for side in options.sides[cut:] + options.sides[:cut]:
                found = measure(side, options.size, model, options.profile)
                rates[side].append(found["tokens"] / found["seconds"])
                starts[side].append(found["start_s"])
                print(
                    f"| {round_ + 1} | {side} | {found['tokens']:,} | {found['seconds']:.1f} "
                    f"| {rates[side][-1]:,.0f} | {found['start_s']:.1f} |",
                    flush=True,
                )
    for side in options.sides[1:]:
        ratios = [mine / its for mine, its in zip(rates["negtemp"], rates[side], strict=True)]
        print(
            f"negtemp ÷ {side}: median {statistics.median(ratios):.3f}, "
            f"{min(ratios):.3f} to {max(ratios):.3f}"
        )
    for side in options.sides:
        print(f"{side}: command to ready {statistics.median(starts[side]):.1f} s")


if __name__ == "__main__":
    main()
