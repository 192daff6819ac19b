"""Model Runner V2 on the CPU: its real interface, and a runner that does all that V2 may do.

vLLM's loader, request states, contexts and UVA tensors are the real ones, as its CPU worker sets
them up. Only the tensors that are written by Triton kernels (`total_len`, `all_token_ids`) stay
unwritten: the processor does not read them. The model is a function of a request and its tokens,
so what a request gets can be told from the sampler alone, driven one row at a time.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from negtemp_data.engine.compile import KEY, SCHEDULE, SIBLINGS
from negtemp_data.engine.requests import Request, read_request, take_traces
from negtemp_data.engine.token_classes import token_table
from negtemp_data.sampling import ScheduleSampler, Trace
from negtemp_data.sampling import sampler as sampler_module
from negtemp_data.sampling.host_backend import HostBackend
from sampling_cases import DenseHostBackend
from small_model import ENDS, WORDS, write_model

CLASS = "negtemp_data.engine.processor_v2:ScheduleProcessor"
CLASS_V1 = "negtemp_data.engine.processor_v1:ScheduleProcessor"
CPU = torch.device("cpu")
SEATS = 4
N_DRAFTS = 3
MAX_MODEL_LEN = 256
END = 1
"""The token that ends a completion."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def configs(model_folder):
    """vLLM's own configuration, without and with draft tokens."""
    from negtemp_data.engine.arguments import machine_defaults, prepare_environment

    prepare_environment(is_cpu=True)
    # What vLLM's CPU worker imports first: it makes V2's tensors and streams work without a GPU.
    import vllm.v1.worker.cpu.shm  # noqa: F401
    from vllm import EngineArgs

    drafts = {"method": "ngram", "num_speculative_tokens": N_DRAFTS, "prompt_lookup_max": 3}
    arguments = machine_defaults(is_cpu=True) | {
        "model": model_folder,
        "max_num_seqs": SEATS,
        "max_model_len": MAX_MODEL_LEN,
        "worker_extension_cls": "negtemp_data.engine.extension.InjectionExtension",
    }
    return [
        EngineArgs(**arguments, speculative_config=speculative).create_engine_config()
        for speculative in (None, drafts)
    ]


@pytest.fixture(scope="module")
def table(model_folder):
    from transformers import AutoTokenizer

    return token_table(AutoTokenizer.from_pretrained(model_folder), model_folder)


def request_states(width=64, n_drafts=0):
    from vllm.v1.worker.gpu.states import RequestState

    return RequestState(SEATS, MAX_MODEL_LEN, 512, n_drafts, width, CPU)


def build(config, states, name=CLASS):
    from vllm.v1.worker.gpu.sample.logits_processor.loader import build_custom_logits_processors

    (processor,) = build_custom_logits_processors(config, states, False, [name])
    return processor


# --- the loader


def test_the_loader_builds_the_processor_by_its_name(configs):
    from negtemp_data.engine.processor_v2 import ScheduleProcessor

    assert type(build(configs[0], request_states())) is ScheduleProcessor


def test_each_loader_refuses_the_processor_of_the_other_runner(configs):
    from vllm.v1.sample.logits_processor import build_logitsprocs

    with pytest.raises(ValueError, match=r"not a subclass of vllm\.v1\.worker\.gpu"):
        build(configs[0], request_states(), CLASS_V1)
    with pytest.raises(ValueError, match="must be a subclass of LogitsProcessor"):
        build_logitsprocs(configs[0], CPU, False, False, [CLASS])


def test_a_refusal_reaches_the_caller_as_vllms_own_error():
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.worker.gpu.sample.logits_processor import (
        build_custom_logits_processors_params_validator,
    )

    validate = build_custom_logits_processors_params_validator([CLASS])
    with pytest.raises(VLLMValidationError, match=r"inject\[0\]"):
        validate(SamplingParams(extra_args={SCHEDULE: '{"inject": [{}]}'}))
    validate(SamplingParams(extra_args={SCHEDULE: '{"inject": []}'}))
    validate(SamplingParams())


