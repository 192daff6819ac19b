"""Schedules through vLLM's own server, asked by the plain OpenAI client.

The server runs in float32, so a request must give the very tokens that the pipeline's engine gives
for the same prompt and seed. Responses carry no records: where tokens were injected is worked out
again from the token ids, with the logits of transformers. The server's cache of keys and values is
so small that requests at the same time push each other out of it.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from negtemp_data.engine.arguments import machine_defaults
from negtemp_data.engine.compile import SCHEDULE, SIBLINGS, ArmParameters, compile_schedule
from negtemp_data.jobspec import GenerateConfig, ScheduleConfig
from negtemp_data.sampling import ScheduleSampler, Siblings

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the documentation's examples ask for; the server calls the tiny model so."""
DOCUMENTED_URL = "http://127.0.0.1:8000"
PROCESSOR = "negtemp_data.engine.processor_v1:ScheduleProcessor"
START_TIMEOUT_S = 300
END_TIMEOUT_S = 30
PROMPT = [1, 4093, 198, 4706, 563, 253, 2162, 30, 2, 198]
N_TOKENS = 40
LIKELY = {"temperature": -1.0, "support": {"min_p": 0.01}}

CASES = {
    "positions": (
        {
            "inject": [
                LIKELY | {"when": {"every": 9, "start": 3, "jitter": 4, "burst": 2}},
                LIKELY | {"when": {"rate": 0.1, "cooldown": 2}, "temperature": "-inf"},
            ]
        },
        {"temperature": 0.8, "top_p": 0.9},
    ),
    "entropy": (
        {"inject": [LIKELY | {"when": {"entropy": {"above": 7.0}, "cooldown": 3}}]},
        {"temperature": 0.8},
    ),
    "literal": ({"inject": [LIKELY | {"when": {"after": "er"}}]}, {"temperature": 1.2}),
    "track": (
        {
            "base": {
                "track": [
                    {"until": 8, "temperature": 3.0, "support": {"min_p": 0.05}},
                    {"temperature": 0.5},
                ]
            },
            "inject": [LIKELY | {"when": {"at": [2, 12, 30]}}],
        },
        {},
    ),
}
"""Schedules as a request has them, and the base that vLLM itself samples."""

SECOND_BEST = {
    "inject": [{"when": {"at": [0]}, "temperature": -1e-6, "support": {"top_k": 2}, "defer": 0}]
}
DISTINCT = {
    "inject": [
        {"when": {"at": [0]}, "temperature": -1.0, "support": {"top_k": 20}, "draw": "distinct"}
    ]
}


