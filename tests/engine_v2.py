"""A real engine with Model Runner V2 on a CPU, in a process of its own.

V2 runs on Triton, and vLLM has a V2 runner for CPUs on which Triton can compile. The usual Triton
can't; but its interpreter carries out every kernel with numpy, slowly. So vLLM is told, in this
process only, that there is a Triton for the CPU.

Run as a script it reads what to do as JSON from its input, and writes what came of it to its
output.
"""

import json
import os
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

_ENVIRONMENT = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}


def allow_triton_on_the_cpu() -> None:
    """Must run before vllm is imported."""
    os.environ.update(_ENVIRONMENT)
    import triton.backends
    from triton.runtime.interpreter import InterpreterBuilder

    driver = SimpleNamespace(is_active=lambda: True)
    triton.backends.backends["cpu"] = SimpleNamespace(driver=driver)  # type: ignore[assignment]
    load = InterpreterBuilder.create_masked_load
    store = InterpreterBuilder.create_masked_store

    # The interpreter (triton 3.9) makes integers of some masks, and then refuses them.
    def load_by_bools(self: Any, pointers: Any, mask: Any, *more: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return load(self, pointers, mask, *more)

    def store_by_bools(self: Any, pointers: Any, value: Any, mask: Any, *more: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return store(self, pointers, value, mask, *more)

    InterpreterBuilder.create_masked_load = load_by_bools  # type: ignore[method-assign]
    InterpreterBuilder.create_masked_store = store_by_bools  # type: ignore[method-assign]


def watch(scheduler: Any) -> Counter[str]:
    """Counts what vLLM's scheduler does from now on."""
    seen = Counter[str]()
    preempt, note_drafts = scheduler._preempt_request, scheduler.make_spec_decoding_stats

    def watched_preempt(*arguments: Any, **more: Any) -> Any:
        seen["preempted"] += 1
        return preempt(*arguments, **more)

    def watched_drafts(stats: Any, **more: Any) -> Any:
        seen["drafts"] += more["num_draft_tokens"]
        seen["accepted"] += more["num_accepted_tokens"]
        return note_drafts(stats, **more)

    scheduler._preempt_request = watched_preempt
    scheduler.make_spec_decoding_stats = watched_drafts
    return seen


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Starts an engine, runs the requests and tells what became of them.

    Args:
        order: `model`, `arguments` of the engine, and `requests`: the `prompt`, the `settings` and
            the `extra` arguments of each, and perhaps a `regex`.
    """
    from negtemp_data.engine.engine import Engine, EngineSpec

    engine = Engine(EngineSpec(order["model"], order["arguments"], is_cpu=True, replicas=1))
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    seen = watch(engine._llm.engine_core.engine_core.scheduler)
    futures = []
    for request in order["requests"]:
        regex = request.get("regex")
        params = SamplingParams(
            **request["settings"],
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            extra_args=request["extra"],
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(regex=regex) if regex else None,
        )
        futures.append(engine.submit(request["prompt"], params))
    generations = [future.result() for future in futures]
    outcomes = [
        (generation.token_ids, generation.trace.injections, generation.trace.deferred)
        for generation in generations
    ]
    texts = [engine.tokenizer.decode(generation.token_ids) for generation in generations]
    is_v2 = engine._llm.vllm_config.use_v2_model_runner
    engine.close()
    return {"is_v2": is_v2, "seen": seen, "outcomes": outcomes, "texts": texts}


if __name__ == "__main__":
    order = json.load(sys.stdin)
    # vLLM writes to the standard output, too.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if order["is_v2"]:
        allow_triton_on_the_cpu()
    json.dump(run(order), output)
    output.close()
