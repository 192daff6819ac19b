"""What a small SFT on injected samples does to the model, with and without masked injections.

    negtemp run jobs/training.yaml && python benchmarks/training.py out/training

For each seed the prompts are split anew; the model is trained on accepted samples of the arm with
injections, once with labels as `negtemp export --format sft-tokens` writes them and once with a
label on every token of the completion. Prints a Markdown table of losses on held-out prompts: on
accepted control text, and at the injected tokens of accepted injected text. Takes half an hour on
two busy cores.
"""

import sys
import tempfile
from itertools import groupby

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer

from negtemp_data.engine.catalogue import resolve_model
from negtemp_data.export import build_format
from negtemp_data.export.sft_tokens import IGNORED
from negtemp_data.jobspec import build_job, read_yaml
from negtemp_data.storage import Output, read_rows

SEEDS = (0, 1, 2)
STEPS, BATCH_ROWS, LEARNING_RATE = 12, 8, 5e-5
HELD_OUT_ROWS = 48


def load_groups(folder):
    """Rows by prompt, the format that makes records of them, and the model's folder."""
    output = Output(folder)
    job = build_job(read_yaml(output.read_job(), "job"), "job")
    groups = [list(rows) for _, rows in groupby(read_rows(output), key=lambda r: r["prompt_id"])]
    chosen = build_format("sft-tokens", job, {"best_only": False})
    return groups, chosen, resolve_model(job.generate.model).path


def records_of(groups, chosen, is_control):
    """Records of the accepted rows with or without injections, and where they were injected."""
    records = []
    for group in groups:
        rows = [row for row in group if (row["arm"] == "control") == is_control]
        records += [dict(record.values) for record in chosen.convert(rows)]
    return records


def label_all(record):
    """Labels on every token of the completion."""
    ids, labels = record["input_ids"], record["labels"]
    start = next(i for i, label in enumerate(labels) if label != IGNORED)
    # An injected first token is masked too, but an injection starts at position 4 here.
    return record | {"labels": [IGNORED] * start + ids[start:]}


def label_injected(record):
    """Labels at the injected tokens alone."""
    every = label_all(record)["labels"]
    pairs = zip(every, record["labels"], strict=True)
    return record | {"labels": [a if b == IGNORED else IGNORED for a, b in pairs]}


@torch.no_grad()
def mean_loss(model, records):
    """Mean negative log-likelihood over all labels of the records, in nats."""
    model.eval()
    total = n = 0
    for record in records:
        ids, labels = torch.tensor([record["input_ids"]]), torch.tensor(record["labels"])
        logits = model(input_ids=ids).logits[0, :-1].float()
        total += cross_entropy(logits, labels[1:], ignore_index=IGNORED, reduction="sum").item()
        n += (labels[1:] != IGNORED).sum().item()
    return total / n


def train(path, records, seed):
    """The model after `STEPS` steps on records."""
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH_ROWS,
            learning_rate=LEARNING_RATE,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32"},
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
        )
        data = Dataset.from_list(records)
        trainer = SFTTrainer(model=path, args=config, train_dataset=data)
        trainer.train()
        return trainer.model.cpu()


def main(folder):
    disable_progress_bar()
    groups, chosen, path = load_groups(folder)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    print("| seed | labels | control text | change | injected tokens | change |")
    print("|---|---|---|---|---|---|", flush=True)
    changes = {"masked": [], "all tokens": []}
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(groups))
        held_out = [groups[i] for i in order[: len(groups) // 4]]
        rest = [groups[i] for i in order[len(groups) // 4 :]]
        masked = records_of(rest, chosen, is_control=False)[: STEPS * BATCH_ROWS]
        control = records_of(held_out, chosen, is_control=True)[:HELD_OUT_ROWS]
        injected = records_of(held_out, chosen, is_control=False)[:HELD_OUT_ROWS]
        injected = [label_injected(record) for record in injected]
        before = mean_loss(base, control), mean_loss(base, injected)
        print(f"| {seed} | before | {before[0]:.3f} | | {before[1]:.3f} | |", flush=True)
        for name, records in (("masked", masked), ("all tokens", list(map(label_all, masked)))):
            model = train(path, records, seed)
            after = mean_loss(model, control), mean_loss(model, injected)
            changes[name].append(np.subtract(after, before))
            print(
                f"| {seed} | {name} | {after[0]:.3f} | {after[0] - before[0]:+.3f} "
                f"| {after[1]:.3f} | {after[1] - before[1]:+.3f} |",
                flush=True,
            )
    print(f"\n{len(masked)} rows a run, {len(control)} + {len(injected)} held out\n")
    print("| labels | change on control text | change at injected tokens |\n|---|---|---|")
    for name, values in changes.items():
        mean, low, high = np.mean(values, 0), np.min(values, 0), np.max(values, 0)
        cells = [
            f"{m:+.3f} ({a:+.3f} to {b:+.3f})" for m, a, b in zip(mean, low, high, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1])
