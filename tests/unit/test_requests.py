"""Requests are checked, named and given slots, whichever way vLLM brings them."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from negtemp_data.engine.compile import KEY, SCHEDULE, SIBLINGS
from negtemp_data.engine.requests import (
    FIRST_SEED,
    NAME,
    RequestSlots,
    admit,
    read_request,
    take_traces,
)
from negtemp_data.sampling import Siblings, Trace

pytestmark = pytest.mark.filterwarnings("default")  # of vllm, as it is imported

RULE: dict[str, Any] = {"when": {"every": 1}, "temperature": -1.0}
INJECT: dict[str, Any] = {"inject": [RULE]}
DISTINCT: dict[str, Any] = {"inject": [RULE | {"draw": "distinct"}]}
HOT: dict[str, Any] = {"base": {"temperature": 100000}}
MAX_NUM_SEQS = 2
WIDTH = 8


def request(schedule: Any = INJECT, more: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Parameters as a caller makes them; `more` stands beside the schedule."""
    from vllm import SamplingParams

    text = schedule if isinstance(schedule, str) else json.dumps(schedule)
    return SamplingParams(**settings, extra_args={SCHEDULE: text} | (more or {}))


def admitted(*arguments: Any, **settings: Any) -> Any:
    """Parameters as they travel to the workers."""
    params = request(*arguments, **settings)
    admit(params)
    return params.clone()


def children(params: Any) -> list[Any]:
    """The requests that vLLM makes of one with n > 1."""
    from vllm.v1.engine.parallel_sampling import ParentRequest

    parent = ParentRequest(SimpleNamespace(request_id="r", external_req_id="r", params=params))  # type: ignore[arg-type]
    return [parent.get_child_info(index)[1] for index in range(params.n)]


# --- admission


