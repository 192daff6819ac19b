"""The sampler inside vLLM: a logits processor for the interface of Model Runner V1.

Source of the contract: vllm 0.32, v1/sample/logits_processor/interface.py. A request takes part by
its `extra_args` (`negtemp_data.engine.compile`) and its seed; others pass through untouched, and a
step in which no row can inject costs a subtraction.
"""

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from negtemp_data.engine.compile import KEY, SCHEDULE
from negtemp_data.engine.tokens import token_table
from negtemp_data.sampling import InjectionSampler, Schedule, Trace

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

_active: InjectionSampler | None = None
"""Sampler of the engine in this process; the worker extension takes traces from it."""


def take_traces(keys: list[str]) -> dict[str, Trace]:
    """Ends these requests in the engine of this process and returns their traces."""
    return _active.take(keys) if _active else {}


class InjectionProcessor(LogitsProcessor):
    """Follows vLLM's persistent batch and hands its scheduled rows to the sampler."""

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        """Raises ValueError where a request asks for injections but can't have them."""
        arguments = sampling_params.extra_args or {}
        if SCHEDULE not in arguments:
            return
        Schedule.from_json(arguments[SCHEDULE])
        if sampling_params.seed is None or sampling_params.seed < 0:
            raise ValueError(f"{SCHEDULE} needs a seed from 0 on; found {sampling_params.seed}")
        if KEY not in arguments:
            raise ValueError(f"{SCHEDULE} needs {KEY}, the name of the request")

    def __init__(
        self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool
    ) -> None:
        """Called by vLLM, once in each worker."""
        from vllm.tokenizers import cached_tokenizer_from_config  # noqa: PLC0415

        model_config = vllm_config.model_config
        global _active  # noqa: PLW0603
        self._sampler = _active = InjectionSampler(
            token_table(cached_tokenizer_from_config(model_config)),
            model_config.get_vocab_size(),
            device,
        )
        self._requests: dict[int, tuple[int, list[int]]] = {}
        self._rows = self._slots = np.zeros(0, dtype=np.int64)
        self._outputs: list[list[int]] = []
        self._steps_to_sleep = 0

    def is_argmax_invariant(self) -> bool:
        """An injection changes what greedy sampling gives, so vLLM must always apply it."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows requests that join, leave or move (vLLM's order: removed, added, moved)."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._requests.pop(row, None)
        for row, params, _, output_token_ids in batch_update.added:
            self._requests.pop(row, None)
            arguments = params.extra_args or {}
            if SCHEDULE in arguments:
                schedule = Schedule.from_json(arguments[SCHEDULE])
                seed = cast(int, params.seed)  # validate_params has seen it
                slot = self._sampler.open(arguments[KEY], schedule, seed)
                self._requests[row] = slot, output_token_ids
        for source, target, direction in batch_update.moved:
            moved, displaced = self._requests.pop(source, None), self._requests.pop(target, None)
            if moved is not None:
                self._requests[target] = moved
            if displaced is not None and direction is MoveDirectionality.SWAP:
                self._requests[source] = displaced
        self._rows = np.fromiter(self._requests, dtype=np.int64)
        self._slots = np.fromiter((slot for slot, _ in self._requests.values()), dtype=np.int64)
        self._outputs = [output for _, output in self._requests.values()]
        self._steps_to_sleep = 0

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Injects into `logits` [R, V] float32, in place."""
        if self._steps_to_sleep:
            self._steps_to_sleep -= 1
        elif self._outputs:
            # vLLM keeps these lists up to date, so their lengths are the rows' positions.
            positions = np.fromiter(map(len, self._outputs), dtype=np.int64)
            self._steps_to_sleep = self._sampler.step(logits, self._rows, self._slots, positions)
        return logits
