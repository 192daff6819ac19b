"""The sampler inside vLLM, by the interface of Model Runner V2.

Source of the contract: vllm 0.32, v1/worker/gpu/sample/logits_processor/interface.py. Rows are
reordered at every step and known by the runner's own places for requests (`req_idx`), of which the
host is told. It knows the positions too, but where draft tokens are used: how many of them were
accepted is known on the device alone, so there everything is worked out on the device.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from negtemp_data.engine.requests import RequestSlots, admit

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu.sample.logits_processor import (
        LogitsContext,
        LogitsProcRequestState,
    )


class ScheduleProcessor(LogitsProcessor):
    """Finds the sampler's slots of the runner's rows, and their positions."""

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        """Raises ValueError where a request asks for a schedule that it can't have."""
        admit(sampling_params)

    def __init__(self, vllm_config: "VllmConfig", req_states: "LogitsProcRequestState") -> None:
        """Called by vLLM, once in each worker."""
        if vllm_config.parallel_config.enable_batch_sharded_sampling:
            raise ValueError(
                "schedules need enable_batch_sharded_sampling = False: a request that is resumed "
                "may be sampled by another worker, which does not know what was done to it"
            )
        drafts = vllm_config.speculative_config
        rows_per_request = 1 + (drafts.num_speculative_tokens if drafts else 0)
        self._has_drafts = drafts is not None
        self._states = req_states
        self._requests = RequestSlots(vllm_config, req_states.device, rows_per_request)
        # By the runner's place for a request; 0 where it has no schedule.
        self._slot_P = np.zeros(req_states.max_num_reqs, dtype=np.int64)

    def add_request(self, req_idx: int, sampling_params: "SamplingParams") -> bool:
        """Takes a request in, again perhaps after a preemption; False: it has no schedule."""
        former = int(self._slot_P[req_idx])
        slot = self._requests.enter(sampling_params)
        # A preempted request may be back at another place before its old one is given away.
        self._slot_P[self._slot_P == slot] = 0
        self._slot_P[req_idx] = slot
        if former and former != slot and not (self._slot_P == former).any():
            self._requests.leave([former])
        return slot != 0

    def apply(self, logits: torch.Tensor, ctx: "LogitsContext") -> torch.Tensor:
        """Rewrites the scheduled rows of `logits` [rows, V] float32, in place."""
        places = ctx.idx_mapping_np
        slots = self._slot_P[places]
        if not slots.any():
            return logits
        if self._has_drafts:
            self._apply_to_drafts(logits, ctx, slots)
        else:
            self._apply_to_single_rows(logits, ctx, slots)
        return logits

    def _apply_to_single_rows(
        self, logits: torch.Tensor, ctx: "LogitsContext", slots: NDArray[np.int64]
    ) -> None:
        places = ctx.idx_mapping_np
        lengths = ctx.seq_lens_upper_bound_np[: len(places)].astype(np.int64)
        # In the midst of a prefill, a first or a repeated one, the runner drops what is sampled.
        is_sampled = lengths >= self._states.prefill_len.np[places]
        rows = np.flatnonzero((slots != 0) & is_sampled)
        positions = lengths - self._states.prompt_len.np[places]

        def last_tokens(chosen: NDArray[np.int64]) -> torch.Tensor:
            index = torch.from_numpy(rows[chosen]).to(logits.device, non_blocking=True)
            return ctx.input_ids[index].long()

        self._requests.sampler.step(logits, rows, slots[rows], positions[rows], last_tokens)

    def _apply_to_drafts(
        self, logits: torch.Tensor, ctx: "LogitsContext", slots: NDArray[np.int64]
    ) -> None:
        place_R = ctx.expanded_idx_mapping.long()
        slot_P = torch.from_numpy(self._slot_P).to(logits.device, non_blocking=True)
        length_R = ctx.pos.long() + 1
        is_sampled_R = length_R >= self._states.prefill_len.gpu[place_R]
        position_R = length_R - self._states.prompt_len.gpu[place_R]
        self._requests.sampler.step_drafts(
            logits,
            slots=slots[slots != 0],
            slot_R=slot_P[place_R],
            position_R=position_R.masked_fill(~is_sampled_R, -1),
            order_R=ctx.expanded_local_pos.long(),
            # Places for drafts that a request has not got hold −1; their rows are rejected.
            last_token_R=ctx.input_ids.long().clamp(min=0),
        )
