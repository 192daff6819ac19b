"""What the sampler costs: the step alone, and decoding with a schedule against decoding without.

    python benchmarks/sampler.py step             # no model: a grid of batch and vocabulary sizes
    python benchmarks/sampler.py decode           # the embedded model in vLLM, on this machine
    python benchmarks/sampler.py step --device cuda

`step` compares, alternating in one run on the same rows, an in-place read and write of the rows
(the floor), the sampler's step where every row injects, its step where every row is watched for its
entropy and none injects, its step where every row has a base that vLLM can't sample, and vLLM's own
min_p processor. On a GPU every step must be free of synchronisations, which torch checks.

`decode` alternates the same requests with and without a schedule on one engine: seeds and
log-probabilities on both sides, no early end, so that both sides decode as many tokens. It also
takes the time that the sampler's steps take of a side's: on a machine whose speed changes, a share
of the same seconds is known better than a ratio of different ones. On a GPU it is the host's.
"""

import argparse
import logging
import statistics
import time

import numpy as np
import torch

from negtemp_data.sampling import (
    EntropyTrigger,
    PeriodicTrigger,
    Piece,
    Rule,
    Schedule,
    ScheduleSampler,
    Support,
    TokenTable,
    Vocabulary,
)

ROWS = (8, 64, 256, 1024)
VOCABULARIES = (32_000, 49_152, 128_256, 152_064)
MOST_LOGITS = 1 << 28
"""Cells with more are left out on a CPU."""

SUPPORTS = {
    "min_p": Support(min_p=0.05),
    "epsilon": Support(epsilon=1e-3),
    "top_n_sigma": Support(top_n_sigma=1.0),
    "top_p": Support(top_p=0.9),
    "top_k": Support(top_k=50),
}

BASES = {
    "T = 5": Piece(5.0),
    "T = 5 and top_p": Piece(5.0, top_p=0.95),
    "T = 5 on min_p": Piece(5.0, support=Support(min_p=0.05)),
}


class Timer:
    """Times calls in seconds, on either device."""

    def __init__(self, device):
        self._is_cuda = device.type == "cuda"

    def __call__(self, call):
        if not self._is_cuda:
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        torch.cuda.set_sync_debug_mode("error")
        call()
        torch.cuda.set_sync_debug_mode("default")
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000


class Stepper:
    """Steps one batch whose rows all have the same schedule."""

    def __init__(self, schedule, tokens, n_rows, width, device):
        self._sampler = ScheduleSampler(tokens, width, device)
        slots = [self._sampler.open(str(i), schedule, i, is_traced=False) for i in range(n_rows)]
        self._slots, self._rows = np.array(slots), np.arange(n_rows)
        self._position = 0

    def __call__(self, logits):
        positions = np.full(len(self._rows), self._position)
        self._position += 1
        return self._sampler.step(logits, self._rows, self._slots, positions, None)


def vllm_min_p(n_rows, width, device):
    """vLLM's own min_p processor on the same rows; None where it is not installed."""
    try:
        from vllm import SamplingParams
        from vllm.config import VllmConfig
        from vllm.v1.sample.logits_processor import BatchUpdate
        from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor
    except ImportError:
        return None
    logging.getLogger("vllm").setLevel(logging.WARNING)
    config = VllmConfig()
    config.scheduler_config.max_num_seqs = n_rows
    processor = MinPLogitsProcessor(config, device, False)
    added = [(i, SamplingParams(min_p=0.05), None, []) for i in range(n_rows)]
    processor.update_state(BatchUpdate(n_rows, removed=[], added=added, moved=[]))
    return processor.apply


def measure_steps(device, n_rounds):
    print(
        f"{device_name(device)}, {torch.get_num_threads()} threads, median of {n_rounds} rounds\n"
    )
    names = [f"inject, {name}" for name in SUPPORTS] + ["watch entropy"]
    names += [f"base, {name}" for name in BASES] + ["vLLM min_p"]
    print("| rows | vocabulary | read + write, µs | " + " | ".join(names) + " |")
    print("|---" * (3 + len(names)) + "|")
    timer = Timer(device)
    for width in VOCABULARIES:
        tokens = TokenTable([f" w{i}".encode() for i in range(width)], frozenset({0}))
        for n_rows in ROWS:
            if device.type == "cpu" and n_rows * width > MOST_LOGITS:
                continue
            cells = measure_cell(tokens, n_rows, width, device, timer, n_rounds)
            floor = cells.pop("floor")
            ratios = [f"{cells[name] / floor:.1f} ×" if name in cells else "–" for name in names]
            print(
                f"| {n_rows} | {width:,} | {floor * 1e6:,.0f} | {' | '.join(ratios)} |", flush=True
            )
    measure_quiet_step(device, timer)


