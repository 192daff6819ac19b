"""The job of `benchmarks/peers.py` done by ray.data.llm: `python with_ray.py FOLDER`.

Runs in the project's own environment. Row checkpoints are on, so that the same command again leaves
out the rows whose file is written.
"""

import json
import sys
from pathlib import Path

import ray
from ray.data.checkpoint import CheckpointConfig
from ray.data.llm import build_processor, vLLMEngineProcessorConfig


def main(folder):
    job = json.loads((folder / "job.json").read_text())
    # Logical CPUs: each of Ray's stages asks for one of its own.
    ray.init("local", num_cpus=8, include_dashboard=False)
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="id",
        checkpoint_path=str(folder / "checkpoint"),
        delete_checkpoint_on_success=False,
    )
    config = vLLMEngineProcessorConfig(
        model_source=job["model"],
        engine_kwargs=job["engine"],
        runtime_env={"env_vars": job["engine_environment"]},
        placement_group_config={"bundles": [{"CPU": 1}]},
        batch_size=job["block_rows"],
        log_engine_metrics=False,
        chat_template_stage=True,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    params = {"max_tokens": job["max_tokens"], "temperature": job["temperature"]}
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "id": row["id"],
            "messages": [{"role": "user", "content": row["prompt"]}],
            "sampling_params": params,
        },
        postprocess=lambda row: {"id": row["id"], "text": row["generated_text"]},
    )
    n_rows = len((folder / "rows.jsonl").read_text().splitlines())
    rows = ray.data.read_json(
        str(folder / "rows.jsonl"), override_num_blocks=n_rows // job["block_rows"]
    )
    processor(rows).write_parquet(str(folder / "parquet"))
    context.checkpoint_config = None
    with (folder / "output.jsonl").open("w") as file:
        for row in ray.data.read_parquet(str(folder / "parquet")).iter_rows():
            file.write(json.dumps({"id": row["id"], "text": row["text"]}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