@pytest.mark.parametrize(
    ("schedule", "more", "settings", "message"),
    [
        ("{", {}, {}, "JSON"),
        ([], {}, {}, "schedule"),
        ({"inject": [{"when": {"every": 0}, "temperature": -1}]}, {}, {}, r"inject\[0\]\.when"),
        ({"inject": [RULE | {"temprature": 1}]}, {}, {}, "did you mean 'temperature'"),
        ({"base": {"temperature": 0.7}}, {}, {}, "vLLM itself samples this"),
        (INJECT, {}, {"seed": -2}, r"seeds from 0 to 2\*\*63 - 1; found -2"),
        (INJECT, {}, {"seed": 2**63}, "seeds from 0"),
        (INJECT, {}, {"seed": 2**63 - 2, "n": 3}, "seeds from 0"),
        (INJECT, {}, {"n": 2}, "n > 1 needs a seed"),
        (INJECT, {KEY: "k"}, {"n": 2, "seed": 5}, f"and no {KEY}"),
        (INJECT, {KEY: ["k"]}, {}, f"{KEY} must be a text; found \\['k'\\]"),
        (HOT, {}, {"temperature": 0.5}, "must say temperature = 1.0; found 0.5"),
        (HOT, {}, {"temperature": 0.0}, "must say temperature = 1.0; found 0.0"),
        (HOT, {}, {"top_p": 0.5}, "must say top_p = 1.0; found 0.5"),
        (HOT, {}, {"top_k": 5}, "must say top_k = 0; found 5"),
        (HOT, {}, {"min_p": 0.1}, "must say min_p = 0.0; found 0.1"),
        (HOT, {}, {"presence_penalty": 1.0}, "must say presence_penalty = 0.0; found 1.0"),
        (HOT, {}, {"frequency_penalty": 1.0}, "must say frequency_penalty = 0.0; found 1.0"),
        (HOT, {}, {"repetition_penalty": 1.1}, "must say repetition_penalty = 1.0; found 1.1"),
        (DISTINCT, {}, {}, f"needs a seed, or {SIBLINGS}"),
        (DISTINCT, {SIBLINGS: [4]}, {}, "that seed or one above; found None"),
        (DISTINCT, {SIBLINGS: [4]}, {"seed": 3}, "that seed or one above; found 3"),
        (DISTINCT, {SIBLINGS: [4, 0]}, {"seed": 4, "n": 2}, r"with n > 1 must be \[seed\]"),
    ],
)
def test_an_impossible_request_is_refused(
    schedule: Any, more: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    params = request(schedule, more, **settings)
    before = dict(params.extra_args)
    with pytest.raises(ValueError, match=message) as refusal:
        admit(params)
    assert "\n" not in str(refusal.value)
    assert params.extra_args == before


@pytest.mark.parametrize(
    "value", [7, "7", [], [1, 2, 3], [-1], [1, -1], [1.0], [True], [2**63], [0, 2**63], ["1"], None]
)
def test_malformed_siblings_are_refused(value: Any) -> None:
    for schedule in (DISTINCT, INJECT):
        with pytest.raises(ValueError, match=rf"{SIBLINGS} must be \[seed, index\] or \[seed\]"):
            admit(request(schedule, {SIBLINGS: value}, seed=9))


@pytest.mark.parametrize("value", [5, {"inject": []}, None, True])
def test_a_schedule_that_is_no_text_is_refused(value: Any) -> None:
    from vllm import SamplingParams

    with pytest.raises(ValueError, match="as JSON text"):
        admit(SamplingParams(extra_args={SCHEDULE: value}))


def test_requests_without_a_schedule_are_left_alone() -> None:
    from vllm import SamplingParams

    for extra in (None, {}, {"other": 1}, {KEY: ["unread"]}):
        params = SamplingParams(extra_args=extra, seed=-7, n=3)
        admit(params)
        assert params.extra_args == extra
        assert read_request(params) is None
    assert read_request(None) is None


@pytest.mark.parametrize("top_k", [0, -1])
def test_both_spellings_of_no_top_k_go_with_a_base_of_the_schedule(top_k: int) -> None:
    admitted(HOT, top_k=top_k)


def test_any_sampling_goes_with_a_schedule_without_a_base() -> None:
    admitted(temperature=0.3, top_p=0.9, top_k=9, min_p=0.1, repetition_penalty=1.2)


def test_the_greatest_seeds_are_accepted() -> None:
    for params in children(admitted(seed=2**63 - 3, n=3)):
        assert read_request(params).seed == params.seed
    assert params.seed == 2**63 - 1


# --- names


def test_one_set_of_parameters_for_many_requests_names_each_of_them() -> None:
    params = request()
    copies = []
    for _ in range(50):
        admit(params)
        copies.append(params.clone())
    names = [read_request(each).name for each in copies]
    assert len(set(names)) == 50
    # Later admissions changed nothing that is under way.
    assert [read_request(each).name for each in copies] == names


def test_a_shallow_clone_keeps_its_name_too() -> None:
    params = request()
    params.skip_clone = True
    admit(params)
    first = params.clone()
    name = read_request(first).name
    admit(params)
    assert read_request(first).name == name != read_request(params).name


def test_the_name_of_a_request_is_not_for_the_caller_to_choose() -> None:
    forged = {NAME: 1, FIRST_SEED: 2}
    requests = [read_request(admitted(DISTINCT, forged, seed=5)) for _ in range(2)]
    assert requests[0].name != requests[1].name
    assert {each.siblings for each in requests} == {Siblings(5, 0)}


def test_the_samples_of_one_request_have_seeds_and_names_of_their_own() -> None:
    requests = [read_request(params) for params in children(admitted(seed=40, n=4))]
    assert [each.seed for each in requests] == [40, 41, 42, 43]
    assert len({each.name for each in requests}) == 4
    assert len({each.name.split("/")[0] for each in requests}) == 1


def test_a_request_without_a_seed_has_one_that_nobody_else_has() -> None:
    params = [admitted() for _ in range(20)]
    seeds = [read_request(each).seed for each in params]
    assert len(set(seeds)) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    # It is the same each time the request enters the batch.
    assert [read_request(copy.deepcopy(each)).seed for each in params] == seeds


# --- siblings


def test_the_samples_of_one_request_are_siblings_in_order() -> None:
    for more in ({}, {SIBLINGS: [40]}):
        requests = [
            read_request(params) for params in children(admitted(DISTINCT, more, seed=40, n=3))
        ]
        assert [each.siblings for each in requests] == [Siblings(40, index) for index in range(3)]


def test_requests_on_their_own_may_say_whose_siblings_they_are() -> None:
    assert read_request(admitted(DISTINCT, {SIBLINGS: [7, 2]})).siblings == Siblings(7, 2)
    assert read_request(admitted(DISTINCT, {SIBLINGS: [7]}, seed=9)).siblings == Siblings(7, 2)
    assert read_request(admitted(INJECT, {SIBLINGS: [7, 2]})).siblings is None


def test_parameters_used_again_with_another_seed_are_nobodys_siblings() -> None:
    params = request(DISTINCT, seed=5)
    admit(params)
    params.seed = 3
    admit(params)
    assert read_request(params).siblings == Siblings(3, 0)


# --- slots


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of words, and the two of a model's files that a token table reads."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("words")
    vocabulary = {token: i for i, token in enumerate(["</s>", "a", "b", "c", "d", "e", "f", "g"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 0}))
    return folder


def engine_config(folder: Path, *, is_extended: bool = True) -> Any:
    """The part of vLLM's configuration that slots look at."""
    extension = "negtemp_data.engine.extension.InjectionExtension" if is_extended else ""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model=str(folder),
            tokenizer=str(folder),
            skip_tokenizer_init=False,
            hf_config=None,
            runner_type="generate",
            tokenizer_mode="auto",
            tokenizer_revision=None,
            trust_remote_code=False,
            get_vocab_size=lambda: WIDTH,
        ),
        parallel_config=SimpleNamespace(worker_extension_cls=extension),
        scheduler_config=SimpleNamespace(max_num_seqs=MAX_NUM_SEQS),
    )


