"""What several judges are worth together, from measurements of each on the same samples.

    negtemp lab judge JOB --prompts 210 --out lab                 # and again with other judges:
    mkdir lab2; cp -r lab/generated lab2/
    negtemp lab judge JOB --prompts 210 --out lab2 --set 'verify.judge=…'
    python benchmarks/judges.py lab/judged lab2/judged --combine text topic/request end/end

Prints Markdown tables: AUC of each part of all scores against the clean samples of the same
prompts; and of each combination, `all` of its parts, with the thresholds (the 5% quantile of the
clean samples) and weights (1/σ of the same) of every other prompt, measured on the rest.
"""

import argparse
import sys
from collections import defaultdict

import numpy as np

from negtemp_data.lab.labelled import CLEAN
from negtemp_data.lab.measures import auc_interval, paired_interval
from negtemp_data.storage import Output, read_rows

QUANTILE = 0.05


def read(folders):
    """Scores by kind, prompt and part, of samples that all folders have with the same text."""
    texts, scores, counts = {}, defaultdict(dict), defaultdict(int)
    for folder in folders:
        for row in read_rows(Output(folder)):
            key = row["arm"], row["prompt_id"]
            if (
                row["error"] is not None
                or texts.setdefault(key, row["completion"]) != row["completion"]
            ):
                continue
            counts[key] += 1
            for part in row["scores"]:
                if part["criterion"] in scores[key]:
                    sys.exit(f"two folders have a part {part['criterion']}")
                scores[key][part["criterion"]] = part["score"]
    kinds = defaultdict(dict)
    for (kind, prompt), parts in scores.items():
        if counts[kind, prompt] == len(folders):
            kinds[kind][prompt] = parts
    return dict(kinds)


def column(samples, prompts, part):
    """A part's scores; nan where a judge had nothing to say."""
    return np.array([samples[prompt].get(part, np.nan) for prompt in prompts])


def cell(interval):
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def print_parts(kinds, names):
    print("| kind of sample | n | " + " | ".join(f"{name} | pair" for name in names) + " |")
    print("|---|---|" + "---|---|" * len(names))
    clean = kinds[CLEAN]
    for kind, samples in kinds.items():
        if kind == CLEAN:
            continue
        prompts = [prompt for prompt in clean if prompt in samples]
        cells = []
        for name in names:
            good, bad = column(clean, prompts, name), column(samples, prompts, name)
            said = np.isfinite(good) & np.isfinite(bad)
            cells.append(cell(auc_interval(good[said], bad[said], is_paired=True)))
            cells.append(f"{paired_interval(good[said], bad[said]).value:.0%}")
        print(f"| {kind} | {len(prompts)} | " + " | ".join(cells) + " |")


def print_combination(kinds, names):
    clean = kinds[CLEAN]
    prompts = list(clean)
    chosen_on, measured_on = prompts[::2], prompts[1::2]
    fitted = np.stack([column(clean, chosen_on, name) for name in names])
    accept_at, weight = np.nanquantile(fitted, QUANTILE, axis=1), 1 / np.nanstd(fitted, axis=1)

    def margins(samples, these):
        values = np.stack([column(samples, these, name) for name in names], axis=1)
        return np.nanmin(weight * (values - accept_at), axis=1)

    good = margins(clean, measured_on)
    print(f"\nall of {', '.join(names)}; chosen on {len(chosen_on)} prompts, measured on the rest")
    for name, threshold, scale in zip(names, accept_at, weight, strict=True):
        print(f"- {name}: accept_at {threshold:.3f}, weight {scale:.3f}")
    print("\n| kind of sample | AUC | pair | accepted |\n|---|---|---|---|")
    print(f"| {CLEAN} | | | {(good >= 0).mean():.0%} |")
    for kind, samples in kinds.items():
        if kind == CLEAN:
            continue
        these = [prompt for prompt in measured_on if prompt in samples]
        bad, of_these = margins(samples, these), margins(clean, these)
        print(
            f"| {kind} | {cell(auc_interval(of_these, bad, is_paired=True))} | "
            f"{paired_interval(of_these, bad).value:.0%} | {(bad >= 0).mean():.0%} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outputs", nargs="+", help="`judged` of labs on the same samples")
    parser.add_argument("--combine", nargs="+", action="append", default=[], metavar="PART")
    options = parser.parse_args()
    kinds = read(options.outputs)
    names = sorted(
        {name for samples in kinds.values() for part in samples.values() for name in part}
    )
    unknown = {name for combination in options.combine for name in combination} - set(names)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    print_parts(kinds, names)
    for combination in options.combine:
        print_combination(kinds, combination)


if __name__ == "__main__":
    main()
