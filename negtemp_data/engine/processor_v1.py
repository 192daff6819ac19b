"""The sampler inside vLLM, by the interface of Model Runner V1.

Source of the contract: vllm 0.32, v1/sample/logits_processor/interface.py. Requests without a
schedule pass through untouched, and a step in which no row can inject costs a subtraction.
"""

from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from negtemp_data.engine.requests import RequestSlots, admit

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class ScheduleProcessor(LogitsProcessor):
    """Follows vLLM's persistent batch and hands its scheduled rows to the sampler."""

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        """Raises ValueError where a request asks for a schedule that it can't have."""
        admit(sampling_params)

    def __init__(
        self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool
    ) -> None:
        """Called by vLLM, once in each worker."""
        self._device = device
        self._requests = RequestSlots(vllm_config, device)
        self._by_row: dict[int, tuple[int, list[int]]] = {}
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
        before = {slot for slot, _ in self._by_row.values()}
        for row in batch_update.removed:
            self._by_row.pop(row, None)
        for row, params, _, output_token_ids in batch_update.added:
            self._by_row.pop(row, None)
            slot = self._requests.enter(params)
            if slot:
                self._by_row[row] = slot, output_token_ids
        for source, target, direction in batch_update.moved:
            moved, displaced = self._by_row.pop(source, None), self._by_row.pop(target, None)
            if moved is not None:
                self._by_row[target] = moved
            if displaced is not None and direction is MoveDirectionality.SWAP:
                self._by_row[source] = displaced
        self._requests.leave(before.difference(slot for slot, _ in self._by_row.values()))
        self._rows = np.fromiter(self._by_row, dtype=np.int64)
        self._slots = np.fromiter((slot for slot, _ in self._by_row.values()), dtype=np.int64)
        self._outputs = [output for _, output in self._by_row.values()]
        self._steps_to_sleep = 0

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Rewrites the scheduled rows of `logits` [R, V] float32, in place."""
        if self._steps_to_sleep:
            self._steps_to_sleep -= 1
        elif self._outputs:
            # vLLM keeps these lists up to date, so their lengths are the rows' positions.
            positions = np.fromiter(map(len, self._outputs), dtype=np.int64)
            self._steps_to_sleep = self._requests.sampler.step(
                logits, self._rows, self._slots, positions, self._last_tokens
            )
        return logits

    def _last_tokens(self, chosen: NDArray[np.int64]) -> torch.Tensor:
        outputs = (self._outputs[i] or (0,) for i in chosen.tolist())
        tokens = np.fromiter(map(itemgetter(-1), outputs), dtype=np.int64)
        return torch.from_numpy(tokens).to(self._device, non_blocking=True)
