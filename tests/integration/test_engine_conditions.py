"""Whatever a real engine does around a request, the request gets the same tokens and injections.

Each condition is compared with a plain run of the same requests. In float32 that agrees token by
token at any batch size, so every difference is an error.
"""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from negtemp_data.engine.adapter import resolve_adapter
from negtemp_data.engine.compile import KEY, SCHEDULE, SIBLINGS
from negtemp_data.engine.requests import NAME
from negtemp_data.errors import EngineDeadError, GenerationError

MAX_LEN = 512
RULE = {"temperature": -1.0, "support": {"min_p": 0.02}}
SCHEDULES = [
    {"inject": [RULE | {"when": {"every": 5, "jitter": 3, "start": 2}}]},
    {
        "inject": [
            RULE | {"when": {"rate": 0.2, "burst": 2, "cooldown": 3}, "support": {"top_p": 0.3}},
            RULE | {"when": {"every": 4}, "temperature": "inf", "support": {"top_k": 9}},
        ]
    },
    {"inject": [RULE | {"when": {"entropy": {"above": 7.7}, "max": 9}, "temperature": "-inf"}]},
    {"inject": [RULE | {"when": {"after": "word", "cooldown": 2}, "support": "all"}]},
    # Hardly ever a second candidate, so it waits most of the time.
    {"inject": [RULE | {"when": {"every": 3}, "support": {"min_p": 0.85}, "defer": 6}]},
    {"inject": [RULE | {"when": {"at": [0, 1, 9, 30]}, "draw": "distinct"}]},
    {
        "base": {"track": [{"until": 7, "temperature": 3.0}, {"temperature": 0.5, "top_k": 40}]},
        "inject": [RULE | {"when": {"margin": {"below": 0.001}, "burst": 3}}],
    },
    None,
]