def test_sampling_that_is_split_among_workers_is_refused(configs, monkeypatch):
    monkeypatch.setattr(configs[0].parallel_config, "enable_batch_sharded_sampling", True)
    with pytest.raises(ValueError, match="enable_batch_sharded_sampling = False"):
        build(configs[0], request_states())


def test_add_request_tells_vllm_whether_the_logits_may_change(configs):
    from vllm import SamplingParams

    processor = build(configs[0], request_states())
    assert not processor.add_request(0, SamplingParams())
    assert processor.add_request(0, admit_params({"inject": []}, seed=1))
    assert not processor.add_request(0, SamplingParams())


def test_a_batch_without_schedules_is_handed_back_unread(configs):
    processor = build(configs[0], request_states())
    logits = torch.randn(3, 64)
    before = logits.clone()
    rows = torch.arange(3)
    assert processor.apply(logits, context(rows, rows, rows, rows, [1, 1, 1])) is logits
    assert torch.equal(logits, before)


# --- schedules of all kinds


def random_when(rng):
    when = [
        {"every": int(rng.integers(1, 6)), "jitter": 0},
        {"every": 5, "jitter": int(rng.integers(1, 5))},
        {"rate": float(rng.uniform(0.1, 0.6))},
        {"at": sorted({int(p) for p in rng.integers(0, 24, 5)})},
        {"entropy": {"above": float(rng.uniform(1, 3.5))}},
        {"entropy": {"below": float(rng.uniform(1, 3))}},
        {"margin": {"below": float(rng.uniform(0.05, 0.5))}},
        {"after": "word"},
        {"after": "sentence"},
        {"after": "line"},
        {"after": str(rng.choice(["</think>", "a", "the", "cat\n"]))},
    ][rng.integers(11)]
    limits = {
        "start": int(rng.integers(0, 4)),
        "stop": int(rng.integers(8, 30)),
        "cooldown": int(rng.integers(1, 5)),
        "burst": int(rng.integers(2, 4)),
        "max": int(rng.integers(1, 6)),
    }
    chosen = rng.random(len(limits)) < 0.35
    return when | {name: limits[name] for name, is_in in zip(limits, chosen, strict=True) if is_in}


def pick(rng, *values):
    return values[rng.integers(len(values))]


def random_rule(rng):
    return {
        "when": random_when(rng),
        "temperature": pick(rng, -1.0, -0.1, "-inf", "inf", 2.0, -1e-6),
        "support": pick(
            rng, {"min_p": 0.02}, {"top_k": 4}, {"top_p": 0.9}, {"epsilon": 0.02}, "all"
        ),
        "vocabulary": pick(rng, {"exclude": ["special"]}, {"include": ["word_start"]}, {}),
        "guard": pick(rng, [], ["digits"]),
        "defer": int(rng.integers(0, 5)),
        "draw": pick(rng, "independent", "distinct"),
    }


def random_base(rng):
    return pick(
        rng,
        {"temperature": 100000, "support": {"min_p": 0.02}},
        {"track": [{"until": 5, "temperature": 3.0, "top_k": 6}, {"temperature": 0.5}]},
        {"anneal": {"from": "inf", "to": 0.7, "over": 12}, "vocabulary": {"include": ["ascii"]}},
        {"adaptive": {"kind": "dynatemp", "low": 0.2, "high": 2.0}, "top_p": 0.95},
        {"adaptive": {"kind": "edt", "t0": 1.2}},
    )


def random_schedule(rng):
    schedule = {"inject": [random_rule(rng) for _ in range(rng.integers(0, 4))]}
    if not schedule["inject"] or rng.random() < 0.3:
        schedule["base"] = random_base(rng)
    return schedule


def admit_params(schedule, *, seed, key=None, siblings=None):
    """Parameters as they reach a worker."""
    from vllm import SamplingParams

    from negtemp_data.engine.requests import admit

    extra = {SCHEDULE: json.dumps(schedule)}
    extra |= {} if key is None else {KEY: key}
    extra |= {} if siblings is None else {SIBLINGS: siblings}
    params = SamplingParams(seed=seed, extra_args=extra)
    admit(params)
    return params.clone()


# --- a model, and what each request must get from it


