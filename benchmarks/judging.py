"""Generating and judging together against one after the other, on one engine.

    python benchmarks/judging.py jobs/quickstart.yaml

Alternates in one run, the prefix cache emptied before each: rows generated and judged as a run does
it; the same rows generated without a judge; the same rows judged without generating. The ratio is
the first over the sum of the others.
"""

import argparse
import statistics
import time

import numpy as np

from negtemp_data.engine.catalogue import resolve_model
from negtemp_data.engine.engine import Engine, EngineSpec
from negtemp_data.jobspec import VerifyConfig, load_job
from negtemp_data.pipeline.judges import job_judge
from negtemp_data.pipeline.maker import Earlier, NoListener, ShardMaker
from negtemp_data.prompts.readers import read_prompts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=24)
    options = parser.parse_args()
    # Without checks, so that all rows are judged on both sides.
    job = load_job(options.job)
    judged = job.model_copy(update={"verify": VerifyConfig(judge=job.verify.judge)})
    plain = job.model_copy(update={"verify": VerifyConfig()})
    model = resolve_model(job.generate.model).path
    engine = Engine(EngineSpec(model, job.generate.engine, is_cpu=True, replicas=1))
    prompts = [p for p, _ in zip(read_prompts(job.prompts), range(options.prompts), strict=False)]
    both = ShardMaker(judged, engine, job_judge(judged, engine, {}))
    generating = ShardMaker(plain, engine, None)

    def timed(maker, made=None):
        engine._llm.reset_prefix_cache()
        begin = time.perf_counter()
        rows = maker.make(prompts, NoListener(), Earlier(generated=made or {}))
        return time.perf_counter() - begin, {row["id"]: row for row in rows}

    seconds = {"together": [], "generate": [], "judge": []}
    _, made = timed(generating)
    sides = {
        "together": lambda: timed(both),
        "generate": lambda: timed(generating),
        "judge": lambda: timed(both, made),
    }
    for round_ in range(options.rounds):
        names = list(sides)
        for name in names[round_ % 3 :] + names[: round_ % 3]:
            taken, _ = sides[name]()
            seconds[name].append(taken)
    engine.close()
    ratios = np.array(seconds["together"]) / (
        np.array(seconds["generate"]) + np.array(seconds["judge"])
    )
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(ratios, (10_000, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    n_tokens = sum(row["completion_tokens"] for row in made.values())
    print(f"{len(made)} rows, {n_tokens} generated tokens, {options.rounds} rounds\n")
    print("| together, s | generate, s | judge, s | together ÷ (generate + judge) | 95% |")
    print("|---|---|---|---|---|")
    medians = [f"{statistics.median(seconds[name]):.1f}" for name in seconds]
    print(f"| {' | '.join(medians)} | {np.median(ratios):.3f} | {low:.3f} – {high:.3f} |")


if __name__ == "__main__":
    main()
