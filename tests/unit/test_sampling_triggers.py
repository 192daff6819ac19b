"""When rules fire that read the logits or the text, against the reference and by example."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_sampler as reference
from negtemp_data.sampling import (
    EntropyTrigger,
    MarginTrigger,
    PeriodicTrigger,
    Rule,
    Schedule,
    Support,
    TextTrigger,
)
from reference_supports import ReferenceTokens
from sampling_cases import KINDS, TOKENS, WIDTH, logits_of_kind, step_once

# --- rules that read the logits

bounds = st.floats(0, 3) | st.sampled_from([0.0, 0.5, math.log(2), math.log(WIDTH)])
leads = st.floats(1e-6, 1.2) | st.sampled_from([0.0, 1e-9, 0.5, 1.0])
logit_triggers = st.one_of(
    st.builds(EntropyTrigger, above=bounds),
    st.builds(EntropyTrigger, below=bounds),
    st.builds(MarginTrigger, leads),
)


@settings(max_examples=100, derandomize=True)
@given(
    batch=st.lists(st.tuples(st.sampled_from(KINDS), logit_triggers), min_size=1, max_size=8),
    entropy=st.integers(0, 2**32),
)
def test_rules_that_read_logits_fire_as_the_reference_does(implementation, batch, entropy):
    generator = np.random.default_rng(entropy)
    logits = np.stack([logits_of_kind(kind, generator) for kind, _ in batch])
    schedules = [Schedule((Rule(trigger, -1.0),)) for _, trigger in batch]
    after, traces = step_once(implementation, logits, schedules, range(len(batch)))
    for seed, (before, row, schedule, trace) in enumerate(
        zip(logits, after, schedules, traces, strict=True)
    ):
        expected = reference.ReferenceRow(schedule, seed, TOKENS)
        step = expected.step(0, before.tolist())
        if expected.is_sure:
            assert reference.differences(trace, expected) == []
            assert step.difference(before.tolist(), row.tolist()) is None


def test_the_reference_is_sure_of_most_firings():
    # Guards the test above: tolerances that swallowed everything would hide any fault.
    generator = np.random.default_rng(2)
    triggers = [
        *[EntropyTrigger(above=bound) for bound in (0.3, 1.1, 2.0)],
        *[MarginTrigger(bound) for bound in (0.1, 0.5)],
    ]
    rows = [
        reference.ReferenceRow(Schedule((Rule(trigger, -1.0),)), 1, TOKENS)
        for trigger in triggers * 200
    ]
    for i, row in enumerate(rows):
        row.step(0, logits_of_kind(KINDS[i % len(KINDS)], generator).tolist())
    assert sum(row.is_sure for row in rows) / len(rows) > 0.98
    assert 0.2 < sum(bool(row.injections) for row in rows) / len(rows) < 0.8


def fires_on(implementation, trigger, row):
    """Whether a rule injects into this row."""
    logits = np.full((1, WIDTH), -np.inf, dtype=np.float32)
    logits[0, : len(row)] = row
    _, (trace,) = step_once(implementation, logits, [Schedule((Rule(trigger, -1.0),))], [1])
    return bool(trace.injections)


HALVES = np.log([0.5, 0.5])
QUARTERS = np.log([0.25] * 4)
LEADING = np.log([0.6, 0.3, 0.1])


@pytest.mark.parametrize(
    ("trigger", "row", "does_fire"),
    [
        (EntropyTrigger(above=0.69), HALVES, True),
        (EntropyTrigger(above=0.70), HALVES, False),
        (EntropyTrigger(below=0.70), HALVES, True),
        (EntropyTrigger(below=0.69), HALVES, False),
        (EntropyTrigger(above=1.38), QUARTERS, True),
        (EntropyTrigger(above=1.39), QUARTERS, False),
        # The entropy does not depend on where the logits lie.
        (EntropyTrigger(above=1.38), QUARTERS - 80, True),
        (EntropyTrigger(above=1.39), QUARTERS + 90, False),
        (EntropyTrigger(above=1.38), QUARTERS + 90, True),
        (MarginTrigger(0.31), LEADING, True),
        (MarginTrigger(0.29), LEADING, False),
        (MarginTrigger(1e-9), HALVES, True),
        (MarginTrigger(1e-9), QUARTERS, True),
        (MarginTrigger(0.999), np.array([0.0, -30.0]), False),
    ],
)
def test_bounds_on_entropy_and_margin(implementation, trigger, row, does_fire):
    assert fires_on(implementation, trigger, row) == does_fire


@pytest.mark.parametrize(
    ("trigger", "deferred"),
    [
        (MarginTrigger(1.0), 0),
        (MarginTrigger(1.5), 1),
        (EntropyTrigger(above=0.0), 0),
        (EntropyTrigger(below=0.0), 0),
        (EntropyTrigger(below=1e-4), 1),
    ],
)
def test_a_single_possible_token_has_a_margin_of_1_and_no_entropy(
    implementation, trigger, deferred
):
    # With one candidate a firing shows as an injection that waits.
    logits = logits_of_kind("single", np.random.default_rng(0))[None]
    _, (trace,) = step_once(implementation, logits, [Schedule((Rule(trigger, -1.0),))], [1])
    assert trace == ([], deferred)


def test_a_firing_does_not_depend_on_the_rows_beside_it(implementation):
    # Bounds within the rounding error of the entropy, which a bound in a job hardly ever is: here
    # a row whose sums are done otherwise beside some other row would show.
    generator = np.random.default_rng(1)
    row = generator.normal(5, 3, WIDTH).astype(np.float32)
    exact = reference.entropy(row.tolist())
    bounds = [exact + step * 5e-8 for step in range(-25, 26)]
    schedules = [Schedule((Rule(EntropyTrigger(above=bound), -1.0),)) for bound in bounds]

    def fired(neighbour):
        logits = np.stack([*[row] * len(bounds), neighbour])
        _, traces = step_once(implementation, logits, [*schedules, schedules[0]], [0] * 52)
        return [len(trace.injections) for trace in traces[:-1]]

    ordinary = fired(generator.normal(5, 3, WIDTH).astype(np.float32))
    assert 0 < sum(ordinary) < len(bounds)
    for kind in KINDS:
        assert fired(logits_of_kind(kind, generator)) == ordinary
    assert fired(generator.normal(200, 3, WIDTH).astype(np.float32)) == ordinary


# --- rules that read the text

WORDS = [
    "<s>", "\n\n", ".", "!", "?", "…", '"', ")", "*", " a", "b", "\n", " ", ".\n", '?"', "。", "！",
    "」", "’", "aba", "</th", "ink>", "\t", "x.", ". ", ",", "ab\nab",
]  # fmt: skip
TEXTS = (*(word.encode() for word in WORDS), b"\xe2\x80", b"\xa6")
SPECIAL = frozenset({0, 1})
TEXT_TOKENS = ReferenceTokens(TEXTS, SPECIAL, {})
TEXT_WIDTH = len(TEXTS) + 3
ID = {text: i for i, text in enumerate(TEXTS)}
LITERALS = ["a", "aba", "abab", "</think>", ".\n", "…", "ba", "\n\n", "b.", "。」", "a a"]
TEXT_TRIGGERS = [
    TextTrigger("sentence"),
    TextTrigger("line"),
    TextTrigger("word"),
    *[TextTrigger("literal", literal) for literal in LITERALS],
]

generated = st.lists(st.integers(0, TEXT_WIDTH - 1), max_size=12)
text_rules = st.builds(
    Rule,
    trigger=st.sampled_from(TEXT_TRIGGERS),
    temperature=st.just(-1.0),
    start=st.integers(0, 3),
    stop=st.none() | st.integers(4, 12),
    burst=st.integers(1, 2),
    cooldown=st.integers(0, 1),
)


def run_texts(implementation, schedules, texts, best):
    """Rows side by side, each generating its tokens; the traces and the reference's rows.

    Args:
        implementation: What to test.
        schedules: One for each row.
        texts: Tokens of each row.
        best: The most likely token of each row at each position.
    """
    sampler = implementation.sampler(TEXT_TOKENS, TEXT_WIDTH)
    keys = [str(i) for i in range(len(texts))]
    slots = np.array(
        [sampler.open(key, schedule, 7) for key, schedule in zip(keys, schedules, strict=True)]
    )
    expected = [reference.ReferenceRow(schedule, 7, TEXT_TOKENS) for schedule in schedules]
    for position in range(max(len(text) for text in texts) + 1):
        rows = np.array([i for i, text in enumerate(texts) if position <= len(text)])
        logits = np.zeros((len(rows), TEXT_WIDTH), dtype=np.float32)
        logits[np.arange(len(rows)), [best[i][position] for i in rows]] = 1.0
        # At position 0 there is no last token, and anything may be in its place.
        last = [texts[i][position - 1] if position else -1 for i in rows]

        def last_tokens(indices, last=last):
            return torch.tensor([last[i] for i in indices], dtype=torch.int64)

        for i, row in zip(rows, logits, strict=True):
            expected[i].step(position, row.tolist(), texts[i][:position])
        sampler.step(
            implementation.tensor(logits),
            np.arange(len(rows)),
            slots[rows],
            np.full(len(rows), position),
            last_tokens,
        )
    traces = sampler.take(keys)
    return [traces[key] for key in keys], expected


@settings(max_examples=60, derandomize=True)
@given(
    batch=st.lists(st.tuples(st.lists(text_rules, min_size=1, max_size=2), generated), min_size=1,
                   max_size=6),
    entropy=st.integers(0, 2**32),
)  # fmt: skip
def test_rules_that_read_text_fire_as_the_reference_does(implementation, batch, entropy):
    generator = np.random.default_rng(entropy)
    schedules = [Schedule(tuple(rules)) for rules, _ in batch]
    texts = [text for _, text in batch]
    best = generator.integers(0, TEXT_WIDTH, (len(batch), 13))
    best[generator.random(best.shape) < 0.4] = ID[b" a"]
    traces, expected = run_texts(implementation, schedules, texts, best)
    for trace, row, text in zip(traces, expected, texts, strict=True):
        assert reference.differences(trace, row) == [], (
            row.schedule,
            [TEXTS[i : i + 1] for i in text],
        )


def firings(implementation, trigger, tokens, best=" a"):
    """Positions at which a rule fires while these tokens (text or bytes) are generated."""
    text = [ID[token.encode() if isinstance(token, str) else token] for token in tokens]
    schedule = Schedule((Rule(trigger, -1.0),))
    most_likely = [[ID[best.encode()]] * (len(text) + 1)]
    (trace,), _ = run_texts(implementation, [schedule], [text], most_likely)
    return [injection.position for injection in trace.injections]


def literal(text):
    return TextTrigger("literal", text)


@pytest.mark.parametrize(
    ("trigger", "tokens", "positions"),
    [
        (literal("</think>"), ["</th", "ink>", " a"], [2]),
        (literal("</think>"), ["</th", "</th", "ink>"], [3]),
        (literal("</think>"), ["</th", " a", "ink>"], []),
        # Once for each occurrence, and they may overlap.
        (literal("aba"), ["aba", "b", "aba"], [1, 3]),
        (literal("abab"), ["aba", "b", "aba"], [2, 3]),
        # It may end anywhere within a token.
        (literal("b.\n"), ["b", ".\n"], [2]),
        (literal("b"), ["ab\nab"], [1]),
        (literal("…"), [b"\xe2\x80", b"\xa6"], [2]),
        (literal("a"), ["b", "b"], []),
        (TextTrigger("line"), ["b", "\n", "b", ".\n", "ab\nab", "\n\n"], [2, 4, 5, 6]),
        (TextTrigger("word"), ["b", " ", " a", "\n", "."], [1, 3, 5]),
        (TextTrigger("sentence"), ["b", ".", " a", "!", "…"], [2, 4, 5]),
        (TextTrigger("sentence"), [".", '"', ")", "*", "’"], [1, 2, 3, 4, 5]),
        (TextTrigger("sentence"), [".", " ", '"'], [1]),
        (TextTrigger("sentence"), [".", "b", '"'], [1]),
        (TextTrigger("sentence"), [b"\xe2\x80", b"\xa6", "b"], [2]),
        (TextTrigger("sentence"), ["。", "」", "b"], [1, 2]),
        (TextTrigger("sentence"), [], []),
    ],
)  # fmt: skip
def test_where_texts_end(implementation, trigger, tokens, positions):
    assert firings(implementation, trigger, tokens) == positions


@pytest.mark.parametrize(
    ("best", "continues"),
    [(" a", True), ("\n", True), ("\t", True), ("b", False), (".", False), ("\n\n", False)],
)
def test_words_and_sentences_end_where_whitespace_is_most_likely(implementation, best, continues):
    # Two newlines are a special token.
    for after in ("word", "sentence"):
        fired = firings(implementation, TextTrigger(after), ["b", "."], best)
        assert fired == (([1, 2] if after == "word" else [2]) if continues else [])


@pytest.mark.parametrize("best", ["b", " a", "<s>"])
def test_a_full_width_sentence_ends_whatever_comes_next(implementation, best):
    tokens = ["！", "」", "。"]
    assert firings(implementation, TextTrigger("sentence"), tokens, best) == [1, 2, 3]


def test_a_most_likely_token_beyond_the_tokenizer_begins_with_nothing(implementation):
    schedule = Schedule((Rule(TextTrigger("word"), -1.0),))
    (trace,), _ = run_texts(
        implementation, [schedule], [[ID[b"b"]]], [[TEXT_WIDTH - 1, TEXT_WIDTH - 1]]
    )
    assert trace == ([], 0)


def test_a_literal_is_remembered_while_other_rules_inject(implementation):
    first = Rule(PeriodicTrigger(1), -1.0, stop=2)
    second = Rule(literal("</think>"), -1.0, Support(top_k=100))
    text = [ID[b"</th"], ID[b"ink>"], ID[b"b"]]
    (trace,), _ = run_texts(implementation, [Schedule((first, second))], [text], [[ID[b"b"]] * 4])
    assert [(each.position, each.rule) for each in trace.injections] == [(0, 0), (1, 0), (2, 1)]