@dataclass(eq=False)
class Job:
    """A request of a scenario."""

    name: str
    prompt: list[int]
    params: Any
    asked: Request | None
    n_tokens: int
    expected: list[int] = field(default_factory=list)
    expected_trace: Trace | None = None
    outputs: list[int] = field(default_factory=list)
    n_computed: int = 0
    n_prefill: int = 0
    n_before_step: int = 0
    """Outputs before the last step, should its tokens be thrown away."""
    is_finished: bool = False
    is_overrun: bool = False
    """Whether it was in one more step than it needed."""

    @property
    def tokens(self):
        return self.prompt + self.outputs

    def append(self, token):
        self.outputs.append(token)
        self.is_finished = token == END or len(self.outputs) == self.n_tokens


class Model:
    """Logits and the engine's own noise, from nothing but a request's name and tokens."""

    def __init__(self, width, table):
        self.width = width
        texts = {text.encode() for word in WORDS for text in (word, f" {word}")}
        texts |= {end.encode() for end in ENDS}
        known = np.array([text in texts for text in table.texts] + [False] * width)[:width]
        self._prior = np.where(known, 3.0, 0.0).astype(np.float32)
        self._prior[len(table.texts) :] = -np.inf

    def _generator(self, *words):
        digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(digest))

    def logits(self, name, tokens):
        rng = self._generator(name, list(map(int, tokens)))
        scale = pick(rng, 1.0, 3.0, 9.0)
        row = (rng.normal(0, scale, self.width) + self._prior).astype(np.float32)
        # As a grammar leaves it.
        row[rng.random(self.width) < 0.05] = -np.inf
        return row

    def sample(self, name, position, row):
        noise = self._generator(name, "noise", position).gumbel(size=self.width)
        return int(np.argmax(row + noise.astype(np.float32)))


def drive_alone(job, model, table):
    """Fills in what the job gets from the sampler, one row at a time."""
    sampler = ScheduleSampler(table, model.width, CPU)
    asked, tokens = job.asked, job.expected
    slot = asked and sampler.open("alone", asked.schedule, asked.seed, asked.siblings)
    while len(tokens) < job.n_tokens and END not in tokens:
        logits = torch.from_numpy(model.logits(job.name, job.prompt + tokens))[None].clone()
        if asked:
            rows, slots, position = (np.array([i]) for i in (0, slot, len(tokens)))
            last = torch.tensor(tokens[-1:] or [0])
            sampler.step(logits, rows, slots, position, lambda _, last=last: last)
        tokens.append(model.sample(job.name, len(tokens), logits[0].numpy()))
    job.expected_trace = sampler.take(["alone"])["alone"]


def make_jobs(rng, model, table, scenario):
    jobs = []
    for number in range(int(rng.integers(6, 11))):
        name = f"{scenario}/{number}"
        params = None
        if number % 4 != 3:
            siblings = [int(rng.integers(100)), int(rng.integers(4))]
            params = admit_params(
                random_schedule(rng),
                seed=int(rng.integers(2**63)),
                key=None if number % 4 == 2 else name,
                siblings=siblings,
            )
        prompt = rng.integers(3, 200, rng.integers(1, 12)).tolist()
        job = Job(name, prompt, params, read_request(params), int(rng.integers(1, 26)))
        drive_alone(job, model, table)
        jobs.append(job)
    return jobs


# --- the runner


def context(places, input_ids, pos, local_pos, seq_lens, *, place_of_row=None):
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

    def tensor(values, dtype):
        return torch.as_tensor(np.asarray(values), dtype=dtype)

    places_np = np.asarray(places, dtype=np.intp)
    return LogitsContext(
        expanded_idx_mapping=tensor(places if place_of_row is None else place_of_row, torch.int64),
        idx_mapping=tensor(places, torch.int64),
        idx_mapping_np=places_np,
        expanded_local_pos=tensor(local_pos, torch.int32),
        input_ids=tensor(input_ids, torch.int32),
        pos=tensor(pos, torch.int64),
        seq_lens_upper_bound_np=np.asarray(seq_lens, dtype=np.int32),
    )


