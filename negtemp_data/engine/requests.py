"""The requests that take part, whichever of vLLM's two interfaces brings them.

A request takes part by its `extra_args` (names in `negtemp_data.engine.compile`). vLLM tells a
processor no request's name, yet a preempted request has to find its state again; so one that comes
without a key is given a name when it is admitted, which travels in its `extra_args`.
"""

import secrets
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from negtemp_data.engine.compile import KEY, SCHEDULE, SIBLINGS, parse_schedule
from negtemp_data.engine.token_classes import token_table
from negtemp_data.sampling import Schedule, ScheduleSampler, Siblings, Trace

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

NAME = "negtemp_name"
"""Name in `extra_args` of the number that a request without a key is known by."""

_NEUTRAL = {
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
}
"""What the engine's own parameters must be where the processor does the base: whatever they did
would come on top of it, and penalties at another place on each of the two interfaces."""

_active: "RequestSlots | None" = None
"""Requests of the engine in this process; the worker extension takes traces from them."""


def take_traces(keys: list[str]) -> dict[str, Trace]:
    """Ends these requests in the engine of this process and returns their traces."""
    return _active.sampler.take(keys) if _active else {}


def admit(params: "SamplingParams") -> None:
    """Checks a request's arguments, and names it where it has no key.

    Raises:
        ValueError: It asks for a schedule that it can't have.
    """
    arguments = params.extra_args or {}
    if SCHEDULE not in arguments:
        return
    schedule = parse_schedule(arguments[SCHEDULE])
    if params.seed is not None and params.seed < 0:
        raise ValueError(f"{SCHEDULE} needs a seed from 0 on; found {params.seed}")
    if params.n > 1 and (params.seed is None or KEY in arguments):
        raise ValueError(
            f"{SCHEDULE} with n > 1 needs a seed, from which each sample gets one of its own, and "
            f"no {KEY}"
        )
    if schedule.base:
        _check_neutral(params)
    if SIBLINGS in arguments:
        _siblings(arguments[SIBLINGS], params.seed or 0)
    elif schedule.is_distinct:
        if params.seed is None:
            raise ValueError(f"draw: distinct needs a seed, or {SIBLINGS}")
        arguments = arguments | {SIBLINGS: [params.seed]}
    # A dictionary of its own: callers use one set of parameters for many requests.
    params.extra_args = arguments | {NAME: secrets.randbits(63)}


def _check_neutral(params: "SamplingParams") -> None:
    for name, neutral in _NEUTRAL.items():
        if getattr(params, name) not in neutral:
            raise ValueError(
                f"{SCHEDULE} has a base of its own, so the request must say {name} = {neutral[0]}; "
                f"found {getattr(params, name)}"
            )


class Request(NamedTuple):
    """What a request asks for."""

    key: str
    schedule: Schedule
    seed: int
    siblings: Siblings | None
    is_traced: bool


def read_request(params: "SamplingParams | None") -> Request | None:
    """The request behind admitted parameters; None where it has no schedule."""
    arguments = (params.extra_args if params else None) or {}
    if params is None or SCHEDULE not in arguments:
        return None
    name = arguments[NAME]
    seed = name if params.seed is None else params.seed
    return Request(
        # The samples of one request share its arguments, not their seeds.
        key=arguments.get(KEY, f"{name}/{seed}"),
        schedule=parse_schedule(arguments[SCHEDULE]),
        seed=seed,
        siblings=_siblings(arguments[SIBLINGS], seed) if SIBLINGS in arguments else None,
        is_traced=KEY in arguments,
    )


def _siblings(value: Any, seed: int) -> Siblings:
    is_numbers = isinstance(value, list) and all(isinstance(x, int) and x >= 0 for x in value)
    if not is_numbers or len(value) not in (1, 2):
        raise ValueError(f"{SIBLINGS} must be [seed, index] or [seed], from 0 on; found {value!r}")
    index = value[1] if len(value) == 2 else seed - value[0]
    if index < 0:
        raise ValueError(f"{SIBLINGS}: the seed {seed} is below the first sibling's, {value[0]}")
    return Siblings(value[0], index)


class RequestSlots:
    """The sampler's slots of the requests in an engine's batch.

    A request that leaves the batch may be preempted or finished, which vLLM does not tell. A traced
    one keeps its slot until its trace is taken; others keep it until so many have left after them
    that they can't be waiting any more.
    """

    def __init__(
        self, vllm_config: "VllmConfig", device: torch.device, rows_per_request: int = 1
    ) -> None:
        """Makes the engine's sampler, and makes it known to `take_traces`."""
        from vllm.tokenizers import cached_tokenizer_from_config  # noqa: PLC0415

        global _active  # noqa: PLW0603
        model_config = vllm_config.model_config
        self.sampler = ScheduleSampler(
            token_table(cached_tokenizer_from_config(model_config), model_config.model),
            model_config.get_vocab_size(),
            device,
            rows_per_request,
        )
        # Those that run and those that were preempted, at most.
        self._n_kept = 2 * vllm_config.scheduler_config.max_num_seqs
        self._untraced: dict[int, str] = {}
        self._left: OrderedDict[str, int] = OrderedDict()
        _active = self

    def enter(self, params: "SamplingParams | None") -> int:
        """Slot of a request that enters the batch, again perhaps; 0: it has no schedule."""
        request = read_request(params)
        if request is None:
            return 0
        slot = self.sampler.open(
            request.key,
            request.schedule,
            request.seed,
            request.siblings,
            is_traced=request.is_traced,
        )
        if not request.is_traced:
            self._left.pop(request.key, None)
            self._untraced[slot] = request.key
        return slot

    def leave(self, slots: Iterable[int]) -> None:
        """Notes that the requests in these slots have left the batch."""
        for slot in slots:
            if slot in self._untraced:
                self._left[self._untraced[slot]] = slot
        while len(self._left) > self._n_kept:
            key, slot = self._left.popitem(last=False)
            del self._untraced[slot]
            self.sampler.close([key])
