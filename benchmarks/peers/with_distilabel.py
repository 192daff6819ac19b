"""The job of `benchmarks/peers.py` done by distilabel: `python with_distilabel.py FOLDER`.

Runs in distilabel's own environment. Its cache is on, as it is by default, and lies in
FOLDER/cache; the same command again is how its documentation resumes a pipeline.
"""

import json
import sys
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def main(folder):
    job = json.loads((folder / "job.json").read_text())
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    with Pipeline(name="peers", cache_dir=folder / "cache") as pipeline:
        load = LoadDataFromDicts(
            data=[{"id": row["id"], "instruction": row["prompt"]} for row in rows],
            batch_size=job["in_flight"],
        )
        generate = TextGeneration(
            llm=OpenAILLM(
                model=job["served_model"],
                base_url=job["url"],
                api_key="none",
                generation_kwargs={
                    "max_new_tokens": job["max_tokens"],
                    "temperature": job["temperature"],
                },
            ),
            input_batch_size=job["in_flight"],
        )
        load >> generate
    made = pipeline.run(use_cache=True)["default"]["train"]
    with (folder / "output.jsonl").open("w") as file:
        for row in made:
            file.write(json.dumps({"id": row["id"], "text": row["generation"]}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