@dataclass
class Turn:
    """What one request does in one step."""

    job: Job
    place: int
    end: int
    """Tokens visible to its first row."""
    drafts: list[int]
    is_sampled: bool

    @property
    def n_rows(self):
        return 1 + len(self.drafts)


class Runner:
    """Plays Model Runner V2 and its scheduler, as wildly as these may behave."""

    def __init__(self, config, model, jobs, rng):
        self.n_drafts = N_DRAFTS if config.speculative_config else 0
        self.states = request_states(model.width, self.n_drafts)
        self.processor = build(config, self.states)
        self.model, self.rng = model, rng
        self.waiting, self.running, self.leaving = list(jobs), [], []
        self.seen = Counter()

    def run(self):
        while self.waiting or self.running or self.leaving:
            self.change_batch()
            turns = [self.plan(job) for job in self.rng.permutation(self.running)]
            if turns:
                self.step(turns)

    def change_batch(self):
        for job in self.leaving:
            self.states.remove_request(job.name)
            self.running.remove(job)
        self.leaving = []
        for job in list(self.running):
            if not job.is_finished and self.rng.random() < 0.06:
                self.seen["preempted"] += 1
                self.states.remove_request(job.name)
                self.running.remove(job)
                self.waiting.insert(0, job)
                # When the prefix cache is reset, the tokens of the step under way are, too.
                if self.rng.random() < 0.4:
                    self.seen["discarded"] += len(job.outputs) - job.n_before_step
                    del job.outputs[job.n_before_step :]
                # What the prefix cache still has.
                job.n_computed = int(self.rng.integers(len(job.tokens))) // 4 * 4
        while self.waiting and len(self.running) < SEATS and self.rng.random() < 0.8:
            self.add(self.waiting.pop(0))
        # `apply_staged_writes` of the states without its Triton kernels.
        self.states.prompt_len.copy_to_uva()
        self.states.prefill_len.copy_to_uva()
        self.processor.apply_staged_writes()

    def add(self, job):
        from vllm import SamplingParams

        job.n_prefill = len(job.tokens)
        job.n_before_step = len(job.outputs)
        self.states.add_request(job.name, len(job.prompt), job.tokens, job.n_computed, job.n_tokens)
        place = self.states.req_id_to_index[job.name]
        is_changed = self.processor.add_request(place, job.params or SamplingParams())
        assert is_changed == (job.params is not None)
        self.running.append(job)

    def plan(self, job):
        rng, drafts = self.rng, []
        end = len(job.tokens)
        if job.n_computed < job.n_prefill:
            end = int(rng.integers(job.n_computed, job.n_prefill)) + 1
            if self.n_drafts and end == job.n_prefill and rng.random() < 0.3:
                # Places kept for drafts while there are none yet.
                drafts = [-1] * self.n_drafts
        elif self.n_drafts:
            for _ in range(rng.integers(self.n_drafts + 1)):
                coming = job.expected[len(job.outputs) + len(drafts) :]
                is_right = coming and rng.random() < 0.7
                drafts.append(coming[0] if is_right else int(rng.integers(self.model.width)))
        return Turn(job, self.states.req_id_to_index[job.name], end, drafts, end >= job.n_prefill)

    def step(self, turns):
        before = np.concatenate([self.logits(turn) for turn in turns])
        after = torch.from_numpy(before.copy())
        # Vocabularies that are large let vLLM verify a batch in parts.
        is_split = self.n_drafts and len(turns) > 1 and self.rng.random() < 0.3
        cut = int(self.rng.integers(1, len(turns))) if is_split else len(turns)
        self.seen["split"] += is_split
        row = sum(turn.n_rows for turn in turns[:cut])
        for part, rows in ((turns[:cut], after[:row]), (turns[cut:], after[row:])):
            if part:
                assert self.processor.apply(rows, self.context(part)) is rows
        begin = 0
        for turn in turns:
            rows = slice(begin, begin + turn.n_rows)
            begin = rows.stop
            if turn.job.params is None:
                assert np.array_equal(before[rows], after[rows].numpy())
            self.take_in(turn, after[rows].numpy())

    def logits(self, turn):
        tokens = turn.job.tokens[: turn.end]
        return np.stack(
            [self.model.logits(turn.job.name, tokens + turn.drafts[:i]) for i in range(turn.n_rows)]
        )

    def context(self, turns):
        rows = [(turn, i) for turn in turns for i in range(turn.n_rows)]
        inputs = [turn.drafts[i - 1] if i else turn.job.tokens[turn.end - 1] for turn, i in rows]
        seq_lens = np.zeros(len(turns) + int(self.rng.integers(3)), dtype=np.int32)
        for number, turn in enumerate(turns):
            # The host counts drafts as accepted before it has heard of them.
            too_many = int(self.rng.integers(self.n_drafts + 1)) if self.n_drafts else 0
            seq_lens[number] = turn.end + len(turn.drafts) + too_many
        return context(
            [turn.place for turn in turns],
            inputs,
            [turn.end - 1 + i for turn, i in rows],
            [i for _, i in rows],
            seq_lens,
            place_of_row=[turn.place for turn, _ in rows],
        )

    def take_in(self, turn, rows):
        job = turn.job
        job.n_computed = turn.end
        if not turn.is_sampled:
            self.seen["dropped"] += 1
            return
        if job.is_finished:
            # It had ended before the host heard of it; what was sampled here is dropped.
            job.is_overrun = True
            self.seen["overrun"] += 1
            self.leaving.append(job)
            return
        job.n_before_step = len(job.outputs)
        for i in range(turn.n_rows):
            token = self.model.sample(job.name, len(job.outputs), rows[i])
            job.append(token)
            is_accepted = i < len(turn.drafts) and turn.drafts[i] == token
            if i < len(turn.drafts):
                self.seen["accepted" if is_accepted else "rejected"] += 1
            if job.is_finished or not is_accepted:
                break
        job.n_computed = len(job.tokens) - 1
        # Under asynchronous scheduling a request is in one more step than it needs.
        if job.is_finished and self.rng.random() < 0.5:
            self.leaving.append(job)


