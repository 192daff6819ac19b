"""How well checks and judge tell arms apart, from an output that nothing has filtered.

    negtemp run jobs/thresholds.yaml && python benchmarks/thresholds.py out/thresholds

Prints a Markdown table: quantiles by arm of each measure, AUC against the control, and the share of
each arm that passes the quickstart's thresholds.
"""

import asyncio
import sys
from collections import defaultdict

import numpy as np

from negtemp_data.jobspec import load_job
from negtemp_data.judging import Sample, perplexity, run_checks
from negtemp_data.storage import Output, read_rows

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def auc(high, low):
    """Probability that a value of `high` exceeds one of `low`, ties counted half."""
    high, low = np.asarray(high)[:, None], np.asarray(low)
    return float((high > low).mean() + 0.5 * (high == low).mean())


def main(folder: str) -> None:
    quickstart = load_job("jobs/quickstart.yaml").verify
    values = defaultdict(lambda: defaultdict(list))
    for row in read_rows(Output(folder)):
        sample = Sample(
            request=row["prompt"],
            completion=row["completion"],
            token_ids=row["token_ids"],
            logprobs=np.asarray(row["logprobs"], dtype=np.float32),
            injected=[injection["position"] for injection in row["injections"]],
        )
        checked = all(check.passed for check in asyncio.run(run_checks(quickstart.checks, sample)))
        arm = values[row["arm"]]
        arm["perplexity"].append(perplexity(sample.logprobs, sample.injected))
        arm["score"].append(row["score"])
        for score in row["scores"]:
            arm[score["criterion"]].append(score["score"])
            arm["mass outside the scale"].append(score["mass"])
        arm["passes the checks"].append(checked)
        arm["accepted"].append(checked and row["score"] >= quickstart.judge.accept_at)
    print("| arm | measure | " + " | ".join(f"{q:.0%}" for q in QUANTILES) + " |")
    print("|---|---|" + "---|" * len(QUANTILES))
    for arm, measures in values.items():
        for name in ("perplexity", "score", "coherence", "relevance", "mass outside the scale"):
            cells = " | ".join(f"{v:.2f}" for v in np.quantile(measures[name], QUANTILES))
            print(f"| {arm} | {name} | {cells} |")
    print("\n| arm | samples | pass the checks | accepted | AUC perplexity | AUC score |")
    print("|---|---|---|---|---|---|")
    control = values["control"]
    for arm, measures in values.items():
        print(
            f"| {arm} | {len(measures['score'])} | {np.mean(measures['passes the checks']):.0%} "
            f"| {np.mean(measures['accepted']):.0%} "
            f"| {auc(measures['perplexity'], control['perplexity']):.2f} "
            f"| {auc(control['score'], measures['score']):.2f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1])