def measure_cell(tokens, n_rows, width, device, timer, n_rounds):
    """Median seconds of each side on one batch."""
    generator = torch.Generator(device).manual_seed(0)
    original = torch.randn(n_rows, width, device=device, generator=generator) * 3
    logits = original.clone()
    exclude = Vocabulary(exclude=("special",))
    sides = {"floor": lambda z: z.mul_(1.0)}
    for name, support in SUPPORTS.items():
        rule = Rule(PeriodicTrigger(1), -1.0, support, exclude)
        sides[f"inject, {name}"] = Stepper(Schedule((rule,)), tokens, n_rows, width, device)
    watch = Rule(EntropyTrigger(above=1e9), -1.0, Support(min_p=0.05), exclude)
    sides["watch entropy"] = Stepper(Schedule((watch,)), tokens, n_rows, width, device)
    for name, piece in BASES.items():
        schedule = Schedule(base=(piece,))
        sides[f"base, {name}"] = Stepper(schedule, tokens, n_rows, width, device)
    min_p = vllm_min_p(n_rows, width, device)
    if min_p is not None:
        sides["vLLM min_p"] = min_p
    seconds = {name: [] for name in sides}
    for round_ in range(n_rounds + 2):
        for name, side in sides.items():
            logits.copy_(original)
            taken = timer(lambda side=side: side(logits))
            if round_ >= 2:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_quiet_step(device, timer):
    """A step at which no row of 256 fires."""
    width = 49_152
    tokens = TokenTable([f" w{i}".encode() for i in range(width)], frozenset({0}))
    rule = Rule(PeriodicTrigger(1), -1.0, Support(min_p=0.05), start=10**6)
    stepper = Stepper(Schedule((rule,)), tokens, 256, width, device)
    logits = torch.zeros(256, width, device=device)
    stepper(logits)
    quiet = statistics.median(timer(lambda: stepper(logits)) for _ in range(200))
    print(f"\nA step of 256 rows at which no row fires: {quiet * 1e6:.1f} µs.")


EVERY = {"when": {"every": 24, "start": 8, "jitter": 4}, "temperature": -1.0}
SCHEDULES = {
    "every 24, min_p 0.05": EVERY | {"support": {"min_p": 0.05}},
    "entropy above 3 nats, cooldown 8": {
        "when": {"entropy": {"above": 3.0}, "cooldown": 8},
        "temperature": -1.0,
        "support": {"min_p": 0.05},
    },
}


class StepClock:
    """Seconds that all samplers of this process have spent in their steps."""

    def __init__(self):
        self.seconds = 0.0
        step = ScheduleSampler.step

        def timed_step(*args):
            begin = time.perf_counter()
            result = step(*args)
            self.seconds += time.perf_counter() - begin
            return result

        ScheduleSampler.step = timed_step


def measure_decode(n_alternations, n_requests, n_tokens):
    import json

    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from negtemp_data.engine.catalogue import resolve_model
    from negtemp_data.engine.compile import KEY, SCHEDULE
    from negtemp_data.engine.engine import Engine, EngineSpec

    clock = StepClock()
    is_cpu = not torch.cuda.is_available()
    model = resolve_model("smollm2-135m-instruct").path
    engine = Engine(EngineSpec(model, {"max_model_len": 512}, is_cpu=is_cpu, replicas=1))
    prompts = [
        engine.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"Write a few sentences about the number {i}."}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for i in range(n_requests)
    ]

    def decode(name, rule, n_tokens):
        futures = []
        for i, prompt in enumerate(prompts):
            extra = None
            if rule is not None:
                extra = {KEY: f"{name}/{i}", SCHEDULE: json.dumps({"inject": [rule]})}
            params = SamplingParams(
                temperature=0.8,
                seed=i,
                max_tokens=n_tokens,
                ignore_eos=True,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args=extra,
            )
            futures.append((prompt, params))
        begin, begin_in_steps = time.perf_counter(), clock.seconds
        futures = [engine.submit(prompt, params) for prompt, params in futures]
        generations = [future.result() for future in futures]
        seconds = time.perf_counter() - begin
        share = (clock.seconds - begin_in_steps) / seconds
        traces = [generation.trace for generation in generations]
        counts = sum(len(t.injections) for t in traces), sum(t.deferred for t in traces)
        return n_requests * n_tokens / seconds, share, counts

    print(
        f"{device_name(torch.device('cpu' if is_cpu else 'cuda'))}; SmolLM2-135M in "
        f"{engine._llm.model_config.dtype}; {n_requests} requests × {n_tokens} tokens a side and "
        f"round, {n_alternations} rounds\n"
    )
    sides = {"plain": None} | SCHEDULES
    for name, rule in sides.items():
        decode(f"warm {name}", rule, 8)
    speeds, shares = {name: [] for name in sides}, {name: [] for name in sides}
    counts = {}
    for round_ in range(n_alternations):
        # The order turns, so that no side always follows the same other.
        names = list(sides)[round_ % len(sides) :] + list(sides)[: round_ % len(sides)]
        for name in names:
            speed, share, counts[name] = decode(f"{round_} {name}", sides[name], n_tokens)
            speeds[name].append(speed)
            shares[name].append(share)
    engine.close()
    print(
        "| schedule | tokens/s | ÷ plain: median | 95% interval | in the sampler's steps "
        "| injections | deferred |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in sides:
        ratios = np.array(speeds[name]) / np.array(speeds["plain"])
        low, high = bootstrap_median(ratios)
        print(
            f"| {name} | {statistics.median(speeds[name]):,.0f} | {np.median(ratios):.3f} | "
            f"{low:.3f} – {high:.3f} | {statistics.median(shares[name]):.2%} | {counts[name][0]} | "
            f"{counts[name][1]} |"
        )


def bootstrap_median(values):
    """95% interval of the median."""
    generator = np.random.default_rng(0)
    draws = generator.choice(values, (10_000, len(values)))
    return np.percentile(np.median(draws, axis=1), [2.5, 97.5])


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["step", "decode", "all"], default="all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    if options.what in ("step", "all"):
        measure_steps(torch.device(options.device), options.rounds)
    if options.what in ("decode", "all"):
        measure_decode(options.rounds, options.requests, options.tokens)


if __name__ == "__main__":
    main()
