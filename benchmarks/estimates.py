"""The estimate of `negtemp plan --calibrate` against the run that it speaks of.

    python benchmarks/estimates.py --rounds 3

For each job, alternated: an estimate from 12 of its prompts, then the run into a new output. Prints
estimated ÷ real generated tokens and seconds, from command to end.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

JOBS = {
    "quickstart": "jobs/quickstart.yaml",
    "long": "benchmarks/estimates/long.yaml",
    "judged": "benchmarks/estimates/judged.yaml",
}


def negtemp(*arguments):
    begin = time.perf_counter()
    command = [sys.executable, "-m", "negtemp_data", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    options = parser.parse_args()
    print("| job | round | tokens, estimated | real | ratio | seconds, estimated | real | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    ratios = {name: [] for name in options.jobs}
    for round_ in range(options.rounds):
        for name in options.jobs:
            with tempfile.TemporaryDirectory() as out:
                calibrate = ("--calibrate", options.prompts, "--prompts", 0)
                plan, _ = negtemp("plan", JOBS[name], "--out", f"{out}/data", *calibrate)
                told = plan["estimate"]
                result, seconds = negtemp("run", JOBS[name], "--out", f"{out}/data")
            ratio = told["tokens"] / result["tokens"], told["seconds"] / seconds
            ratios[name].append(ratio)
            print(
                f"| {name} | {round_ + 1} | {told['tokens']:.0f} ± {told['tokens_error']:.0f} "
                f"| {result['tokens']} | {ratio[0]:.2f} | {told['seconds']:.0f} | {seconds:.0f} "
                f"| {ratio[1]:.2f} |",
                flush=True,
            )
    for name, pairs in ratios.items():
        tokens, seconds = (statistics.median(each) for each in zip(*pairs, strict=True))
        print(f"{name}: median ratio of tokens {tokens:.2f}, of seconds {seconds:.2f}")


if __name__ == "__main__":
    main()
