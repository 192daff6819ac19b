"""The job of `benchmarks/peers.py` done by Bespoke Curator: `python with_curator.py FOLDER`.

Runs in curator's own environment. Its cache, FOLDER/cache, is automatic: the same command again
goes on with the responses that are in it.
"""

import json
import sys
from pathlib import Path

from bespokelabs import curator
from datasets import Dataset


class Completer(curator.LLM):
    def prompt(self, row):
        return row["prompt"]

    def parse(self, row, response):
        return {"id": row["id"], "text": response}


def main(folder):
    job = json.loads((folder / "job.json").read_text())
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    completer = Completer(
        model_name=f"hosted_vllm/{job['served_model']}",
        backend="litellm",
        generation_params={"max_tokens": job["max_tokens"], "temperature": job["temperature"]},
        backend_params={
            "base_url": job["url"],
            "max_concurrent_requests": job["in_flight"],
            "max_requests_per_minute": 1_000_000,
            "max_tokens_per_minute": 1_000_000_000,
            # By default a completion that ends at max_tokens is a failure, tried ten times again.
            "invalid_finish_reasons": ["content_filter"],
        },
    )
    made = completer(Dataset.from_list(rows), working_dir=str(folder / "cache")).dataset
    with (folder / "output.jsonl").open("w") as file:
        for row in made:
            file.write(json.dumps({"id": row["id"], "text": row["text"]}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
