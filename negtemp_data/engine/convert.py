"""Converts a GGUF file into a folder that vLLM loads; run as a process of its own.

`python -m negtemp_data.engine.convert FILE FOLDER` writes FOLDER/model.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(source: Path, folder: Path) -> None:
    """Dequantises the weights of `source` to bfloat16 and writes them to `folder`/model."""
    location = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(
        **location, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(**location).save_pretrained(folder / "model")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