@pytest.fixture
def slots(model_folder: Path) -> RequestSlots:
    """Those of an engine whose traces can be taken."""
    return RequestSlots(engine_config(model_folder), torch.device("cpu"))


ONCE: dict[str, Any] = {"inject": [RULE | {"when": {"every": 1, "max": 1}, "support": "all"}]}
"""Injects at the first position and never again."""


def is_injected(slots: RequestSlots, slot: int, position: int) -> bool:
    """Whether a step at `position` injects."""
    logits = torch.linspace(0, 1, WIDTH).repeat(1, 1)
    numbers = (np.array([number], dtype=np.int64) for number in (0, slot, position))
    slots.sampler.step(logits, *numbers, lambda _: pytest.fail("no rule reads text"))
    return bool((logits == -math.inf).any())


def test_a_request_without_a_schedule_has_slot_0(slots: RequestSlots) -> None:
    from vllm import SamplingParams

    assert slots.enter(SamplingParams()) == slots.enter(None) == 0
    slots.leave([0])


@pytest.mark.parametrize("more", [{}, {KEY: "k"}], ids=["untraced", "traced"])
def test_a_preempted_request_finds_its_slot_and_state(
    slots: RequestSlots, more: dict[str, Any]
) -> None:
    params = admitted(ONCE, more)
    slot = slots.enter(params)
    assert is_injected(slots, slot, 0)
    slots.leave([slot])
    other = slots.enter(admitted(ONCE))
    # The parameters reach a worker as a copy.
    assert slots.enter(copy.deepcopy(params)) == slot != other
    assert not is_injected(slots, slot, 1)


def test_untraced_requests_that_left_are_forgotten_after_as_many_others_as_may_wait(
    slots: RequestSlots,
) -> None:
    params = admitted(ONCE)
    slot = slots.enter(params)
    assert is_injected(slots, slot, 0)
    slots.leave([slot])

    def others_leave(number: int) -> None:
        for _ in range(number):
            slots.leave([slots.enter(admitted(ONCE))])

    others_leave(2 * MAX_NUM_SEQS - 1)
    assert not is_injected(slots, slots.enter(params), 1)
    slots.leave([slot])
    others_leave(2 * MAX_NUM_SEQS)
    # Forgotten: it would begin again.
    assert is_injected(slots, slots.enter(params), 2)


