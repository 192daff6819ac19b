"""Generations with draft tokens: a request has several rows in one step, and keeps some of them.

The simulated engine proposes tokens, computes a row for each of them and one more, and keeps those
rows whose tokens were drafted rightly and the first that was not; the reference sees no others.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_sampler as reference
from negtemp_data.sampling import (
    BernoulliTrigger,
    EntropyTrigger,
    PeriodicTrigger,
    Piece,
    PositionTrigger,
    Rule,
    Schedule,
    Siblings,
    Support,
    TextTrigger,
    Vocabulary,
)
from reference_supports import ReferenceTokens
from sampling_cases import is_same_bits

TOKENS = ReferenceTokens((b"<s>", b" a", b"b", b". ", b"."), frozenset({0}), {})
WIDTH = 6
N_ROWS = 4
"""Most rows of a request: three drafts and one more."""

WORDS = Vocabulary(exclude=("special",))
SCHEDULES = [
    Schedule((Rule(PeriodicTrigger(3, 1), -1.0, Support(min_p=0.2), WORDS, burst=2, defer=2),)),
    Schedule((Rule(PeriodicTrigger(1), -1.0, Support(min_p=0.2), max_injections=3, cooldown=2),)),
    Schedule((Rule(BernoulliTrigger(0.4), -0.5, cooldown=1, is_distinct=True),)),
    Schedule((Rule(PositionTrigger((1, 4, 5)), 2.0, Support(top_p=0.87), burst=2),)),
    Schedule((Rule(EntropyTrigger(above=1.3), -1.0, Support(min_p=0.2), cooldown=2, burst=2),)),
    Schedule((Rule(EntropyTrigger(below=0.1), -1.0, Support(min_p=0.2), max_injections=2),)),
    Schedule((Rule(TextTrigger("literal", "b."), -1.0), Rule(TextTrigger("word"), 1.0, stop=6))),
    Schedule((Rule(TextTrigger("sentence"), -1.0, cooldown=3),), (Piece(-2.0, top_k=3),)),
    Schedule(base=(Piece(3.0, until=4, support=Support(min_p=0.1)), Piece(0.5))),
]


class Request:
    """A request, and what the reference makes of it."""

    def __init__(self, key, schedule, seed, length):
        self.key, self.schedule, self.seed, self.length = key, schedule, seed, length
        self.siblings = Siblings(seed % 3, seed % 5)
        self.expected = reference.ReferenceRow(schedule, seed, TOKENS, self.siblings)
        self.tokens = []

    def keep(self, before, after, token):
        """Takes a row and its token for good."""
        step = self.expected.step(len(self.tokens), before.tolist(), self.tokens)
        if self.expected.is_sure:
            assert step.difference(before.tolist(), after.tolist()) is None, self.schedule
        self.tokens.append(token)


class Step:
    """The rows of one step: those of each request behind each other, and strangers between."""

    def __init__(self, generator):
        self.generator = generator
        self.columns = []
        self.rows_of = []

    def add(self, slot, positions, last_tokens):
        """Rows of one request; those at negative positions are of no interest."""
        begin = len(self.columns)
        for order, row in enumerate(zip(positions, last_tokens, strict=True)):
            self.columns.append((slot, *row, order))
        self.rows_of.append(range(begin, len(self.columns)))

    def logits(self):
        """Rows that leave one candidate in a third of the cases."""
        rows = self.generator.integers(-1, 2, (len(self.columns), WIDTH)) + 0.0
        rows += self.generator.random(rows.shape) * 0.01
        for row in rows:
            if self.generator.random() < 0.3:
                row[self.generator.integers(WIDTH)] += 30
        return rows.astype(np.float32)


def run(implementation, requests, generator):
    """All requests to their ends, side by side."""
    sampler = implementation.sampler(TOKENS, WIDTH, N_ROWS)
    slots = [sampler.open(each.key, each.schedule, each.seed, each.siblings) for each in requests]
    while running := [i for i, each in enumerate(requests) if len(each.tokens) < each.length]:
        generator.shuffle(running)
        step, drafts = Step(generator), {}
        for i in running:
            if generator.random() < 0.3:
                step.add(0, [-1], [0])
            tokens = requests[i].tokens
            drafts[i] = generator.integers(
                0, len(TOKENS.texts), generator.integers(N_ROWS)
            ).tolist()
            begin = len(tokens)
            last = [tokens[-1] if tokens else -1, *drafts[i]]
            step.add(slots[i], range(begin, begin + len(last)), last)
        before = step.logits()
        after = implementation.tensor(before)
        slot_R, position_R, last_R, order_R = (
            torch.tensor(column, device=implementation.device)
            for column in zip(*step.columns, strict=True)
        )
        # Only an engine's rows at position 0 have no token before them.
        last_R = last_R.clamp(min=0)
        host_slots = np.array([slots[i] for i in running])
        sampler.step_drafts(after, host_slots, slot_R, position_R, order_R, last_R)
        after = after.cpu().numpy()
        strangers = [row for row, column in enumerate(step.columns) if column[0] == 0]
        assert is_same_bits(after[strangers], before[strangers])
        rows_of = [rows for rows in step.rows_of if step.columns[rows[0]][0] != 0]
        for i, rows in zip(running, rows_of, strict=True):
            if generator.random() < 0.2:
                # Computed again: preempted, for instance.
                continue
            for row, draft in zip(rows, [*drafts[i], None], strict=True):
                left = np.flatnonzero(np.isfinite(after[row]))
                is_right = draft in left and generator.random() < 0.8
                token = draft if is_right else int(generator.choice(left))
                requests[i].keep(before[row], after[row], token)
                if token != draft:
                    break
    return sampler.take([each.key for each in requests])


@settings(max_examples=25, derandomize=True)
@given(
    schedules=st.lists(st.sampled_from(SCHEDULES), min_size=1, max_size=4),
    entropy=st.integers(0, 2**32),
)
def test_generations_with_drafts_equal_the_reference(implementation, schedules, entropy):
    generator = np.random.default_rng(entropy)
    requests = [
        Request(str(i), schedule, int(generator.integers(2**63)), int(generator.integers(1, 14)))
        for i, schedule in enumerate(schedules)
    ]
    traces = run(implementation, requests, generator)
    for request in requests:
        if not request.expected.is_sure:
            continue
        # The last step's rows beyond the kept ones are never computed again, so they stay.
        trace, n_kept = traces[request.key], len(request.tokens)
        kept = [each for each in trace.injections if each.position < n_kept]
        deferred = request.expected.deferred
        assert deferred <= trace.deferred <= deferred + N_ROWS
        trace = trace._replace(injections=kept, deferred=deferred)
        assert reference.differences(trace, request.expected) == [], request.schedule


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_row_at_a_time_is_a_step_without_drafts(implementation, schedule):
    generator = np.random.default_rng(1)
    rows = generator.normal(0, 2, (12, 1, WIDTH)).astype(np.float32)
    words = generator.integers(0, len(TOKENS.texts), 12)
    results = []
    for n_rows in (1, N_ROWS):
        sampler = implementation.sampler(TOKENS, WIDTH, n_rows)
        slots = np.array([sampler.open("a", schedule, 5, Siblings(3, 1))])
        after = []
        for position, row in enumerate(rows):
            logits, here = implementation.tensor(row), np.array([position])
            last = torch.from_numpy(words[position - 1 : position or None][:1].copy())
            last = last if len(last) else torch.zeros(1, dtype=torch.int64)
            if n_rows == 1:
                sampler.step(logits, np.zeros(1, int), slots, here, lambda _: last)  # noqa: B023
            else:
                order = torch.zeros(1, dtype=torch.int64)
                slot_R, position_R = torch.from_numpy(slots), torch.from_numpy(here)
                sampler.step_drafts(logits, slots, slot_R, position_R, order, last)
            after.append(logits.tolist())
        results.append((after, sampler.take(["a"])["a"]))
    assert results[0] == results[1]
