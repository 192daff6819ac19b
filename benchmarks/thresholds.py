"""How well checks and judges tell arms apart, from an output that nothing has filtered.

    negtemp run jobs/thresholds.yaml && python benchmarks/thresholds.py out/thresholds

Prints Markdown tables: quantiles by arm of each measure; AUC of each against the control; and the
share of each arm that passes the quickstart's thresholds.
"""

import asyncio
import sys
from collections import defaultdict

import numpy as np

from negtemp_data.jobspec import load_job
from negtemp_data.judging import Sample, perplexity, run_checks
from negtemp_data.storage import Output, read_rows

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LOW_IS_GOOD = ("perplexity", "mass outside the scale")


def auc(high, low):
    """Probability that a value of `high` exceeds one of `low`, ties counted half."""
    high, low = np.asarray(high)[:, None], np.asarray(low)
    return float((high > low).mean() + 0.5 * (high == low).mean())


def main(folder: str) -> None:
    verify = load_job("jobs/quickstart.yaml").verify
    # Each of the quickstart's judges has one score.
    accept_at = {name: judge.accept_at for name, judge in verify.judge.judges.items()}
    values = defaultdict(lambda: defaultdict(list))
    passed = defaultdict(lambda: defaultdict(list))
    for row in read_rows(Output(folder)):
        sample = Sample(
            request=row["prompt"],
            completion=row["completion"],
            token_ids=row["token_ids"],
            logprobs=np.asarray(row["logprobs"], dtype=np.float32),
            injected=[injection["position"] for injection in row["injections"]],
        )
        arm = values[row["arm"]]
        arm["perplexity"].append(perplexity(sample.logprobs, sample.injected))
        by_part = {score["criterion"]: score for score in row["scores"]}
        for part, score in by_part.items():
            arm[part].append(score["score"])
        arm["mass outside the scale"].append(by_part["rating/relevance"]["mass"])
        verdicts = passed[row["arm"]]
        verdicts["checks"].append(
            all(check.passed for check in asyncio.run(run_checks(verify.checks, sample)))
        )
        for judge, part in (("rating", "rating/relevance"), ("topic", "topic/request")):
            verdicts[judge].append(by_part[part]["score"] >= accept_at[judge])
    print("| arm | measure | " + " | ".join(f"{q:.0%}" for q in QUANTILES) + " | AUC |")
    print("|---|---|" + "---|" * (len(QUANTILES) + 1))
    for arm, measures in values.items():
        for name, found in measures.items():
            cells = " | ".join(f"{v:.2f}" for v in np.quantile(found, QUANTILES))
            control = values["control"][name]
            worse = (found, control) if name in LOW_IS_GOOD else (control, found)
            print(f"| {arm} | {name} | {cells} | {auc(*worse):.2f} |")
    print("\n| arm | samples | pass the checks | the rating | the topic | all: accepted |")
    print("|---|---|---|---|---|---|")
    for arm, verdicts in passed.items():
        shares = " | ".join(f"{np.mean(found):.0%}" for found in verdicts.values())
        accepted = np.mean(np.all(list(verdicts.values()), axis=0))
        print(f"| {arm} | {len(verdicts['checks'])} | {shares} | {accepted:.0%} |")


if __name__ == "__main__":
    main(sys.argv[1])
