"""The batched sampler: rewrites the rows of a batch of logits whose schedule injects.

A step: 1. the timetable names the rows that may inject here; 2. their state settles which rule is
due; 3. candidates and draw; 4. the row becomes one-hot; 5. state and record. The host knows
positions only; all that depends on logits stays on their device until `take`.

A request is known by its key and keeps one *slot* from `open` to `take`, wherever its row moves in
the batch and however often it is preempted.

Shapes: R batch rows, K rows looked at, V vocabulary, M rules of the longest schedule.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negtemp_data.sampling.draw import Draw, DrawRequest, draw
from negtemp_data.sampling.records import Injection, Schedule, Trace
from negtemp_data.sampling.rules import RuleTable
from negtemp_data.sampling.state import RowStates
from negtemp_data.sampling.timetable import Timetable
from negtemp_data.sampling.vocabulary import TokenTable


class _Look(NamedTuple):
    """Rows that may inject at this step."""

    row_K: Tensor
    slot_K: Tensor
    position_K: Tensor
    winner_K: Tensor
    """Index of the due rule; M where none is."""

    def select(self, chosen: Tensor) -> "_Look":
        return _Look(*(tensor[chosen] for tensor in self))


class _LoggedStep(NamedTuple):
    """The outcome of one step, still on the device."""

    look: _Look
    is_injected_K: Tensor
    temperature_K: Tensor
    drawn: Draw


class InjectionSampler:
    """Carries out schedules on batches of logits."""

    def __init__(self, tokens: TokenTable, vocab_size: int, device: torch.device) -> None:
        """Prepares for logits of width `vocab_size` on `device`."""
        self._device = device
        self._is_on_host = device.type == "cpu"
        self._rules = RuleTable(tokens, vocab_size, device)
        self._states = RowStates(self._rules, device)
        self._timetable = Timetable()
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._log: list[_LoggedStep] = []
        self._injections: dict[int, dict[int, Injection]] = {}

    def check(self, schedule: Schedule) -> None:
        """Raises ValueError where a rule can't be carried out with this model's tokens."""
        for rule in schedule.rules:
            self._rules.register(rule)

    def open(self, key: str, schedule: Schedule, seed: int) -> int:
        """Slot of the request `key`; a request that is open keeps its slot and state.

        Args:
            key: Name of the request.
            schedule: Its rules.
            seed: Its row seed, from 0 to 2⁶³ − 1.

        Raises:
            ValueError: A rule can't be carried out with this model's tokens.
        """
        if key not in self._slots:
            # First what may fail: a refused request must not use up a slot.
            indices = [self._rules.register(rule) for rule in schedule.rules]
            slot = self._free.pop() if self._free else len(self._injections)
            self._states.open(slot, seed, indices)
            self._timetable.open(slot, seed, schedule.rules)
            self._injections[slot] = {}
            self._slots[key] = slot
        return self._slots[key]

    def take(self, keys: Sequence[str]) -> dict[str, Trace]:
        """Ends requests and returns their traces; a key that is not open has an empty one."""
        self._read_log()
        deferred = self._states.deferred()
        traces = {}
        for key in keys:
            slot = self._slots.pop(key, None)
            if slot is None:
                traces[key] = Trace([], 0)
                continue
            by_position = self._injections[slot]
            traces[key] = Trace([by_position[p] for p in sorted(by_position)], deferred[slot])
            self._injections[slot] = {}
            self._timetable.close(slot)
            self._free.append(slot)
        return traces

    def step(
        self,
        logits_RV: Tensor,
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> int:
        """Injects, in place, where a rule is due.

        Args:
            logits_RV: float32 logits of the batch.
            rows: The batch rows that have a schedule.
            slots: Their slots.
            positions: Tokens that each has generated so far.

        Returns:
            Steps from now on that need no call, if no row joins and each row gains at most one
            token a step.
        """
        may_inject, fired = [], []
        for i in self._timetable.due(slots, positions).tolist():
            is_open, hits = self._timetable.look(int(slots[i]), int(positions[i]))
            if is_open:
                may_inject.append(i)
                fired.append(hits)
        if may_inject:
            self._look(logits_RV, rows[may_inject], slots[may_inject], positions[may_inject], fired)
        return self._timetable.steps_to_sleep(slots, positions)

    def _look(
        self,
        logits_RV: Tensor,
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        fired: list[list[int]],
    ) -> None:
        fires = np.zeros((len(rows), self._states.rule_SM.shape[1]), dtype=np.bool_)
        for i, hits in enumerate(fired):
            fires[i, hits] = True
        row_K, slot_K, position_K, fires_KM = (
            torch.from_numpy(array).to(self._device, non_blocking=True)
            for array in (rows, slots, positions, fires)
        )
        winner_K = self._states.settle(slot_K, position_K, fires_KM)
        look = _Look(row_K, slot_K, position_K, winner_K)
        # On a CPU the device is the host: idle rows can be left out and windows closed early.
        # Elsewhere both would make the host wait, so idle rows come along masked.
        self._inject(
            logits_RV, look.select(winner_K < fires.shape[1]) if self._is_on_host else look
        )
        if self._is_on_host:
            is_waiting = self._states.is_waiting(slot_K).tolist()
            for slot, waits in zip(slots, is_waiting, strict=True):
                if not waits:
                    self._timetable.close_window(int(slot))

    def _inject(self, logits_RV: Tensor, look: _Look) -> None:
        if not len(look.row_K):
            return
        n_rules = self._states.rule_SM.shape[1]
        is_due_K = look.winner_K < n_rules
        winner_K = look.winner_K.clamp(max=n_rules - 1)
        rule_K = self._states.rule_SM[look.slot_K, winner_K]
        temperature_K = self._rules.columns.temperature_G[rule_K]
        logits_KV = logits_RV[look.row_K]
        supports = [rule.support for rule in self._rules.rules]
        drawn = draw(
            DrawRequest(
                logits_KV=logits_KV,
                allowed_KV=self._rules.allowed(rule_K),
                limits=self._rules.limits(rule_K),
                temperature_K=temperature_K,
                seed_K=self._states.seed_S[look.slot_K],
                position_K=look.position_K,
                rule_K=winner_K,
            ),
            uses_top_p=any(support.top_p is not None for support in supports),
            uses_top_k=any(support.top_k is not None for support in supports),
            uses_top_n_sigma=any(support.top_n_sigma is not None for support in supports),
        )
        is_injected_K = is_due_K & (drawn.support_size_K >= 2)
        one_hot_KV = torch.full_like(logits_KV, -torch.inf)
        one_hot_KV.scatter_(1, drawn.token_id_K[:, None], 0.0)
        logits_RV[look.row_K] = torch.where(is_injected_K[:, None], one_hot_KV, logits_KV)
        self._states.finish(look.slot_K, look.position_K, winner_K, is_injected_K)
        self._log.append(
            _LoggedStep(look._replace(winner_K=winner_K), is_injected_K, temperature_K, drawn)
        )

    def _read_log(self) -> None:
        """Copies the outcomes of all steps since the last call to the host."""
        for step in self._log:
            columns = zip(
                step.look.slot_K.tolist(),
                step.is_injected_K.tolist(),
                step.look.position_K.tolist(),
                step.drawn.token_id_K.tolist(),
                step.drawn.displaced_id_K.tolist(),
                step.temperature_K.tolist(),
                step.drawn.support_size_K.tolist(),
                step.drawn.logprob_K.tolist(),
                step.drawn.rank_K.tolist(),
                step.drawn.entropy_K.tolist(),
                step.look.winner_K.tolist(),
                strict=True,
            )
            for slot, is_injected, position, *values in columns:
                # The last outcome of a position counts.
                self._injections[slot].pop(position, None)
                if is_injected:
                    self._injections[slot][position] = Injection(position, *values)
        self._log.clear()
