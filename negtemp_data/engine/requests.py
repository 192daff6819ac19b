"""The requests that take part, whichever of vLLM's two interfaces brings them.

A request takes part by its `extra_args` (names in `negtemp_data.engine.compile`). vLLM tells a
processor no request's name, yet a preempted request has to find its state again; so each is given
a name when it is admitted, which travels in its `extra_args`.
"""

import logging
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import torch

from negtemp_data.engine.compile import KEY, SCHEDULE, SIBLINGS, parse_schedule
from negtemp_data.engine.token_classes import token_table
from negtemp_data.sampling import Schedule, ScheduleSampler, Siblings, Trace

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

NAME = "negtemp_name"
"""Name in `extra_args` of the number that a request is known by."""
FIRST_SEED = "negtemp_first_seed"
"""Name in `extra_args` of the seed that a request came with: of its n samples, the first one's."""

_LAST_SEED = 2**63 - 1
_MOST_SIBLINGS = 65536
"""A draw takes a pass over the candidates for each sibling before it."""

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

_EXTENSION = "negtemp_data.engine.extension.InjectionExtension"
"""The worker extension that takes traces; without it nobody would ever end a traced request."""

_logger = logging.getLogger(__name__)

_engines: "WeakSet[RequestSlots]" = WeakSet()
"""Requests of the engines in this process, of which the worker extension asks for traces."""


def take_traces(lengths: Mapping[str, int]) -> dict[str, Trace]:
    """Ends these requests in whichever engine of this process runs them; returns their traces.

    A key that is not open has an empty trace.
    """
    traces = {key: Trace([], 0) for key in lengths}
    for requests in tuple(_engines):
        traces |= requests.take(lengths)
    return traces


def admit(params: "SamplingParams") -> None:
    """Checks a request's arguments, and names it.

    Raises:
        ValueError: It asks for a schedule that it can't have.
    """
    arguments = params.extra_args or {}
    if SCHEDULE not in arguments:
        return
    schedule = parse_schedule(arguments[SCHEDULE])
    _check_seeds(params)
    if not isinstance(arguments.get(KEY, ""), str):
        raise ValueError(f"{KEY} must be a text; found {arguments[KEY]!r}")
    if schedule.base:
        _check_neutral(params)
    if SIBLINGS in arguments:
        _siblings(arguments[SIBLINGS], params.seed)
        if params.n > 1 and len(arguments[SIBLINGS]) > 1:
            raise ValueError(f"{SIBLINGS} with n > 1 must be [seed]: each sample has its own index")
    elif schedule.is_distinct and params.seed is None:
        raise ValueError(f"draw: distinct needs a seed, or {SIBLINGS}")
    # A dictionary of its own: callers use one set of parameters for many requests.
    own = {NAME: secrets.randbits(63), FIRST_SEED: params.seed}
    params.extra_args = arguments | own


def _check_seeds(params: "SamplingParams") -> None:
    """Each of the n samples has the seed before it plus one."""
    if params.seed is not None and not 0 <= params.seed <= _LAST_SEED + 1 - params.n:
        raise ValueError(
            f"{SCHEDULE} needs seeds from 0 to 2**63 - 1; found {params.seed}, n = {params.n}"
        )
    if params.n > 1 and (params.seed is None or KEY in (params.extra_args or {})):
        raise ValueError(
            f"{SCHEDULE} with n > 1 needs a seed, from which each sample gets one of its own, and "
            f"no {KEY}"
        )


def _check_neutral(params: "SamplingParams") -> None:
    for name, neutral in _NEUTRAL.items():
        if getattr(params, name) not in neutral:
            raise ValueError(
                f"{SCHEDULE} has a base of its own, so the request must say {name} = {neutral[0]}; "
                f"found {getattr(params, name)}"
            )


class Request(NamedTuple):
    """What a request asks for."""

    name: str
    """What the project calls it, differently from every other request."""
    key: str | None
    """What its trace is taken by."""
    schedule: Schedule
    seed: int
    siblings: Siblings | None


def read_request(params: "SamplingParams | None") -> Request | None:
    """The request behind admitted parameters; None where it has no schedule."""
    arguments = (params.extra_args if params else None) or {}
    if params is None or SCHEDULE not in arguments:
        return None
    name = arguments[NAME]
    seed = name if params.seed is None else params.seed
    schedule = parse_schedule(arguments[SCHEDULE])
    siblings = None
    if schedule.is_distinct:
        siblings = _siblings(arguments.get(SIBLINGS, [arguments[FIRST_SEED]]), params.seed)
    return Request(
        # The samples of one request share its arguments, not their seeds.
        name=f"{name}/{seed}",
        key=arguments.get(KEY),
        schedule=schedule,
        seed=seed,
        siblings=siblings,
    )


def _siblings(value: Any, seed: int | None) -> Siblings:
    is_list = isinstance(value, list) and len(value) in (1, 2)
    if not is_list or not all(type(x) is int and 0 <= x <= _LAST_SEED for x in value):
        raise ValueError(
            f"{SIBLINGS} must be [seed, index] or [seed], from 0 to 2**63 - 1; found {value!r}"
        )
    if len(value) == 1:
        if seed is None or seed < value[0]:
            raise ValueError(
                f"{SIBLINGS}: [{value[0]}] needs a request with that seed or one above; found "
                f"{seed}"
            )
        value = [value[0], seed - value[0]]
    siblings = Siblings(*value)
    if siblings.index >= _MOST_SIBLINGS:
        raise ValueError(
            f"{SIBLINGS}: an index must be below {_MOST_SIBLINGS}; found {siblings.index}"
        )
    return siblings


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

        model_config = vllm_config.model_config
        self.sampler = ScheduleSampler(
            token_table(cached_tokenizer_from_config(model_config), model_config.model),
            model_config.get_vocab_size(),
            device,
            rows_per_request,
        )
        self._is_traceable = vllm_config.parallel_config.worker_extension_cls == _EXTENSION
        # Names of the traced requests, by key.
        self._traced: dict[str, str] = {}
        # Those that run and those that were preempted, at most.
        self._n_kept = 2 * vllm_config.scheduler_config.max_num_seqs
        self._untraced: dict[int, str] = {}
        self._left: OrderedDict[str, int] = OrderedDict()
        _engines.add(self)

    def enter(self, params: "SamplingParams | None") -> int:
        """Slot of a request that enters the batch, again perhaps; 0: it has no schedule.

        A schedule that this model's tokens can't carry out is reported and left out: an error would
        end the engine, and with it everybody's requests.
        """
        request = read_request(params)
        if request is None:
            return 0
        is_traced = self._is_traceable and request.key is not None
        key = request.key if is_traced and request.key is not None else request.name
        if self._traced.get(key, request.name) != request.name:
            # The key of a request that was aborted: nobody took its trace.
            self.sampler.close([key])
        try:
            slot = self.sampler.open(
                key, request.schedule, request.seed, request.siblings, is_traced=is_traced
            )
        except ValueError as error:
            _logger.error("a request runs without its schedule: %s", error)
            return 0
        if is_traced:
            self._traced[key] = request.name
        else:
            self._left.pop(key, None)
            self._untraced[slot] = key
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

    def take(self, lengths: Mapping[str, int]) -> dict[str, Trace]:
        """Ends those of the requests that run here, and returns their texts' traces."""
        found = [key for key in lengths if key in self._traced]
        for key in found:
            del self._traced[key]
        return self.sampler.take(found, [lengths[key] for key in found])
