"""The batched sampler: carries out schedules on the rows of a batch of logits.

A step: 1. the timetable names the rows where a positional rule may inject, and rows with rules that
read logits or text are looked at anyway; 2. their state settles which rule is due; 3. candidates
and draw, from the logits as they came; 4. bases; 5. injected rows become one-hot; 6. state and
record. The host knows positions only; all that depends on logits stays on their device until
`take`.

A request is known by its key and keeps one *slot* from `open` to `take` or `close`, wherever its
row moves in the batch and however often it is preempted.

Shapes: R batch rows, K rows looked at, B rows with a base, V vocabulary, M rules of the longest
schedule, S slots.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negtemp_data.sampling.backend import Backend, backend_for
from negtemp_data.sampling.draw import Draw, DrawRequest
from negtemp_data.sampling.records import Injection, Schedule, Siblings, Trace
from negtemp_data.sampling.rules import needs_of
from negtemp_data.sampling.state import Pending, RowStates
from negtemp_data.sampling.stats import Needs
from negtemp_data.sampling.tables import NO_BASE, ScheduleTables
from negtemp_data.sampling.text import FireCode
from negtemp_data.sampling.timetable import Timetable
from negtemp_data.sampling.vocabulary import TokenTable

Integers = NDArray[np.int64]

LastTokens = Callable[[Integers], Tensor]
"""Gives the last generated token (int64, on the logits' device) of the rows at these indices; at
position 0 it may give anything."""


class _LoggedStep(NamedTuple):
    """The outcome of one step, still on the device."""

    generation_S: Integers
    """Which request each slot belonged to, on the host."""
    slot_K: Tensor
    position_K: Tensor
    rule_K: Tensor
    is_injected_K: Tensor
    is_again_K: Tensor
    """What these rows did at this position or later no longer counts."""
    temperature_K: Tensor
    drawn: Draw


class _OneHots(NamedTuple):
    """Rows that become one-hot."""

    row_K: Tensor
    token_K: Tensor
    is_injected_K: Tensor


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
        self._masks, self._rules = self._tables.masks, self._tables.rules
        self._bases = self._tables.bases
        self._rows_per_request = rows_per_request
        self._states = RowStates(self._rules, device, rows_per_request + 1)
        self._timetable = Timetable()
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        # By slot, on the host. Slot 0 is nobody's.
        self._needs_S = np.zeros(1, dtype=np.int64)
        self._base_S = np.full(1, NO_BASE, dtype=np.int64)
        self._is_traced_S = np.zeros(1, dtype=np.bool_)
        self._generation_S = np.zeros(1, dtype=np.int64)
        self._log: list[_LoggedStep] = []
        self._injections: dict[int, dict[int, Injection]] = {}

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
        self._states.open(slot, seed, indices, base, siblings)
        self._timetable.open(slot, seed, schedule.rules)
        self._make_room(slot + 1)
        self._needs_S[slot] = needs_of(schedule.rules)
        self._base_S[slot] = base
        self._is_traced_S[slot] = is_traced
        # Logged steps keep the old array, and with it the slot's former request.
        self._generation_S = self._generation_S.copy()
        self._generation_S[slot] += 1
        self._injections[slot] = {}
        self._slots[key] = slot
        return slot

    def take(self, keys: Sequence[str]) -> dict[str, Trace]:
        """Ends requests and returns their traces; a key that is not open has an empty one."""
        self._read_log()
        deferred = self._states.deferred()
        traces = {}
        for key in keys:
            slot = self._slots.get(key)
            if slot is None:
                traces[key] = Trace([], 0)
                continue
            by_position = self._injections[slot]
            traces[key] = Trace([by_position[p] for p in sorted(by_position)], deferred[slot])
        self.close(keys)
        return traces

    def close(self, keys: Iterable[str]) -> None:
        """Ends requests; a key that is not open is no error."""
        for key in keys:
            slot = self._slots.pop(key, None)
            if slot is not None:
                self._timetable.close(slot)
                self._injections.pop(slot)
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
        one_hots = None
        if hits or any_reads:
            chosen = np.union1d(np.flatnonzero(reads), np.fromiter(hits, dtype=np.int64))
            one_hots = self._look(
                logits_RV,
                rows[chosen],
                slots[chosen],
                positions[chosen],
                self._fires(chosen, hits),
                lambda: last_tokens(chosen),
            )
        if any_base:
            base_rows = rows[has_base], self._base_S[slots[has_base]], positions[has_base]
            self._bases.transform(self._backend, logits_RV, *self._upload(*base_rows))
        if one_hots is not None:
            self._backend.write_one_hot(logits_RV, *one_hots)
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
        needs = Needs(int(np.bitwise_or.reduce(self._needs_S[slots])))
        is_traced = bool(self._is_traced_S[slots].any())
        one_hots = []
        for order in range(self._rows_per_request):
            row_S = torch.full((len(self._needs_S),), -1, device=self._device)
            row_S.scatter_(0, slot_R.masked_fill(order_R != order, 0), index_R)
            row_K = row_S[slot_K]
            is_row_K = row_K >= 0
            # Requests without such a row stand in as slot 0, which no rule of its own ever fires.
            here_K, row_K = slot_K.masked_fill(~is_row_K, 0), row_K.clamp(min=0)
            last_token_K = last_token_R[row_K] if needs & Needs.TEXT else None
            pending = self._states.begin(here_K, position_R[row_K], last_token_K)
            hits_KM = self._states.positional_hits(pending)
            one_hots.append(
                self._inject(logits_RV, row_K, pending, hits_KM, needs=needs, is_traced=is_traced)
            )
        base_R = self._states.base_S[slot_R]
        if (self._base_S[slots] != NO_BASE).any():
            self._bases.transform(self._backend, logits_RV, index_R, base_R, position_R)
        for written in one_hots:
            if written is not None:
                self._backend.write_one_hot(logits_RV, *written)

    def _look(
        self,
        logits_RV: Tensor,
        rows: Integers,
        slots: Integers,
        positions: Integers,
        fires: NDArray[np.bool_],
        last_tokens: Callable[[], Tensor],
    ) -> _OneHots | None:
        row_K, slot_K, position_K, fires_KM = self._upload(rows, slots, positions, fires)
        needs = Needs(int(np.bitwise_or.reduce(self._needs_S[slots])))
        is_traced = bool(self._is_traced_S[slots].any())
        last_token_K = last_tokens() if needs & Needs.TEXT else None
        pending = self._states.begin(slot_K, position_K, last_token_K)
        one_hots = self._inject(
            logits_RV, row_K, pending, fires_KM, needs=needs, is_traced=is_traced
        )
        # On a CPU the device is the host, so windows can be closed early without waiting.
        if not self._backend.is_dense:
            waits = self._states.is_waiting(slot_K).tolist()
            pairs = zip(slots.tolist(), waits, strict=True)
            self._timetable.close_windows(slot for slot, is_waiting in pairs if not is_waiting)
        return one_hots

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

    def _inject(
        self,
        logits_RV: Tensor,
        row_K: Tensor,
        pending: Pending,
        hits_KM: Tensor,
        *,
        needs: Needs,
        is_traced: bool,
    ) -> _OneHots | None:
        """Draws for the rows where a rule is due; nothing is written to the logits yet."""
        fires_KM = hits_KM
        if needs:
            fires_KM = hits_KM | self._read_fires(logits_RV, row_K, pending, needs)
        pending, winner_K = self._states.settle(pending, fires_KM)
        n_rules = fires_KM.shape[1]
        is_due_K = winner_K < n_rules
        # Where rows can't be left out without making the host wait, they come along masked; so do
        # those whose former outcome has to be taken back.
        wanted_K = is_due_K | pending.is_again_K
        due_D = slice(None) if self._backend.is_dense else wanted_K.nonzero().squeeze(1)
        if not len(row_K[due_D]):
            self._states.finish(pending, winner_K, is_due_K)
            return None
        rule_D = winner_K[due_D].clamp(max=n_rules - 1)
        slot_D, position_D = pending.slot_K[due_D], pending.position_K[due_D]
        request = self._draw_request(row_K[due_D], slot_D, position_D, rule_D)
        drawn = self._backend.draw(logits_RV, request)
        is_injected_D = is_due_K[due_D] & (drawn.support_size_K >= 2)
        is_injected_K = torch.zeros_like(is_due_K)
        is_injected_K[due_D] = is_injected_D
        self._states.finish(pending, winner_K, is_injected_K)
        if is_traced:
            again_D = pending.is_again_K[due_D]
            step = (slot_D, position_D, rule_D, is_injected_D, again_D, request.temperature_K)
            self._log.append(_LoggedStep(self._generation_S, *step, drawn))
        return _OneHots(request.row_K, drawn.token_id_K, is_injected_D)

    def _draw_request(
        self, row_D: Tensor, slot_D: Tensor, position_D: Tensor, rule_D: Tensor
    ) -> DrawRequest:
        columns, states = self._rules.columns, self._states
        known_D = states.rule_SM[slot_D, rule_D]
        seed_D, order_D = states.seed_S[slot_D], None
        if self._rules.any_distinct:
            is_distinct_D = columns.is_distinct_G[known_D]
            seed_D = torch.where(is_distinct_D, states.siblings_seed_S[slot_D], seed_D)
            order_D = torch.where(is_distinct_D, states.sibling_S[slot_D], 0)
        return DrawRequest(
            row_K=row_D,
            mask_NV=self._masks.mask_NV,
            vocabulary_K=columns.vocabulary_G[known_D],
            guard_K=columns.guard_G[known_D],
            limits=columns.limits.select(known_D),
            uses=self._rules.uses,
            temperature_K=columns.temperature_G[known_D],
            seed_K=seed_D,
            position_K=position_D,
            rule_K=rule_D,
            order_K=order_D,
        )

    def _read_fires(
        self, logits_RV: Tensor, row_K: Tensor, pending: Pending, needs: Needs
    ) -> Tensor:
        """bool [K, M]: the rules that fire because of the logits or the text."""
        columns, rule_KM = self._rules.columns, pending.rule_KM
        may_fire_KM = pending.may_start_KM & self._states.in_range(pending)
        is_met_KM = torch.zeros_like(may_fire_KM)
        awaits_space_KM = is_met_KM
        if needs & Needs.TEXT:
            automata = self._rules.automata
            reads_text_KM = (columns.text_state_G[rule_KM] >= 0) & (pending.position_K[:, None] > 0)
            code_KM = automata.code_X[pending.now.text.clamp(min=0)]
            is_met_KM = reads_text_KM & (code_KM == FireCode.ALWAYS)
            awaits_space_KM = reads_text_KM & (code_KM == FireCode.BEFORE_SPACE)
        if not needs & Needs.LOGITS:
            return is_met_KM & may_fire_KM
        reads_logits_KM = columns.reads_stats_G[rule_KM] | awaits_space_KM
        wanted_K = (reads_logits_KM & may_fire_KM).any(dim=1)
        wanted_W = slice(None) if self._backend.is_dense else wanted_K.nonzero().squeeze(1)
        row_W, rule_WM = row_K[wanted_W], rule_KM[wanted_W]
        if len(row_W):
            stats = self._backend.stats(logits_RV, row_W)
            by_logits_WM = stats.entropy_K[:, None] > columns.entropy_above_G[rule_WM]
            by_logits_WM |= stats.entropy_K[:, None] < columns.entropy_below_G[rule_WM]
            by_logits_WM |= stats.margin_K[:, None] < columns.margin_below_G[rule_WM]
            if needs & Needs.TEXT:
                begins_W = self._rules.automata.begins_with_space_V[stats.argmax_K]
                by_logits_WM |= awaits_space_KM[wanted_W] & begins_W[:, None]
            is_met_KM[wanted_W] |= by_logits_WM
        return is_met_KM & may_fire_KM

    def _make_room(self, n_slots: int) -> None:
        more = n_slots - len(self._needs_S)
        if more > 0:
            more = max(more, len(self._needs_S), 64)
            self._needs_S = np.pad(self._needs_S, (0, more))
            self._base_S = np.pad(self._base_S, (0, more), constant_values=NO_BASE)
            self._is_traced_S = np.pad(self._is_traced_S, (0, more))
            self._generation_S = np.pad(self._generation_S, (0, more))

    def _read_log(self) -> None:
        """Copies the outcomes of all steps since the last call to the host."""
        for step in self._log:
            columns = zip(
                step.slot_K.tolist(),
                step.is_injected_K.tolist(),
                step.is_again_K.tolist(),
                step.position_K.tolist(),
                step.drawn.token_id_K.tolist(),
                step.drawn.displaced_id_K.tolist(),
                step.temperature_K.tolist(),
                step.drawn.support_size_K.tolist(),
                step.drawn.logprob_K.tolist(),
                step.drawn.rank_K.tolist(),
                step.drawn.entropy_K.tolist(),
                step.rule_K.tolist(),
                strict=True,
            )
            is_same_S = step.generation_S == self._generation_S[: len(step.generation_S)]
            for slot, is_injected, is_again, position, *values in columns:
                if not (is_same_S[slot] and slot in self._injections):
                    continue
                if is_again:
                    former = self._injections[slot]
                    self._injections[slot] = {p: i for p, i in former.items() if p < position}
                if is_injected:
                    self._injections[slot][position] = Injection(position, *values)
        self._log.clear()