# --- the server


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    """Address of a server on the tiny model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "server.log"
    arguments = machine_defaults(is_cpu=True) | {
        "model": tiny_model,
        "served_model_name": MODEL,
        "logits_processors": PROCESSOR,
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max_model_len": 512,
        "block_size": 32,
        "kv_cache_memory_bytes": 640 * 1024,  # 20 blocks
    }
    # One process less to start, and none that spins while it waits.
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "KMP_BLOCKTIME": "0",
        "OMP_WAIT_POLICY": "passive",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags(arguments)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(process, url, log)
        yield url
    finally:
        end(process)


def flags(arguments):
    spelled = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            spelled.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            spelled += [f"--{flag}", str(value)]
    return spelled


def wait_until_healthy(process, url, log):
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')[-5000:]}")


def end(process):
    """Ends the server and all that it started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + END_TIMEOUT_S
    while (left := members(process)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"the server left processes behind: {left}"


def members(process):
    """Processes of the server's session that still run, whoever their parent is by now."""
    process.poll()
    return [other for other in psutil.process_iter() if session(other) == process.pid]


def session(process):
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def test_ending_a_server_ends_what_it_started_too():
    parent = subprocess.Popen(
        [sys.executable, "-c", "import os, time; os.fork(); print(flush=True); time.sleep(600)"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    for _ in range(2):
        parent.stdout.readline()
    assert len(members(parent)) == 2
    end(parent)
    assert members(parent) == []
    parent.stdout.close()


# --- its client


@pytest.fixture(scope="module")
def client(server):
    import openai

    with openai.OpenAI(**connection(server)) as client:
        yield client


def connection(server):
    return {"base_url": f"{server}/v1", "api_key": "none", "max_retries": 0, "timeout": 120}


def request(schedule=None, *, siblings=None, **settings):
    """Arguments of the client's `completions.create`."""
    arguments = {}
    if schedule is not None:
        arguments[SCHEDULE] = schedule if isinstance(schedule, str) else json.dumps(schedule)
    if siblings is not None:
        arguments[SIBLINGS] = siblings
    extra = {"return_token_ids": True} | ({"vllm_xargs": arguments} if arguments else {})
    return {
        "model": MODEL,
        "prompt": PROMPT,
        "max_tokens": N_TOKENS,
        "extra_body": extra,
    } | settings


def complete(client, schedule=None, **more):
    """Token ids of each choice."""
    response = client.completions.create(**request(schedule, **more))
    return [choice.token_ids for choice in response.choices]


# --- what it is compared with


@pytest.fixture(scope="module")
def pipeline(tiny_engine):
    """What the pipeline's engine generates for a schedule, with its record."""

    def generate(schedule, base, seed, siblings=None):
        config = ScheduleConfig.model_validate(schedule | ({"base": base} if base else {}))
        arm = ArmParameters(
            GenerateConfig(model="tiny", max_tokens=N_TOKENS, samples={"arm": 1}), config
        )
        key = f"serving/{json.dumps(schedule)}/{seed}"
        params = arm.sampling_params(key, seed, room=400, siblings=siblings)
        return tiny_engine.submit(PROMPT, params).result()

    return generate


@pytest.fixture(scope="module")
def reference(tiny_model):
    """Logits before each of some tokens behind the prompt, by another forward pass."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)

    def logits(tokens):
        with torch.no_grad():
            return model(torch.tensor([PROMPT + tokens])).logits[0, len(PROMPT) - 1 : -1]

    return logits


@pytest.fixture(scope="module")
def injections(reference, tiny_model):
    """The injections of a schedule into given tokens."""
    from transformers import AutoTokenizer

    from negtemp_data.engine.token_classes import token_table

    tokens_of_model = token_table(AutoTokenizer.from_pretrained(tiny_model), tiny_model)

    def find(schedule, seed, tokens):
        logits = reference(tokens)
        sampler = ScheduleSampler(tokens_of_model, logits.shape[1], torch.device("cpu"))
        schedule = compile_schedule(ScheduleConfig.model_validate(schedule))
        slot = sampler.open("replay", schedule, seed)
        for position, row in enumerate(logits):
            last = torch.tensor(tokens[max(0, position - 1)])[None]
            places = (np.array([number]) for number in (0, slot, position))
            sampler.step(row.clone()[None], *places, lambda _, last=last: last)
        return sampler.take(["replay"])["replay"].injections

    return find


# --- the same as the pipeline


@pytest.mark.parametrize("name", CASES)
def test_a_served_request_has_the_tokens_and_the_injections_of_the_pipeline(
    client, pipeline, injections, name
):
    schedule, base = CASES[name]
    for seed in (5, 2**63 - 1):
        (served,) = complete(client, schedule, seed=seed, **base)
        generated = pipeline(schedule, base, seed)
        assert served == generated.token_ids
        found = injections(schedule, seed, served)
        discrete = ("position", "token_id", "displaced_id", "support_size", "rank", "rule")
        assert [[getattr(i, k) for k in discrete] for i in found] == [
            [getattr(i, k) for k in discrete] for i in generated.trace.injections
        ]
        assert len(found) >= 2
        assert all(served[i.position] == i.token_id for i in found)


def test_a_request_without_a_schedule_is_left_alone(client, pipeline, reference):
    (greedy,) = complete(client, temperature=0)
    assert greedy == reference(greedy).argmax(dim=1).tolist()
    (sampled,) = complete(client, seed=5, temperature=0.8)
    assert sampled == pipeline({}, {"temperature": 0.8}, 5).token_ids


def test_a_request_without_a_seed_is_injected_into_too(client, reference):
    for temperature in (0, 1):
        (tokens,) = complete(client, SECOND_BEST, temperature=temperature)
        assert tokens[0] == reference(tokens)[0].topk(2).indices[1]


# --- several samples, several requests


@pytest.mark.parametrize("name", CASES)
def test_the_samples_of_a_request_are_those_of_requests_with_the_seeds_that_follow(client, name):
    schedule, base = CASES[name]
    together = complete(client, schedule, seed=20, n=3, **base)
    apart = [complete(client, schedule, seed=seed, **base)[0] for seed in (20, 21, 22)]
    assert together == apart
    assert len(set(map(tuple, together))) == 3


def test_distinct_siblings_begin_differently_and_may_come_one_by_one(client, pipeline):
    n_siblings, seed = 6, 7
    together = complete(client, DISTINCT, seed=seed, n=n_siblings)
    assert len({tokens[0] for tokens in together}) == n_siblings
    for index, tokens in enumerate(together):
        own = seed + index
        assert complete(client, DISTINCT, seed=own, siblings=[seed]) == [tokens]
        assert complete(client, DISTINCT, seed=own, siblings=[seed, index]) == [tokens]
        of_pipeline = pipeline(DISTINCT, {}, own, Siblings(seed, index))
        assert of_pipeline.token_ids == tokens
        # Any seed goes: the siblings share the noise of theirs.
        (other,) = complete(client, DISTINCT, seed=1000, siblings=[seed, index], max_tokens=1)
        assert other == tokens[:1]


def test_requests_at_the_same_time_and_pushed_out_have_the_tokens_that_they_have_alone(
    server, client
):
    wanted = [
        request(schedule, seed=seed, max_tokens=48, **base)
        for seed in range(4)
        for schedule, base in [*CASES.values(), (None, {"temperature": 0.8})]
    ]
    alone = [client.completions.create(**one).choices[0].token_ids for one in wanted]
    n_before = count_preemptions(server)
    together = asyncio.run(complete_together(server, wanted))
    assert count_preemptions(server) > n_before
    assert together == alone


async def complete_together(server, wanted):
    import openai

    async with openai.AsyncOpenAI(**connection(server)) as client:
        responses = await asyncio.gather(*(client.completions.create(**one) for one in wanted))
    return [response.choices[0].token_ids for response in responses]


def count_preemptions(server):
    with urllib.request.urlopen(f"{server}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return float(re.search(r"^vllm:num_preemptions_total\{.*\} (\S+)$", text, re.MULTILINE)[1])


def test_a_stream_has_the_same_tokens_and_may_be_left(client):
    schedule, base = CASES["track"]
    wanted = request(schedule, seed=3, **base)
    whole = client.completions.create(**wanted).choices[0].token_ids
    streamed = []
    for chunk in client.completions.create(**wanted, stream=True):
        streamed += chunk.choices[0].token_ids
    assert streamed == whole
    for _ in range(3):
        with client.completions.create(**wanted, stream=True) as left:
            next(left)
    assert client.completions.create(**wanted).choices[0].token_ids == whole


def test_chats_and_responses_take_schedules_too(client):
    arguments = {"vllm_xargs": {SCHEDULE: json.dumps(SECOND_BEST)}}
    messages = [{"role": "user", "content": "Tell me about the sea."}]
    settings = {"model": MODEL, "temperature": 0}
    chat = client.chat.completions.create(
        **settings,
        messages=messages,
        max_tokens=8,
        extra_body=arguments | {"return_token_ids": True},
    )
    plain, injected = (
        complete(client, schedule, prompt=chat.prompt_token_ids, temperature=0, max_tokens=8)[0]
        for schedule in (None, SECOND_BEST)
    )
    assert chat.choices[0].token_ids == injected != plain
    response = client.responses.create(
        **settings, input=messages, max_output_tokens=8, extra_body=arguments
    )
    assert response.output_text == chat.choices[0].message.content


# --- what is refused


REFUSED = {
    "no JSON": ("{", {}, "schedule: invalid JSON"),
    "unknown key": ({"injekt": []}, {}, "injekt: unknown key; did you mean 'inject'"),
    "number too small": (
        {"inject": [LIKELY | {"when": {"every": 0}}]},
        {},
        r"inject\[0\]\.when\.every: .*greater than or equal to 1",
    ),
    "number too large for the sampler": (
        {"inject": [LIKELY | {"when": {"every": 10**30}}]},
        {},
        r"inject\[0\]\.when\.every: .*less than",
    ),
    "unknown class": (
        {"inject": [LIKELY | {"when": {"at": [0]}, "vocabulary": {"exclude": ["digit"]}}]},
        {},
        r"inject\[0\]\.vocabulary\.exclude\[0\]: .*did you mean 'digits'",
    ),
    "base of vLLM": ({"base": {"temperature": 0.7}}, {}, "base: vLLM itself samples this"),
    "two temperatures": (CASES["track"][0], {"temperature": 0.7}, "temperature = 1.0; found 0.7"),
    "penalty beside a base": (
        CASES["track"][0],
        {"frequency_penalty": 1},
        "frequency_penalty = 0.0; found 1.0",
    ),
    "n without a seed": (CASES["track"][0], {"n": 2}, "n > 1 needs a seed"),
    "distinct without a seed": (DISTINCT, {}, "draw: distinct needs a seed"),
    "siblings of a wrong type": (
        DISTINCT,
        {"siblings": "7"},
        r"negtemp_siblings must be \[seed, index\]",
    ),
    "before the first sibling": (
        DISTINCT,
        {"seed": 6, "siblings": [7]},
        "needs a request with that seed or one above",
    ),
}
"""Schedules, what else the request says, and the reason of its refusal."""


@pytest.mark.parametrize("name", REFUSED)
def test_a_schedule_that_can_not_be_had_is_refused_with_its_reason(client, name):
    import openai

    schedule, more, message = REFUSED[name]
    with pytest.raises(openai.BadRequestError, match=message):
        complete(client, schedule, **more)


def test_a_vocabulary_that_the_model_lacks_costs_nobody_else_his_schedule(client, reference):
    nothing = {"include": ["regex:^no token is like this one$"]}
    lacking = {"inject": [LIKELY | {"when": {"at": [0]}, "vocabulary": nothing}]}
    (plain,) = complete(client, seed=1)
    for _ in range(2):
        assert complete(client, lacking, seed=1) == [plain]
    (tokens,) = complete(client, SECOND_BEST, seed=1)
    assert tokens[0] == reference(tokens)[0].topk(2).indices[1]


# --- the documentation, and what it all needs


def examples(language):
    text = Path(__file__).parents[2].joinpath("docs", "serving.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_documented_python_program_prints_three_samples(server):
    programs = examples("python")
    assert programs
    for program in programs:
        assert DOCUMENTED_URL in program
        done = subprocess.run(
            [sys.executable, "-c", program.replace(DOCUMENTED_URL, server)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"^seed \d+: \S", done.stdout, re.MULTILINE)) == 3


def test_the_documented_curl_command_is_answered_with_an_injection(server, client):
    commands = [block[2:] for block in examples("console") if block.startswith("$ curl")]
    assert commands
    for command in commands:
        assert DOCUMENTED_URL in command
        done = subprocess.run(
            ["bash", "-c", command.replace(DOCUMENTED_URL, server)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        text = json.loads(done.stdout)["choices"][0]["text"]
        body = json.loads(re.search(r"'(\{.*\})'", command, re.DOTALL)[1])
        del body["vllm_xargs"]
        plain = client.completions.create(**body).choices[0].text
        assert text and text != plain


def test_the_served_form_needs_neither_ray_nor_the_pipeline():
    code = (
        "import sys\n"
        "import negtemp_data.engine.processor_v1\n"
        "loaded = {name for name in sys.modules if name.split('.')[0] == 'ray'}\n"
        "ours = {name for name in sys.modules if name.startswith('negtemp_data.')}\n"
        "loaded |= {name for name in ours if name.split('.')[1] not in allowed}\n"
        "assert not loaded, loaded\n"
    )
    allowed = {"engine", "errors", "jobspec", "sampling"}
    done = subprocess.run(
        [sys.executable, "-c", f"allowed = {allowed}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