def test_slots_of_forgotten_requests_are_used_again(slots: RequestSlots) -> None:
    used = set()
    for _ in range(100):
        used.add(slot := slots.enter(admitted(ONCE)))
        # Nothing is left of the slot's former request.
        assert is_injected(slots, slot, 0)
        slots.leave([slot])
    assert used == set(range(1, 2 * MAX_NUM_SEQS + 2))


def test_untraced_requests_that_are_in_the_batch_are_never_forgotten(slots: RequestSlots) -> None:
    params = admitted(ONCE)
    slot = slots.enter(params)
    assert is_injected(slots, slot, 0)
    # It was away once.
    slots.leave([slot])
    assert slots.enter(params) == slot
    for _ in range(100):
        slots.leave([slots.enter(admitted(ONCE))])
    assert slots.enter(params) == slot
    assert not is_injected(slots, slot, 1)


def test_traced_requests_are_kept_until_their_trace_is_taken(slots: RequestSlots) -> None:
    slot = slots.enter(admitted(ONCE, {KEY: "k"}))
    assert is_injected(slots, slot, 0)
    slots.leave([slot])
    for _ in range(100):
        slots.leave([slots.enter(admitted(ONCE))])
    traces = slots.take({"k": 9, "unknown": 9})
    assert [injection.position for injection in traces["k"].injections] == [0]
    assert set(traces) == {"k"}
    assert slots.take({"k": 9}) == {}
    assert slots.enter(admitted(ONCE)) == slot


def test_a_key_used_again_after_an_abort_begins_anew(slots: RequestSlots) -> None:
    aborted = slots.enter(admitted(ONCE, {KEY: "k"}))
    assert is_injected(slots, aborted, 0)
    slots.leave([aborted])
    again = slots.enter(admitted(ONCE, {KEY: "k"}))
    assert is_injected(slots, again, 3)
    assert [injection.position for injection in slots.take({"k": 9})["k"].injections] == [3]


def test_without_the_extension_nothing_is_kept_for_a_trace(model_folder: Path) -> None:
    config = engine_config(model_folder, is_extended=False)
    slots = RequestSlots(config, torch.device("cpu"))
    used = set()
    for _ in range(100):
        # Two clients may have chosen one key.
        pair = [slots.enter(admitted(ONCE, {KEY: "k"})) for _ in range(2)]
        assert pair[0] != pair[1]
        assert all(is_injected(slots, slot, 0) for slot in pair)
        slots.leave(pair)
        used.update(pair)
    assert len(used) <= 2 * MAX_NUM_SEQS + 2
    assert slots.take({"k": 9}) == {}


def test_a_schedule_that_the_models_tokens_can_not_carry_out_does_not_end_the_engine(
    slots: RequestSlots, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = {"inject": [RULE | {"vocabulary": {"include": ["regex:^zzz$"]}}]}
    assert slots.enter(admitted(nothing)) == 0
    assert "fewer than two tokens" in caplog.text
    assert is_injected(slots, slots.enter(admitted(ONCE)), 0)


def test_each_engine_of_a_process_gives_the_traces_of_its_own_requests(
    slots: RequestSlots, model_folder: Path
) -> None:
    other = RequestSlots(engine_config(model_folder), torch.device("cpu"))
    for engine, key in ((slots, "mine"), (other, "theirs")):
        assert is_injected(engine, engine.enter(admitted(ONCE, {KEY: key})), 0)
    traces = take_traces({"mine": 9, "theirs": 9, "nobodys": 9})
    assert [len(traces[key].injections) for key in ("mine", "theirs")] == [1, 1]
    assert traces["nobodys"] == Trace([], 0)
