"""Injections drawn by real vLLM follow the exact distribution, and touch nobody else.

The reference is an independent forward pass of the same weights with transformers, in float32.
Every statistical test draws with fixed seeds 0, 1, 2, …, and rejects with a false-alarm rate of
1e-6.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from negtemp_data.engine.compile import KEY, SCHEDULE
from negtemp_data.sampling import PeriodicTrigger, Rule, Schedule, Support

ALPHA = 1e-6
POWER = 0.99
MOST_BINS = 24
PROMPT = [1, 4093, 198, 4706, 563, 253, 2162, 30, 2, 198]
CANDIDATES = 24


def inject_once(temperature, support=None):
    return Schedule(
        (
            Rule(
                PeriodicTrigger(every=1),
                temperature,
                support or Support(top_k=CANDIDATES),
                max_injections=1,
            ),
        )
    )


def params(schedule=None, *, seed=None, key="k", **changes):
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    extra = None if schedule is None else {KEY: key, SCHEDULE: schedule.to_json()}
    settings = {"max_tokens": 1, "logprobs": 0, "flat_logprobs": True, "detokenize": False}
    return SamplingParams(
        **(settings | changes),
        seed=seed,
        extra_args=extra,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


@pytest.fixture(scope="module")
def logits(tiny_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0, -1].double().numpy()


def support_of(logits, size):
    return np.sort(np.argsort(logits)[-size:])


def exact(logits, support, temperature):
    z = logits[support]
    beta = 0.0 if math.isinf(temperature) else 1 / temperature
    weights = np.exp((z - (z.min() if beta < 0 else z.max())) * beta)
    return weights / weights.sum()


def draws_needed(truth, alternatives):
    """Draws with which a chi-square test against `truth` rejects each alternative with POWER."""
    dof = len(truth) - 1
    limit = stats.chi2.isf(ALPHA, dof)
    n = 500
    for wrong in alternatives:
        effect = ((wrong - truth) ** 2 / truth).sum()
        while stats.ncx2.sf(limit, dof, n * effect) < POWER:
            n = int(n * 1.1)
    return max(n, math.ceil(5 / truth.min()))


def equal_bins(p):
    """A bin for each candidate, of about equal probability, so that none is too rare to count."""
    order = np.argsort(-p)
    bins = np.empty(len(p), dtype=int)
    bins[order] = np.minimum((np.cumsum(p[order]) * MOST_BINS).astype(int), MOST_BINS - 1)
    return np.unique(bins, return_inverse=True)[1]


@pytest.mark.parametrize(
    ("temperature", "size"), [(-1.0, 24), (-0.1, 200), (-math.inf, 24), (math.inf, 24)]
)
def test_first_token_injections_follow_exp_z_over_t_on_the_support(
    tiny_engine, logits, temperature, size
):
    support = support_of(logits, size)
    p = exact(logits, support, temperature)
    if math.isfinite(temperature):
        wrong = [exact(logits, support, 1.25 * temperature), np.full(size, 1 / size)]
    else:
        wrong = [exact(logits, support, math.copysign(3.0, temperature))]
    bins = equal_bins(p)
    expected, *others = (np.bincount(bins, weights=q) for q in (p, *wrong))
    n = draws_needed(expected, others)
    assert n < 20_000, "the test would be too slow"
    schedule = inject_once(temperature, Support(top_k=size))
    futures = [
        tiny_engine.submit(PROMPT, params(schedule, seed=seed, key=f"{temperature}/{seed}"))
        for seed in range(n)
    ]
    tokens = [future.result().token_ids[0] for future in futures]
    place = {int(token): i for i, token in enumerate(support)}
    assert set(tokens) <= set(place), "a token from outside the support was injected"
    counts = np.bincount([bins[place[token]] for token in tokens], minlength=len(expected))
    assert stats.chisquare(counts, expected * n).pvalue > ALPHA
    for other in others:
        # The same draws tell the wrong distribution apart.
        assert stats.chisquare(counts, other * n).pvalue < ALPHA


def test_other_requests_of_a_batch_are_left_alone(tiny_engine):
    from vllm.sampling_params import StructuredOutputsParams

    choice = StructuredOutputsParams(choice=["red", "green", "blue"])

    def others():
        plain = [params(seed=s, max_tokens=24, temperature=0.8) for s in range(12)]
        greedy = [params(temperature=0.0, max_tokens=24) for _ in range(3)]
        grammar = [
            params(seed=s, max_tokens=8, structured_outputs=choice, detokenize=True)
            for s in range(6)
        ]
        return plain + greedy + grammar

    alone = [tiny_engine.submit(PROMPT, p) for p in others()]
    alone = [future.result().token_ids for future in alone]
    schedule = Schedule((Rule(PeriodicTrigger(every=1), -1.0, Support(min_p=0.01)),))
    mixed, injected = [], []
    for i, other in enumerate(others()):
        wanted = params(schedule, seed=i, key=f"mixed/{i}", max_tokens=24)
        injected.append(tiny_engine.submit(PROMPT, wanted))
        mixed.append(tiny_engine.submit(PROMPT, other))
    assert [future.result().token_ids for future in mixed] == alone
    assert all(future.result().trace.injections for future in injected)


def test_forbidden_tokens_stay_forbidden_at_any_negative_temperature(tiny_engine):
    from vllm.sampling_params import StructuredOutputsParams

    words = ["red", "green", "blue"]
    choice = StructuredOutputsParams(choice=words)
    allowed = list(range(500, 540))
    for temperature in (-1e-6, -1.0, -math.inf):
        schedule = Schedule((Rule(PeriodicTrigger(every=1), temperature),))
        by_grammar = [
            tiny_engine.submit(
                PROMPT,
                params(
                    schedule,
                    seed=s,
                    key=f"grammar/{temperature}/{s}",
                    max_tokens=8,
                    structured_outputs=choice,
                    detokenize=True,
                ),
            )
            for s in range(8)
        ]
        by_list = [
            tiny_engine.submit(
                PROMPT,
                params(
                    schedule,
                    seed=s,
                    key=f"list/{temperature}/{s}",
                    max_tokens=8,
                    allowed_token_ids=allowed,
                ),
            )
            for s in range(8)
        ]
        assert {future.result().text for future in by_grammar} <= set(words)
        for future in by_list:
            generation = future.result()
            assert set(generation.token_ids) <= set(allowed)
            assert all(i.support_size == len(allowed) for i in generation.trace.injections)
            assert len(generation.trace.injections) == 8


def test_a_long_seeded_prompt_is_generated_from(tiny_engine):
    # vLLM's CPU sampler fails on a seeded request whose prefill is cut into chunks.
    prompts = [[1, *range(100, 1600)] for _ in range(6)]
    futures = [tiny_engine.submit(p, params(seed=i, max_tokens=4)) for i, p in enumerate(prompts)]
    assert all(len(future.result().token_ids) == 4 for future in futures)


def test_a_refused_request_fails_alone(tiny_engine):
    from negtemp_data.errors import GenerationError

    too_long = tiny_engine.submit([5] * 5000, params(seed=0))
    no_seed = tiny_engine.submit(PROMPT, params(inject_once(-1.0)))
    fine = tiny_engine.submit(PROMPT, params(seed=0))
    assert len(fine.result().token_ids) == 1
    for future in (too_long, no_seed):
        with pytest.raises(GenerationError, match="refused"):
            future.result()


def test_slots_are_free_again_when_requests_finish(tiny_engine):
    from negtemp_data.engine import processor

    for round_ in range(3):
        futures = [
            tiny_engine.submit(PROMPT, params(inject_once(-1.0), seed=s, key=f"r{round_}/{s}"))
            for s in range(50)
        ]
        assert all(len(future.result().trace.injections) == 1 for future in futures)
    assert processor.take_traces(["r0/0"])["r0/0"].injections == []
