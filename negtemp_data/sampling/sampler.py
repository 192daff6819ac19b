"""The batched sampler: carries out schedules on the rows of a batch of logits.

A step: 1. the timetable names the rows where a positional rule may inject, and rows with rules that
read logits or text are looked at anyway; 2. the backend does what their rules ask for; 3. bases, on
the rows that were not injected. The host knows positions only; all that depends on logits stays on
their device until `take`.

A request is known by its key and keeps one *slot* from `open` to `take` or `close`, wherever its
row moves in the batch and however often it is preempted.

Shapes: R batch rows, K rows looked at, B rows with a base, V vocabulary, M rules of the longest
schedule, S slots, C columns.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negtemp_data.sampling.backend import Backend, backend_for
from negtemp_data.sampling.columns import NO_BASE, OutcomeNumber, OutcomeValue, RowNumber
from negtemp_data.sampling.draw import Outcome, StepRows
from negtemp_data.sampling.records import Injection, Schedule, Siblings, Trace
from negtemp_data.sampling.rules import needs_of
from negtemp_data.sampling.state import RowStates
from negtemp_data.sampling.stats import Needs
from negtemp_data.sampling.tables import ScheduleTables
from negtemp_data.sampling.timetable import Timetable
from negtemp_data.sampling.vocabulary import TokenTable

_NO_END = 2**62
"""Behind all positions."""

_MOST_LOGGED_STEPS = 1024
"""On a GPU, where what nobody needs can't be left out without waiting for it: 92 bytes a row and
step, so 24 MB with 256 rows. Reading them is the only wait between two ends of requests."""

Integers = NDArray[np.int64]

LastTokens = Callable[[Integers], Tensor]
"""Gives the last generated token (int64, on the logits' device) of the rows at these indices; at
position 0 it may give anything."""


class ScheduleSampler:
    """Carries out schedules on batches of logits."""

    def __init__(
        self,
        tokens: TokenTable,
        vocab_size: int,
        device: torch.device,
        rows_per_request: int = 1,
    ) -> None:
        """Prepares for logits of width `vocab_size` on `device`.

        Args:
            tokens: The model's tokens.
            vocab_size: Width of the logits.
            device: Where they are.
            rows_per_request: Most rows of one request in a step: 1, or 1 + its draft tokens.
        """
        self._device = device
        self._backend: Backend = backend_for(device)
        self._tables = ScheduleTables(tokens, vocab_size, device)
        self._bases = self._tables.bases
        self._rows_per_request = rows_per_request
        self._states = RowStates(self._tables.rules, device, rows_per_request + 1)
        self._timetable = Timetable()
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        # By slot, on the host. Slot 0 is nobody's.
        self._needs_S = np.zeros(1, dtype=np.int64)
        self._base_S = np.full(1, NO_BASE, dtype=np.int64)
        self._is_traced_S = np.zeros(1, dtype=np.bool_)
        self._request_S = np.zeros(1, dtype=np.int64)
        self._n_requests = 0
        self._log: list[tuple[Tensor, Tensor]] = []
        """Numbers and values of the outcomes since `take`, still on the device."""
        self._injections: dict[int, dict[int, Injection]] = {}
        """Of the open requests, by number, by position."""

    def open(
        self,
        key: str,
        schedule: Schedule,
        seed: int,
        siblings: Siblings | None = None,
        *,
        is_traced: bool = True,
    ) -> int:
        """Slot of the request `key`; a request that is open keeps its slot and state.

        Args:
            key: Name of the request.
            schedule: What to do to it.
            seed: Its row seed, from 0 to 2⁶³ − 1.
            siblings: Its place among the samples of its prompt; a distinct rule needs it.
            is_traced: Whether `take` will ask for what was done.

        Raises:
            ValueError: The schedule can't be carried out with this model's tokens, or needs
                `siblings`.
        """
        if key in self._slots:
            return self._slots[key]
        # First what may fail: a refused request must not use up a slot.
        if schedule.is_distinct and siblings is None:
            raise ValueError("draw: distinct needs the row's siblings")
        indices, base = self._tables.register(schedule)
        slot = self._free.pop() if self._free else 1 + len(self._slots)
        self._n_requests += 1
        self._states.open(slot, self._n_requests, seed, indices, base, siblings)
        self._timetable.open(slot, seed, schedule.rules)
        self._make_room(slot + 1)
        self._needs_S[slot] = needs_of(schedule.rules)
        self._base_S[slot] = base
        self._is_traced_S[slot] = is_traced
        self._request_S[slot] = self._n_requests
        self._injections[self._n_requests] = {}
        self._slots[key] = slot
        return slot

    def take(self, keys: Sequence[str], lengths: Sequence[int] | None = None) -> dict[str, Trace]:
        """Ends requests and returns their traces; a key that is not open has an empty one.

        Args:
            keys: Keys of the requests.
            lengths: Tokens of each request's text. What was done behind them is left out: rejected
                drafts, steps that began before the end was known. None: everything counts.
        """
        self._read_log()
        if lengths is None:
            lengths = [_NO_END] * len(keys)
        slots = [self._slots.get(key) for key in keys]
        length_S = torch.full_like(self._states.tag_WS[0], _NO_END)
        for slot, length in zip(slots, lengths, strict=True):
            if slot is not None:
                length_S[slot] = length
        deferred = self._states.deferred(length_S)
        traces = {}
        for key, slot, length in zip(keys, slots, lengths, strict=True):
            if slot is None:
                traces[key] = Trace([], 0)
                continue
            by_position = self._injections[int(self._request_S[slot])]
            kept = [by_position[p] for p in sorted(by_position) if p < length]
            traces[key] = Trace(kept, deferred[slot])
        self.close(keys)
        return traces

    def close(self, keys: Iterable[str]) -> None:
        """Ends requests; a key that is not open is no error."""
        for key in keys:
            slot = self._slots.pop(key, None)
            if slot is not None:
                self._timetable.close(slot)
                self._injections.pop(int(self._request_S[slot]))
                self._free.append(slot)

    def step(
        self,
        logits_RV: Tensor,
        rows: Integers,
        slots: Integers,
        positions: Integers,
        last_tokens: LastTokens,
    ) -> int:
        """Does what the schedules ask for at this step, in place.

        Args:
            logits_RV: float32 logits of the batch.
            rows: The batch rows that have a schedule, each once.
            slots: Their slots.
            positions: Tokens that each has generated so far.
            last_tokens: Asked only where a rule reads text.

        Returns:
            Steps from now on that need no call, if no row joins and each row gains at most one
            token a step.
        """
        hits = self._timetable.hits(slots, positions)
        reads = self._needs_S[slots] != 0
        has_base = self._base_S[slots] != NO_BASE
        any_reads, any_base = reads.any(), has_base.any()
        looked_at = []
        if hits or any_reads:
            opened = np.fromiter(hits, dtype=np.int64)
            chosen = np.union1d(np.flatnonzero(reads), opened)
            fires = self._fires(chosen, hits)
            row_K, slot_K, position_K, fires_KM = self._upload(
                rows[chosen], slots[chosen], positions[chosen], fires
            )
            needs = self._needs(slots[chosen])
            last_token_K = last_tokens(chosen) if needs & Needs.TEXT else None
            step_rows = StepRows(
                row_K, slot_K, position_K, last_token_K, fires_KM, bool(needs & Needs.LOGITS)
            )
            outcome = self._inject(logits_RV, step_rows, slots[chosen])
            looked_at.append((row_K, outcome))
            if outcome.is_waiting_K is not None:
                is_waiting = outcome.is_waiting_K.numpy()[np.searchsorted(chosen, opened)]
                self._timetable.close_windows(slots[opened[~is_waiting]].tolist())
        if any_base:
            row_B, base_B, position_B = self._upload(
                rows[has_base], self._base_S[slots[has_base]], positions[has_base]
            )
            self._transform(logits_RV, row_B, base_B, position_B, looked_at)
        if any_reads or any_base:
            return 0
        return self._timetable.steps_to_sleep(slots, positions)

    def step_drafts(
        self,
        logits_RV: Tensor,
        slots: Integers,
        slot_R: Tensor,
        position_R: Tensor,
        order_R: Tensor,
        last_token_R: Tensor,
    ) -> None:
        """Like `step`, for batches in which a request has a row for each of its draft tokens.

        The host does not know how many drafts were accepted before, so everything is worked out on
        the device, one row of each request after the other.

        Args:
            logits_RV: float32 logits of the batch.
            slots: Slots of the requests in the batch that have a schedule, on the host.
            slot_R: int64 slot of each row, 0 where it has none.
            position_R: int64 position of each row; negative: the row is of no interest.
            order_R: int64 place of each row among those of its request.
            last_token_R: int64 token before each row's.
        """
        if not slots.size:
            return
        (slot_K,) = self._upload(slots)
        index_R = torch.arange(len(slot_R), device=self._device)
        slot_R = slot_R.masked_fill(position_R < 0, 0)
        needs = self._needs(slots)
        looked_at = []
        for order in range(self._rows_per_request):
            row_S = torch.full((len(self._needs_S),), -1, device=self._device)
            row_S.scatter_(0, slot_R.masked_fill(order_R != order, 0), index_R)
            row_K = row_S[slot_K]
            # Requests without such a row stand in as slot 0.
            here_K, row_K = slot_K.masked_fill(row_K < 0, 0), row_K.clamp(min=0)
            last_token_K = last_token_R[row_K] if needs & Needs.TEXT else None
            rows = StepRows(
                row_K, here_K, position_R[row_K], last_token_K, None, bool(needs & Needs.LOGITS)
            )
            looked_at.append((row_K, self._inject(logits_RV, rows, slots)))
        if (self._base_S[slots] != NO_BASE).any():
            base_R = self._states.row_SC[:, RowNumber.BASE][slot_R]
            self._transform(logits_RV, index_R, base_R, position_R, looked_at)

    def _inject(self, logits_RV: Tensor, rows: StepRows, slots: Integers) -> Outcome:
        """Looks at rows; `slots`, on the host, holds theirs and perhaps more."""
        outcome = self._backend.inject(logits_RV, rows, self._states)
        if self._is_traced_S[slots].any():
            numbers, values = outcome.number_KC, outcome.value_KC
            if outcome.is_waiting_K is None:
                self._log.append((numbers, values))
                if len(self._log) == _MOST_LOGGED_STEPS:
                    self._read_log()
            elif len(kept := _changes(numbers)):
                self._log.append((numbers[kept], values[kept]))
        return outcome

    def _transform(
        self,
        logits_RV: Tensor,
        row_B: Tensor,
        base_B: Tensor,
        position_B: Tensor,
        looked_at: list[tuple[Tensor, Outcome]],
    ) -> None:
        """Bases of the rows that were not injected, which `looked_at` tells with their rows."""
        if looked_at:
            n_injected_R = torch.zeros(len(logits_RV), dtype=torch.int64, device=self._device)
            for row_K, outcome in looked_at:
                n_injected_R.index_add_(0, row_K, outcome.number_KC[:, OutcomeNumber.IS_INJECTED])
            base_B = base_B.masked_fill(n_injected_R[row_B] > 0, NO_BASE)
        self._bases.transform(self._backend, logits_RV, row_B, base_B, position_B)

    def _needs(self, slots: Integers) -> Needs:
        return Needs(int(np.bitwise_or.reduce(self._needs_S[slots])))

    def _fires(self, chosen: NDArray[np.intp], hits: dict[int, list[int]]) -> NDArray[np.bool_]:
        """bool [K, M]: the positional rules that fire in the chosen rows."""
        fires = np.zeros((len(chosen), self._states.rule_SM.shape[1]), dtype=np.bool_)
        place = np.searchsorted(chosen, np.fromiter(hits, dtype=np.int64))
        for k, fired in zip(place.tolist(), hits.values(), strict=True):
            fires[k, fired] = True
        return fires

    def _upload(self, *arrays: NDArray[np.int64] | NDArray[np.bool_]) -> tuple[Tensor, ...]:
        return tuple(
            torch.from_numpy(array).to(self._device, non_blocking=True) for array in arrays
        )

    def _make_room(self, n_slots: int) -> None:
        more = n_slots - len(self._needs_S)
        if more > 0:
            more = max(more, len(self._needs_S), 64)
            self._needs_S = np.pad(self._needs_S, (0, more))
            self._base_S = np.pad(self._base_S, (0, more), constant_values=NO_BASE)
            self._is_traced_S = np.pad(self._is_traced_S, (0, more))
            self._request_S = np.pad(self._request_S, (0, more))

    def _read_log(self) -> None:
        """Copies the outcomes of all steps since the last call to the host."""
        if not self._log:
            return
        numbers, values = (torch.cat(columns) for columns in zip(*self._log, strict=True))
        self._log.clear()
        kept = _changes(numbers)
        for number, value in zip(numbers[kept].tolist(), values[kept].tolist(), strict=True):
            request = number[OutcomeNumber.REQUEST]
            if request not in self._injections:
                continue
            position = number[OutcomeNumber.POSITION]
            if number[OutcomeNumber.IS_AGAIN]:
                former = self._injections[request]
                self._injections[request] = {p: i for p, i in former.items() if p < position}
            if number[OutcomeNumber.IS_INJECTED]:
                self._injections[request][position] = Injection(
                    position=position,
                    token_id=number[OutcomeNumber.TOKEN_ID],
                    displaced_id=number[OutcomeNumber.DISPLACED_ID],
                    temperature=value[OutcomeValue.TEMPERATURE],
                    support_size=number[OutcomeNumber.SUPPORT_SIZE],
                    logprob=value[OutcomeValue.LOGPROB],
                    rank=number[OutcomeNumber.RANK],
                    entropy=value[OutcomeValue.ENTROPY],
                    rule=number[OutcomeNumber.RULE],
                )


def _changes(number_KC: Tensor) -> Tensor:
    """int64: the outcomes that say something of a trace."""
    is_injected_K, is_again_K = (
        number_KC[:, column] for column in (OutcomeNumber.IS_INJECTED, OutcomeNumber.IS_AGAIN)
    )
    return (is_injected_K | is_again_K).nonzero().squeeze(1)
