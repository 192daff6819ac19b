"""Share of samples that come out the same with another batch size, by dtype and kind of sampling.

    python benchmarks/reproducibility.py            # every engine in a process of its own

Each configuration generates the same 64 requests (32 prompts, plain and injected, 64 tokens) on the
embedded model; the table compares each with the first of its dtype.
"""

import json
import subprocess
import sys

CONFIGURATIONS = {
    "float32": [{"max_num_seqs": 64}, {"max_num_seqs": 64}, {"max_num_seqs": 7}],
    "bfloat16": [{"max_num_seqs": 64}, {"max_num_seqs": 64}, {"max_num_seqs": 7}],
}
N_PROMPTS = 32
N_TOKENS = 64


def generate(arguments):
    """Prints {kind: [token ids, …]} of one engine as the last line."""
    from negtemp_data.engine.catalogue import resolve_model
    from negtemp_data.engine.compile import ArmParameters
    from negtemp_data.engine.engine import Engine, EngineSpec
    from negtemp_data.engine.tokens import PromptEncoder
    from negtemp_data.jobspec import load_job
    from negtemp_data.prompts import Prompt

    job = load_job("jobs/quickstart.yaml", [f"generate.max_tokens={N_TOKENS}"])
    model = resolve_model(job.generate.model).path
    engine = Engine(EngineSpec(model, {"max_model_len": 512, **arguments}, is_cpu=True, replicas=1))
    encoder = PromptEncoder(engine.tokenizer, 511)
    arms = {arm: ArmParameters(job.generate, job.schedules[arm]) for arm in job.schedules}
    futures = {arm: [] for arm in arms}
    for i in range(N_PROMPTS):
        text = f"Write a few sentences about the number {i}."
        prompt = Prompt(id=str(i), text=text, messages=None, source=None, error=None)
        ids = encoder.encode(prompt, None)
        for arm, parameters in arms.items():
            params = parameters.sampling_params(f"{arm}/{i}", i, N_TOKENS)
            futures[arm].append(engine.submit(ids, params))
    print(json.dumps({arm: [f.result().token_ids for f in futures[arm]] for arm in arms}))
    engine.close()


def main() -> None:
    print("| dtype | batch | plain | injected |\n|---|---|---|---|")
    for dtype, configurations in CONFIGURATIONS.items():
        first = None
        for configuration in configurations:
            arguments = json.dumps({"dtype": dtype, **configuration})
            done = subprocess.run(
                [sys.executable, __file__, arguments], capture_output=True, text=True, check=True
            )
            result = json.loads(done.stdout.splitlines()[-1])
            if first is None:
                first = result
                continue
            cells = [
                f"{sum(a == b for a, b in zip(first[arm], result[arm], strict=True))}/{N_PROMPTS}"
                for arm in ("control", "negative")
            ]
            print(f"| {dtype} | at most {configuration['max_num_seqs']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        generate(json.loads(sys.argv[1]))
    else:
        main()