def make_params(schedule, *, seed, key=None, siblings=None, **settings):
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    extra = None
    if schedule is not None:
        extra = {SCHEDULE: json.dumps(schedule)}
        extra |= {} if key is None else {KEY: key}
        extra |= {} if siblings is None else {SIBLINGS: siblings}
    defaults = {"max_tokens": 40, "logprobs": 0, "flat_logprobs": True, "detokenize": False}
    return SamplingParams(
        **(defaults | settings),
        seed=seed,
        extra_args=extra,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def make_request(number, name, *, n_prompt=None, **settings):
    """Prompt and parameters of request `number`: the same each time, but for its key."""
    schedule = SCHEDULES[number % len(SCHEDULES)]
    n_prompt = n_prompt or 5 + number * 7 % 40
    prompt = [1, *((number * 31 + i * i * 17) % 40000 + 100 for i in range(n_prompt))]
    defaults = {"max_tokens": 20 + number * 13 % 40, "ignore_eos": True}
    if schedule is None or "base" not in schedule:
        defaults["temperature"] = 0.8
    params = make_params(
        schedule,
        seed=1000 + number,
        key=f"{name}/{number}",
        siblings=[77, number],
        **(defaults | settings),
    )
    return prompt, params


def run(engine, requests, **how):
    """What became of the requests, all given to the engine at once."""
    futures = [engine.submit(prompt, params, **how) for prompt, params in requests]
    return [outcome(future.result()) for future in futures]


def outcome(generation):
    """What must not depend on the batch; sums over rows differ in their last bits."""
    injections = [
        injection._replace(logprob=0.0, entropy=0.0) for injection in generation.trace.injections
    ]
    return generation.token_ids, injections, generation.trace.deferred


def start_engine(model, arguments, **more):
    from negtemp_data.engine.engine import Engine, EngineSpec

    arguments = {"dtype": "float32", "max_model_len": MAX_LEN} | arguments
    return Engine(EngineSpec(model, arguments, is_cpu=True, replicas=1, **more))


@pytest.fixture(scope="module")
def plain(tiny_engine):
    """What 48 requests get from an engine without any pressure."""
    outcomes = run(tiny_engine, [make_request(number, "plain") for number in range(48)])
    assert_varied(outcomes)
    return outcomes


def assert_varied(outcomes):
    """Whether the requests are worth comparing: each kind of rule injected, and some waited."""
    injected = Counter()
    for number, (_, injections, _) in enumerate(outcomes):
        injected[number % len(SCHEDULES)] += len(injections)
    assert min(injected[i] for i, schedule in enumerate(SCHEDULES) if schedule) >= 10
    assert injected[SCHEDULES.index(None)] == 0
    assert sum(deferred for *_, deferred in outcomes) >= 10


def test_one_at_a_time_gives_the_same_as_all_at_once(tiny_engine, plain):
    for number in range(8):
        assert run(tiny_engine, [make_request(number, "alone")]) == [plain[number]]


# --- a small cache


@pytest.fixture(scope="module")
def small_engine(tiny_model):
    """Seats for 12 requests and cache for a third of what they need; caches no prefixes."""
    engine = start_engine(
        tiny_model,
        {
            "max_num_seqs": 12,
            "block_size": 32,
            "num_gpu_blocks_override": 18,
            "enable_prefix_caching": False,
            # Else a model that knows nothing may write spaces for ever.
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        },
    )
    yield engine
    engine.close()


@pytest.fixture
def preempted(small_engine, monkeypatch):
    """Ids of the requests that vLLM's scheduler preempts, each time that it does."""
    scheduler = small_engine._llm.engine_core.engine_core.scheduler
    found, preempt = [], scheduler._preempt_request

    def note(request, *arguments, **more):
        found.append(request.request_id)
        return preempt(request, *arguments, **more)

    monkeypatch.setattr(scheduler, "_preempt_request", note)
    return found


def test_without_a_prefix_cache_requests_get_the_same(small_engine, plain, preempted):
    config = small_engine._llm.vllm_config.cache_config
    assert not config.enable_prefix_caching
    for first in range(0, 16, 2):
        numbers = range(first, first + 2)
        assert run(small_engine, [make_request(n, "uncached") for n in numbers]) == [
            plain[n] for n in numbers
        ]
    assert not preempted


def test_preempted_requests_get_the_same(small_engine, plain, preempted):
    outcomes = run(small_engine, [make_request(number, "small") for number in range(48)])
    assert outcomes == plain
    # Several of them more than once, and with schedules of several kinds.
    assert len(preempted) >= 15
    assert max(Counter(preempted).values()) >= 2


def test_preempted_requests_without_a_trace_get_the_same_tokens(small_engine, plain, preempted):
    requests = [make_request(number, "untraced") for number in range(48)]
    for _, params in requests:
        if params.extra_args:
            del params.extra_args[KEY]
    outcomes = run(small_engine, requests)
    assert [tokens for tokens, *_ in outcomes] == [tokens for tokens, *_ in plain]
    assert not any(injections for _, injections, _ in outcomes)
    assert len(preempted) >= 15


def test_slots_are_used_again_wave_after_wave_without_a_trace_of_the_former(small_engine, plain):
    futures = []
    for wave in range(4):
        # In another order each time, so that other requests leave room for other ones.
        order = sorted(range(48), key=lambda number: number * (2 * wave + 5) % 49)
        for number in order:
            prompt, params = make_request(number, f"wave {wave}")
            futures.append((number, small_engine.submit(prompt, params)))
    assert all(outcome(future.result()) == plain[number] for number, future in futures)


# --- a cached prefix


def test_requests_with_a_cached_prompt_get_the_same(tiny_engine, monkeypatch):
    manager = tiny_engine._llm.engine_core.engine_core.scheduler.kv_cache_manager
    find, n_cached = manager.get_computed_blocks, []

    def note(request):
        found = find(request)
        n_cached.append(found[1])
        return found

    monkeypatch.setattr(manager, "get_computed_blocks", note)
    cold, warm = (
        run(tiny_engine, [make_request(n, name, n_prompt=300) for n in range(16)])
        for name in ("cold", "warm")
    )
    assert warm == cold
    assert sum(n >= 128 for n in n_cached) >= 16


# --- n > 1, and prefill in pieces


@pytest.fixture(scope="module")
def chunking_llm(tiny_model):
    """vLLM's own LLM class with this project's processor; prefills 32 tokens a step."""
    from negtemp_data.engine.arguments import machine_defaults, prepare_environment

    prepare_environment(is_cpu=True)
    from vllm import LLM

    arguments = machine_defaults(is_cpu=True) | {
        "dtype": "float32",
        "max_model_len": MAX_LEN,
        "max_num_seqs": 16,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 32,
        "logits_processors": ["negtemp_data.engine.processor_v1:ScheduleProcessor"],
        "worker_extension_cls": "negtemp_data.engine.extension.InjectionExtension",
    }
    llm = LLM(tiny_model, **arguments)
    yield llm
    llm.llm_engine.engine_core.shutdown()


def test_the_samples_of_one_request_are_those_of_single_requests(chunking_llm, tiny_engine):
    prompt = {"prompt_token_ids": [1, 500, 600, 700]}
    for schedule in (SCHEDULES[0], SCHEDULES[3]):
        params = make_params(schedule, seed=40, n=4, temperature=0.8)
        (output,) = chunking_llm.generate([prompt], params, use_tqdm=False)
        together = [list(sample.token_ids) for sample in output.outputs]
        futures = [
            tiny_engine.submit(
                prompt["prompt_token_ids"],
                make_params(schedule, seed=40 + i, key=f"single {i}", temperature=0.8),
            )
            for i in range(4)
        ]
        generations = [future.result() for future in futures]
        assert together == [generation.token_ids for generation in generations]
        assert all(generation.trace.injections for generation in generations)


def test_distinct_samples_of_one_request_begin_differently(chunking_llm):
    schedule = {
        "inject": [RULE | {"when": {"at": [0]}, "support": {"top_k": 6}, "draw": "distinct"}]
    }
    params = make_params(schedule, seed=40, n=6, max_tokens=2)
    (output,) = chunking_llm.generate([{"prompt_token_ids": [1, 5, 6]}], params, use_tqdm=False)
    assert len({sample.token_ids[0] for sample in output.outputs}) == 6


def test_prompts_that_are_prefilled_in_pieces_get_the_same(chunking_llm, tiny_engine):
    # Greedy requests need none of vLLM's own random numbers, which its CPU sampler can't rewind for
    # the pieces; the seed is then the injections' alone.
    numbers = [number for number in range(24) if "base" not in (SCHEDULES[number % 8] or {})]
    lengths = {number: 20 + 29 * number % 150 for number in numbers}
    greedy = {"temperature": 0.0}
    requests = [make_request(n, "pieces", n_prompt=lengths[n], **greedy) for n in numbers]
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    outputs = chunking_llm.generate(prompts, [params for _, params in requests], use_tqdm=False)
    taken = chunking_llm.collective_rpc(
        "take_injection_traces", args=({f"pieces/{number}": 10**6 for number in numbers},)
    )
    traces = dict(taken[0])
    expected = run(
        tiny_engine, [make_request(n, "whole", n_prompt=lengths[n], **greedy) for n in numbers]
    )
    for number, output, (tokens, injections, deferred) in zip(
        numbers, outputs, expected, strict=True
    ):
        assert list(output.outputs[0].token_ids) == tokens
        trace = traces[f"pieces/{number}"]
        assert [i._replace(logprob=0.0, entropy=0.0) for i in trace.injections] == injections
        assert trace.deferred == deferred
    assert sum(len(injections) for _, injections, _ in expected) >= 50


def test_a_request_without_a_seed_is_repeated_by_the_name_it_was_given(tiny_engine):
    params = make_params(SCHEDULES[0], seed=None, key="unseeded", temperature=0.0)
    first = outcome(tiny_engine.submit([1, 7, 8], params).result())
    again = make_params(SCHEDULES[0], seed=params.extra_args[NAME], key="again", temperature=0.0)
    assert outcome(tiny_engine.submit([1, 7, 8], again).result()) == first
    other = make_params(SCHEDULES[0], seed=None, key="other", temperature=0.0)
    assert outcome(tiny_engine.submit([1, 7, 8], other).result()) != first


# --- structured outputs


REGEX = r"(yes|no), [0-9]{2,6} (cats|dogs|foxes)\."
JSON_SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "sure": {"type": "boolean"},
        "sizes": {"type": "array", "items": {"enum": [1, 22, 333]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["colour", "sure", "sizes"],
    "additionalProperties": False,
}


def is_valid(form, text):
    if "regex" in form:
        return re.fullmatch(REGEX, text) is not None
    value = json.loads(text)
    return (
        list(value) == ["colour", "sure", "sizes"]
        and value["colour"] in ("red", "green", "blue")
        and isinstance(value["sure"], bool)
        and 1 <= len(value["sizes"]) <= 3
        and set(value["sizes"]) <= {1, 22, 333}
    )


@pytest.mark.parametrize(
    "form",
    [{"regex": REGEX}, {"json": JSON_SCHEMA}],
    ids=["regex", "json schema"],
)
def test_structured_outputs_stay_valid_under_injections(small_engine, form):
    from vllm.sampling_params import StructuredOutputsParams

    rules = [
        RULE
        | {"when": {"every": 1}, "support": "all", "vocabulary": {}, "temperature": temperature}
        for temperature in ("-inf", -1.0, "inf")
    ]
    schedules = [{"inject": [rule]} for rule in rules]
    schedules += [
        {"inject": [RULE | {"when": {"rate": 0.4}, "support": {"top_k": 3}}]},
        {"base": {"temperature": 50, "support": {"top_k": 500}}, "inject": [rules[1]]},
        {"base": {"temperature": 100000, "vocabulary": {"include": ["ascii"]}}},
    ]
    futures = []
    for number in range(48):
        schedule = schedules[number % len(schedules)]
        params = make_params(
            schedule,
            seed=number,
            key=f"{list(form)} {number}",
            max_tokens=100,
            detokenize=True,
            structured_outputs=StructuredOutputsParams(**form),
        )
        futures.append(small_engine.submit([1, 4093, 198], params))
    generations = [future.result() for future in futures]
    for generation in generations:
        assert generation.finish_reason == "stop"
        assert is_valid(form, generation.text), generation.text
    n_injected = [len(generation.trace.injections) for generation in generations]
    assert sum(n_injected) >= 48
    assert len({generation.text for generation in generations}) >= 20


# --- LoRA


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter of rank 8 with random weights, strong enough to be noticed."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("adapter")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(2):
        for target in config["target_modules"]:
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            weights[f"{name}.lora_A.weight"] = torch.randn(8, 64, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(64, 8, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def lora_engine(tiny_model, adapter):
    arguments = resolve_adapter(adapter).engine_arguments | {"max_num_seqs": 64}
    engine = start_engine(tiny_model, arguments, lora_path=adapter)
    yield engine
    engine.close()


def test_an_adapter_changes_its_own_requests_and_no_others(lora_engine, plain):
    futures = []
    for number in range(32):
        for use_lora in (False, True):
            prompt, params = make_request(number, f"lora {use_lora}")
            futures.append(lora_engine.submit(prompt, params, use_lora=use_lora))
    outcomes = [outcome(future.result()) for future in futures]
    base, adapted = outcomes[::2], outcomes[1::2]
    assert base == plain[:32]
    assert_varied(adapted)
    assert all(with_it != without for with_it, without in zip(adapted, base, strict=True))
    again = [make_request(number, "lora again") for number in range(32)]
    assert run(lora_engine, again, use_lora=True) == adapted


# --- asynchronous scheduling, refusals


def test_vllm_schedules_synchronously_on_a_cpu(tiny_engine):
    """So what asynchronous scheduling does is shown with a scripted runner, in test_runner_v2."""
    assert not tiny_engine._llm.vllm_config.scheduler_config.async_scheduling


def test_refused_requests_fail_alone(tiny_engine, plain):
    refused = [
        make_params({"inject": [{"when": {"every": 0}}]}, seed=0),
        make_params(SCHEDULES[0], seed=2**63),
        make_params(SCHEDULES[0], seed=None, n=2),
        make_params({"base": {"temperature": 9.0}}, seed=0, top_p=0.5),
        make_params(SCHEDULES[5], seed=5, siblings=["x"]),
        make_params(SCHEDULES[5], seed=5, siblings=[0, 1 << 40]),
    ]
    futures, expected_failures = [], []
    for number in range(20):
        futures.append(tiny_engine.submit(*make_request(number, "beside")))
        expected_failures.append(tiny_engine.submit([1, 2], refused[number % len(refused)]))
    expected_failures.append(tiny_engine.submit([5] * 5000, make_params(SCHEDULES[0], seed=0)))
    assert [outcome(future.result()) for future in futures] == plain[:20]
    for future in expected_failures:
        with pytest.raises(GenerationError, match="refused"):
            future.result()


def test_no_thread_but_the_engines_own_gets_a_pool(tiny_engine):
    import torch

    # In a thread that asks for the first time; the main one may have asked before.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1


def test_a_step_that_raises_fails_all_that_is_open_and_all_that_comes(tiny_engine):
    """The last one, since it takes the engine along."""

    def out_of_memory():
        raise RuntimeError("out of memory")

    step, tiny_engine._llm.step = tiny_engine._llm.step, out_of_memory
    try:
        futures = [tiny_engine.submit(*make_request(number, "lost")) for number in range(3)]
        for future in futures:
            with pytest.raises(EngineDeadError, match="out of memory"):
                future.result(60)
    finally:
        tiny_engine._llm.step = step
    with pytest.raises(EngineDeadError, match="out of memory"):
        tiny_engine.submit(*make_request(3, "too late")).result(60)
