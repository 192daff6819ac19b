"""Model Runner V2 as it really is, on a CPU: the same tokens and injections as Model Runner V1.

Where nothing is left to the engine's own random numbers (greedy requests, whose injections have
their own) the two runners must agree token by token, and so must V2 with draft tokens. What V2
samples by itself depends on seed and position alone, so it must agree with itself whatever the
batch.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from negtemp_data.engine.compile import KEY, SCHEDULE, SIBLINGS
from small_model import write_model

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "engine_v2.py"
REGEX = r"(yes|no), [0-9]{2,6} (cats|dogs)\."
RULE = {"temperature": -1.0, "support": {"min_p": 0.05}}
SCHEDULES = [
    {"inject": [RULE | {"when": {"every": 4, "jitter": 2}}]},
    {"inject": [RULE | {"when": {"rate": 0.3, "burst": 2, "cooldown": 2}, "temperature": "inf"}]},
    {"inject": [RULE | {"when": {"entropy": {"above": 3.7}, "max": 5}, "support": {"top_k": 5}}]},
    {"inject": [RULE | {"when": {"after": "word"}, "support": "all", "temperature": "-inf"}]},
    {"inject": [RULE | {"when": {"every": 3}, "support": {"min_p": 0.8}, "defer": 5}]},
    {"inject": [RULE | {"when": {"at": [0, 1, 7, 12]}, "draw": "distinct"}]},
    {"inject": [RULE | {"when": {"margin": {"below": 0.05}, "start": 2, "stop": 20}}]},
    None,
]
HOT = {
    "base": {"track": [{"until": 6, "temperature": 5.0, "top_k": 40}, {"temperature": 0.5}]},
    "inject": [RULE | {"when": {"every": 5}}],
}
COLD = {
    "base": {"temperature": 0, "vocabulary": {"include": ["ascii"]}},
    "inject": [RULE | {"when": {"every": 5}}],
}


def make_request(number, schedule, temperature):
    extra = None
    if schedule is not None:
        extra = {KEY: str(number), SCHEDULE: json.dumps(schedule), SIBLINGS: [7, number]}
    settings = {"temperature": temperature, "seed": 100 + number, "ignore_eos": True}
    # Texts that repeat themselves, from which drafts can be taken.
    prompt = [3 + (number + i % 5) % 250 for i in range(6 + 11 * number % 50)]
    return {
        "prompt": prompt,
        "settings": settings | {"max_tokens": 12 + 7 * number % 20},
        "extra": extra,
    }


GREEDY = [make_request(n, SCHEDULES[n % 8], 0.0) for n in range(10)]
GREEDY.append(make_request(16, COLD, 1.0))
SAMPLED = [make_request(20 + n, SCHEDULES[n], 0.9) for n in range(7)]
SAMPLED.append(make_request(28, HOT, 1.0))
CONSTRAINED = [make_request(40 + n, SCHEDULES[n], 0.9) | {"regex": REGEX} for n in (0, 1, 3)]
for request in CONSTRAINED:
    request["settings"] |= {"ignore_eos": False, "max_tokens": 40}
N_GREEDY, N_SAMPLED = len(GREEDY), len(SAMPLED)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs requests on an engine of its own."""
    model = write_model(tmp_path_factory.mktemp("small"))

    def run_engine(requests, *, is_v2=True, **arguments):
        defaults = {"dtype": "float32", "max_model_len": 256, "kv_cache_memory_bytes": 1 << 26}
        order = {
            "is_v2": is_v2,
            "model": model,
            "arguments": defaults | arguments,
            "requests": requests,
        }
        done = subprocess.run(
            [sys.executable, str(SCRIPT)],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        result = json.loads(done.stdout)
        assert result["is_v2"] == is_v2
        result["outcomes"] = [
            (tokens, [injection_key(i) for i in injections], deferred)
            for tokens, injections, deferred in result["outcomes"]
        ]
        return result

    return run_engine


def injection_key(injection):
    """A record without log-probability and entropy, whose last bits depend on the batch."""
    position, token, displaced, temperature, size, _, rank, _, rule = injection
    return position, token, displaced, temperature, size, rank, rule


@pytest.fixture(scope="module")
def plain(run):
    """What V2 does without any pressure."""
    return run(GREEDY + SAMPLED + CONSTRAINED)


def test_both_runners_give_the_same_tokens_and_injections(run, plain):
    outcomes = plain["outcomes"][:N_GREEDY]
    assert run(GREEDY, is_v2=False)["outcomes"] == outcomes
    n_injections = [len(injections) for _, injections, _ in outcomes]
    assert min(n_injections[:7]) >= 2
    assert n_injections[SCHEDULES.index(None)] == 0
    assert sum(deferred for *_, deferred in outcomes) >= 2


def test_preemption_and_prefill_in_pieces_change_nothing(run, plain):
    pressed = run(
        GREEDY + SAMPLED,
        max_num_seqs=6,
        block_size=32,
        num_gpu_blocks_override=9,
        enable_prefix_caching=False,
        enable_chunked_prefill=True,
        max_num_batched_tokens=16,
    )
    assert pressed["outcomes"] == plain["outcomes"][: N_GREEDY + N_SAMPLED]
    assert pressed["seen"]["preempted"] >= 3


def test_draft_tokens_change_nothing(run, plain):
    drafted = run(
        GREEDY,
        max_num_seqs=6,
        speculative_config={
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 3,
        },
    )
    tokens, injections = ([outcome[i] for outcome in drafted["outcomes"]] for i in range(2))
    assert tokens == [outcome[0] for outcome in plain["outcomes"][:N_GREEDY]]
    assert injections == [outcome[1] for outcome in plain["outcomes"][:N_GREEDY]]
    assert drafted["seen"]["accepted"] >= 5
    assert drafted["seen"]["drafts"] - drafted["seen"]["accepted"] >= 5


def test_a_grammar_holds_under_injections(plain):
    begin = N_GREEDY + N_SAMPLED
    texts, outcomes = plain["texts"][begin:], plain["outcomes"][begin:]
    for text in texts:
        assert re.fullmatch(REGEX, text.removesuffix("</s>")), text
    assert sum(len(injections) for _, injections, _ in outcomes) >= 4