def assert_same_injections(trace, expected, n_tokens):
    ours = [injection for injection in trace.injections if injection.position < n_tokens]
    assert len(ours) == len(expected.injections)
    for injection, reference in zip(ours, expected.injections, strict=True):
        inexact = {"logprob": 0.0, "entropy": 0.0}
        assert injection._replace(**inexact) == reference._replace(**inexact)
        # Sums over a row may be split otherwise in a batch of another shape.
        assert injection.logprob == pytest.approx(reference.logprob, abs=1e-4)
        assert injection.entropy == pytest.approx(reference.entropy, abs=1e-4)


# As on the host, and as on a GPU: there, rows that need nothing come along.
@pytest.mark.parametrize("backend", [HostBackend, DenseHostBackend])
@pytest.mark.parametrize("has_drafts", [False, True], ids=["one row each", "drafts"])
@pytest.mark.parametrize("group", range(2))
def test_a_request_gets_what_it_would_get_alone(configs, table, backend, has_drafts, group):
    config = configs[has_drafts]
    model = Model(config.model_config.get_vocab_size(), table)
    seen, n_injected, n_deferred = Counter(), 0, 0
    for scenario in range(12 * group, 12 * group + 12):
        rng = np.random.default_rng(scenario)
        jobs = make_jobs(rng, model, table, f"{scenario}/{has_drafts}")
        with mock.patch.object(sampler_module, "backend_for", return_value=backend()):
            runner = Runner(config, model, jobs, rng)
        runner.run()
        seen += runner.seen
        traces = take_traces({job.name: len(job.outputs) for job in jobs})
        for job in jobs:
            assert job.outputs == job.expected, job.asked
            if job.asked and job.asked.key:
                expected = job.expected_trace
                assert_same_injections(traces[job.name], expected, len(job.outputs))
                assert traces[job.name].deferred == expected.deferred
                n_injected += len(expected.injections)
                n_deferred += expected.deferred
    # Else the scenarios would show little.
    assert n_injected > 100 and n_deferred > 10
    assert min(seen[name] for name in ("preempted", "discarded", "dropped", "overrun")) > 8
    if has_drafts:
        assert min(seen[name] for name in ("accepted", "rejected", "split")) > 8
