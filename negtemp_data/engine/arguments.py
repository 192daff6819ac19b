"""vLLM's engine arguments: which names exist, which are ours, and defaults for a machine.

The names are read from vLLM's source, not by importing it, so that a typing mistake is found in
milliseconds and before anything starts.
"""

import ast
import importlib.util
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from negtemp_data.errors import JobError

OURS = {
    "model": "set generate.model instead",
    "tokenizer": "the model's own tokenizer is used",
    "seed": "the job's seed gives every row its own",
    "enable_lora": "set generate.lora instead",
    "max_loras": "there is one adapter, generate.lora",
    "max_lora_rank": "it is read from the adapter, generate.lora",
    "logits_processors": "the schedules are carried out there",
    "worker_extension_cls": "the injection records come out there",
    "logprobs_mode": "the data set holds raw log-probabilities",
    "disable_log_stats": "throughput is shown by the run itself",
}
"""Arguments that a job can't set, and why."""

_CPU_MAX_BATCHED_TOKENS = 2048
"""More makes steps of minutes on a slow machine, and none cheaper: 96 rows judged by likelihood
took 71 and 75 s with 2,048, 84 and 85 s with 16,384, and the quickstart 178 and 213 s
(SmolLM2-135M, two cores)."""
CPU_KV_CACHE_BYTES = 2 << 30


def check_engine_arguments(arguments: Mapping[str, Any], where: str = "generate.engine") -> None:
    """Refuses names that vLLM does not have, or that are the project's own.

    Raises:
        JobError: With the path, and the nearest name that exists.
    """
    known = _known_arguments()
    for name in arguments:
        if name in OURS:
            raise JobError(f"{where}.{name}: can't be set; {OURS[name]}.")
        if known and name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see `vllm serve --help`."
            raise JobError(f"{where}.{name}: vLLM has no such engine argument; {hint}")


def _known_arguments() -> set[str]:
    """Fields of vLLM's EngineArgs; empty where vLLM is not installed (a client's machine)."""
    package = importlib.util.find_spec("vllm")
    if package is None or not package.submodule_search_locations:
        return set()
    source = Path(package.submodule_search_locations[0], "engine", "arg_utils.py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            fields = (item.target for item in node.body if isinstance(item, ast.AnnAssign))
            return {field.id for field in fields if isinstance(field, ast.Name)}
    return set()


def machine_defaults(is_cpu: bool) -> dict[str, Any]:
    """Engine arguments that a job may override, for a machine without or with GPUs.

    On a CPU: no compilation (60 to 90 s for a tenth more speed), and no chunked prefill, because
    vLLM's seeded CPU sampler fails when a prefill is cut (vllm 0.32, "CPU Generator does not use
    offset"); so a prefill has to fit in one step. Where oneDNN does not do bfloat16 (x86 without
    AVX-512), products of matrices take five times as long in it as in float32.
    """
    if not is_cpu:
        return {}
    import torch  # noqa: PLC0415

    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return {
        "dtype": "auto" if has_bf16 else "float32",
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": _CPU_MAX_BATCHED_TOKENS,
        "max_num_seqs": 128,
        "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
    }


def prepare_environment(is_cpu: bool) -> None:
    """Sets what vLLM reads from the environment; must run before vllm is imported.

    Args:
        is_cpu: Whether the engine runs on the CPU. Then it lives in this very process, which leaves
            nothing behind when the process ends.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if is_cpu:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
