"""The Triton kernels against the host's arithmetic: integers equal, floats within rounding.

Not collected by itself. `test_sampling_kernels.py` runs it in a process of its own, either with
TRITON_INTERPRET=1, where numpy stands in for the GPU, or on a GPU.

Where float32 may find another support than float64, a row says nothing and is left out; the
reference names those rows.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import reference_supports as reference
from negtemp_data.sampling import (
    BernoulliTrigger,
    EntropyTrigger,
    MarginTrigger,
    PeriodicTrigger,
    Piece,
    PositionTrigger,
    Rule,
    Schedule,
    ScheduleSampler,
    Siblings,
    Support,
    TextTrigger,
    TokenTable,
    Vocabulary,
)
from negtemp_data.sampling import gumbel as host_gumbel
from negtemp_data.sampling import philox as host_philox
from negtemp_data.sampling import sampler as sampler_module
from negtemp_data.sampling.columns import NO_BASE, OutcomeNumber, OutcomeValue
from negtemp_data.sampling.draw import StepRows
from negtemp_data.sampling.host_backend import HostBackend
from negtemp_data.sampling.masks import MaskTable
from negtemp_data.sampling.philox import Stream
from negtemp_data.sampling.rescale import RescaleRequest
from negtemp_data.sampling.rules import (
    RuleTable,
    float32_temperature,
    limit_columns,
    uses_of,
)
from negtemp_data.sampling.state import RowStates
from negtemp_data.sampling.supports import Limits
from negtemp_data.sampling.triton_backend import TritonBackend, write_rows
from negtemp_data.sampling.triton_random import gumbel, philox
from sampling_cases import SUPPORTS, TEMPERATURES, TOKENS, is_same_bits

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")

# numpy, where it stands in for the GPU, warns of what happens in lanes that are masked.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SOUND = ["flat", "peaked", "ties", "masked", "equal", "single", "huge", "tiny", "offset", "bf16"]
BROKEN = ["nan", "all nan", "infinite", "forbidden"]

ALL, HALF, NONE = range(3)
"""Masks: everything, a random half, nothing."""


def row_of_kind(kind: str, width: int, generator: np.random.Generator) -> np.ndarray:
    """One float32 row."""
    normal = generator.normal(size=width)
    is_one = np.arange(width) == generator.integers(width)
    is_some = is_one | (generator.random(width) < 0.5)
    row = {
        "flat": normal,
        "peaked": normal * 8,
        "ties": generator.integers(-2, 3, width),
        "masked": np.where(is_some, normal * 3, -np.inf),
        "equal": np.full(width, normal[0]),
        "single": np.where(is_one, normal, -np.inf),
        "huge": generator.choice([-1e30, 0.0, 1e29, 1e30], width),
        "tiny": normal * 1e-30,
        "offset": normal + 90,
        "bf16": torch.from_numpy(normal * 5).to(torch.bfloat16).to(torch.float64).numpy(),
        "nan": np.where(is_one, np.nan, normal),
        "all nan": np.full(width, np.nan),
        "infinite": np.where(is_one, np.inf, normal),
        "forbidden": np.full(width, -np.inf),
    }[kind]  # fmt: skip
    return row.astype(np.float32)


@dataclass(frozen=True)
class Case:
    """What is drawn from one row."""

    kind: str
    temperature: float
    support: Support = SUPPORTS[0]
    vocabulary: int = ALL
    guard: int = NONE
    order: int = 0


def masks(width: int, generator: np.random.Generator) -> torch.Tensor:
    """The vocabularies."""
    half = generator.random(width) < 0.5
    half[:2] = True
    return torch.from_numpy(np.stack([np.ones(width, bool), half, np.zeros(width, bool)]))


def tokens_of(mask: torch.Tensor) -> TokenTable:
    """Tokens of which the masks are classes."""
    half = mask[HALF].nonzero().squeeze(1).tolist()
    ids = {"half": half, "all": range(mask.shape[1])}
    return TokenTable([b"x"] * mask.shape[1], frozenset(), more=ids.get)


VOCABULARY = {ALL: Vocabulary(), HALF: Vocabulary(include=("half",))}
GUARD = {ALL: ("all",), HALF: ("half",), NONE: ()}


@dataclass(frozen=True)
class Drawn:
    """What became of rows, on the host."""

    number: list[dict[OutcomeNumber, int]]
    value: list[dict[OutcomeValue, float]]
    deferred: list[int]
    logits: np.ndarray

    def column(self, column: OutcomeNumber) -> list[int]:
        return [number[column] for number in self.number]


def draw_both(
    logits: torch.Tensor,
    cases: Sequence[Case],
    mask: torch.Tensor,
    generator: np.random.Generator,
    siblings_seed: int | None = None,
) -> tuple[Drawn, Drawn]:
    """What the kernels and the host do to rows, each at a position at which its case's rule fires.

    Args:
        logits: A row for each case, of any strides.
        cases: What is drawn.
        mask: The vocabularies.
        generator: Of seeds, positions and places of the rules in their schedules.
        siblings_seed: All rows are siblings of this seed; None: each draws for itself.
    """
    n_rows = len(cases)
    rows = generator.permutation(n_rows)
    seeds = generator.integers(0, 2**63, n_rows).tolist()
    positions = generator.integers(0, 2**20, n_rows).tolist()
    places = generator.integers(0, 6, n_rows).tolist()
    if siblings_seed is not None:
        positions, places = [77] * n_rows, [2] * n_rows
    drawn = []
    for backend, device in ((TritonBackend(), DEVICE), (HostBackend(), torch.device("cpu"))):
        tokens, width = tokens_of(mask), mask.shape[1]
        rules = RuleTable(tokens, width, device, MaskTable(tokens, width, device))
        states = RowStates(rules, device, 2)
        never = rules.register(Rule(PositionTrigger((2**21,)), 1.0))
        for slot, row in enumerate(rows, 1):
            case = cases[row]
            rule = Rule(
                PositionTrigger((positions[row],)),
                case.temperature,
                case.support,
                VOCABULARY[case.vocabulary],
                GUARD[case.guard],
                is_distinct=siblings_seed is not None,
                defer=slot % 2,
            )
            known = [never] * places[row] + [rules.register(rule)]
            siblings = Siblings(siblings_seed or 0, case.order)
            states.open(slot, 100 + slot, seeds[row], known, NO_BASE, siblings)
        # A row more than there are requests, and its neighbours as far away.
        z_RV = torch.full((n_rows + 1, width + 24), 99.0, device=device)[:, :width]
        z_RV[:n_rows] = logits
        step_rows = StepRows(
            row_K=torch.from_numpy(rows).to(device),
            slot_K=torch.arange(1, n_rows + 1, device=device),
            position_K=torch.tensor(
                [positions[row] for row in rows], dtype=torch.int64, device=device
            ),
            last_token_K=None,
            fires_KM=None,
            reads_logits=False,
        )
        outcome = backend.inject(z_RV, step_rows, states)
        assert (z_RV[n_rows] == 99).all()
        order = np.argsort(rows)
        numbers, values = outcome.number_KC[order].tolist(), outcome.value_KC[order].tolist()
        drawn.append(
            Drawn(
                [dict(zip(OutcomeNumber, number, strict=True)) for number in numbers],
                [dict(zip(OutcomeValue, value, strict=True)) for value in values],
                [states.deferred(states.tag_WS.amax(dim=0))[1 + k] for k in order],
                z_RV[:n_rows].cpu().numpy().copy(),
            )
        )
    return drawn[0], drawn[1]


def is_certain(logits: np.ndarray, case: Case, mask: torch.Tensor) -> bool:
    """Whether no token lies within float32's rounding of a limit."""
    allowed = set(mask[case.vocabulary].nonzero().squeeze(1).tolist())
    found = reference.candidates(logits.tolist(), case.support).within(allowed)
    return len(found.possible) == 1


def assert_same_draws(
    logits: np.ndarray,
    cases: Sequence[Case],
    generator: np.random.Generator,
    *,
    at_least: float = 0.8,
    siblings_seed: int | None = None,
) -> Drawn:
    """Whether both draw the same wherever the support is certain, which most rows must be.

    Returns:
        What the kernels drew.
    """
    mask = masks(logits.shape[1], generator)
    ours, theirs = draw_both(torch.from_numpy(logits), cases, mask, generator, siblings_seed)
    n_compared = 0
    for k, case in enumerate(cases):
        number, value = ours.number[k], ours.value[k]
        is_injected = number[OutcomeNumber.IS_INJECTED]
        if not is_injected:
            assert is_same_bits(ours.logits[k], logits[k])
        if not is_certain(logits[k], case, mask):
            continue
        n_compared += 1
        assert is_injected == theirs.number[k][OutcomeNumber.IS_INJECTED], case
        assert ours.deferred[k] == theirs.deferred[k]
        assert number[OutcomeNumber.REQUEST] == theirs.number[k][OutcomeNumber.REQUEST]
        assert not (is_injected and case.kind in BROKEN)
        if is_injected:
            assert number == theirs.number[k], case
            assert is_same_bits(ours.logits[k], theirs.logits[k])
            assert all(is_close(value[each], theirs.value[k][each]) for each in OutcomeValue), case
    assert n_compared >= at_least * len(cases)
    return ours


def is_close(ours: float, theirs: float) -> bool:
    return math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-4)


def on_device(request: RescaleRequest) -> RescaleRequest:
    """The request where the kernels run."""

    def move(value: object) -> object:
        if isinstance(value, Limits):
            return Limits(*map(move, value))
        return value.to(DEVICE) if isinstance(value, torch.Tensor) else value

    return RescaleRequest(*map(move, request))


# --- random numbers


@triton.jit
def noise_kernel(seed_N, token_N, position, rule, word_N, gumbel_N, SIZE: tl.constexpr):
    n = tl.program_id(0)
    id_L = n * SIZE + tl.arange(0, SIZE)
    word = philox(
        tl.load(seed_N + n), tl.load(token_N + id_L), tl.load(position + n), tl.load(rule + n)
    )
    tl.store(word_N + id_L, word.to(tl.int64))
    tl.store(gumbel_N + id_L, gumbel(word))


def test_words_are_bit_identical_and_gumbel_numbers_equal_within_rounding():
    generator = np.random.default_rng(1)
    n_keys, size = 24, 128
    seed = generator.integers(0, 2**63, n_keys)
    seed[:4] = 0, 2**32 - 1, 2**32, 2**63 - 1
    position = generator.integers(0, 2**32, n_keys)
    position[:3] = 0, 2**31, 2**32 - 1
    rule = generator.integers(0, 64, n_keys)
    token = generator.integers(0, 2**18, (n_keys, size)).astype(np.int32)
    token[:, 0] = 0
    inputs = [torch.from_numpy(array).to(DEVICE) for array in (seed, token, position, rule)]
    word = torch.empty(n_keys, size, dtype=torch.int64, device=DEVICE)
    noise = torch.empty(n_keys, size, device=DEVICE)
    noise_kernel[(n_keys,)](*inputs, word, noise, SIZE=size, enable_fp_fusion=False)
    column = [torch.from_numpy(array)[:, None] for array in (seed, position, rule)]
    expected = host_philox(
        column[0], torch.from_numpy(token.astype(np.int64)), column[1], column[2], Stream.DRAW
    )
    assert torch.equal(word.cpu(), expected)
    assert torch.allclose(noise.cpu(), host_gumbel(expected), rtol=1e-6, atol=1e-6)


@triton.jit
def gumbel_kernel(word_N, gumbel_N, SIZE: tl.constexpr):
    id_L = tl.arange(0, SIZE)
    tl.store(gumbel_N + id_L, gumbel(tl.load(word_N + id_L).to(tl.uint32)))


def test_gumbel_numbers_equal_the_host_s_at_both_ends():
    powers = [2**bits + step for bits in range(1, 32) for step in (-1, 0, 1)]
    words = torch.tensor([0, 2**32 - 1, 2**32 - 128, 2**32 - 129, 2**32 - 2**20, *powers])
    words = torch.nn.functional.pad(words, (0, 128 - len(words)))
    noise = torch.empty(128, device=DEVICE)
    gumbel_kernel[(1,)](words.to(DEVICE), noise, SIZE=128, enable_fp_fusion=False)
    assert noise.isfinite().all()
    assert torch.allclose(noise.cpu(), host_gumbel(words), rtol=1e-6, atol=1e-6)


# --- statistics


@pytest.mark.parametrize("width", [1, 7, 40, 2048, 4099])
def test_statistics_equal_the_host_s_for_rows_of_every_kind(width):
    generator = np.random.default_rng(width)
    logits = np.stack([row_of_kind(kind, width, generator) for kind in SOUND])
    rows = torch.tensor([*range(len(SOUND)), 0, 3])
    z_RV = torch.from_numpy(logits)
    kernels, host = TritonBackend(), HostBackend()
    ours = kernels.stats(z_RV.to(DEVICE), rows.to(DEVICE), has_deviation=True)
    theirs = host.stats(z_RV, rows, has_deviation=True)
    assert torch.equal(ours.peak_K.cpu(), theirs.peak_K)
    assert torch.equal(ours.argmax_K.cpu(), theirs.argmax_K)
    assert torch.allclose(
        ours.log_normalizer_K.cpu(), theirs.log_normalizer_K, rtol=1e-6, atol=1e-4
    )
    assert torch.allclose(ours.entropy_K.cpu(), theirs.entropy_K, rtol=1e-6, atol=1e-4)
    assert torch.allclose(ours.margin_K.cpu(), theirs.margin_K, rtol=1e-6, atol=1e-5)
    assert torch.allclose(ours.deviation_K.cpu(), theirs.deviation_K, rtol=1e-6)


def test_ties_of_the_peak_have_no_margin_and_the_lowest_id_wherever_they_lie():
    # In one block, in blocks of one tile, and in tiles apart.
    places = [(3, 5), (127, 128), (100, 2000), (2047, 2048), (5, 4098), (4097, 4098)]
    logits = np.zeros((len(places), 4099), dtype=np.float32)
    for row, place in zip(logits, places, strict=True):
        row[list(place)] = 2.0
    rows = torch.arange(len(places), device=DEVICE)
    z_RV = torch.from_numpy(logits).to(DEVICE)
    stats = TritonBackend().stats(z_RV, rows)
    assert stats.argmax_K.tolist() == [first for first, _ in places]
    assert stats.margin_K.tolist() == [0.0] * len(places)


def test_rows_without_a_meaning_have_statistics_of_nan_and_an_argmax_in_range():
    generator = np.random.default_rng(2)
    logits = np.stack([row_of_kind(kind, 9, generator) for kind in BROKEN])
    rows = torch.arange(len(logits), device=DEVICE)
    stats = TritonBackend().stats(torch.from_numpy(logits).to(DEVICE), rows)
    assert ((stats.argmax_K >= 0) & (stats.argmax_K < 9)).all()
    for column in (stats.peak_K, stats.log_normalizer_K, stats.entropy_K):
        assert column.isnan().all()


# --- draws

cases_of_any_kind = st.builds(
    Case,
    kind=st.sampled_from([*SOUND, *BROKEN]),
    temperature=st.sampled_from(TEMPERATURES),
    support=st.sampled_from(SUPPORTS),
    vocabulary=st.sampled_from([ALL, ALL, HALF]),
    guard=st.sampled_from([NONE, NONE, HALF]),
    order=st.integers(0, 5),
)


# Shrinking would take minutes in the interpreter, and the cases name themselves.
@settings(deadline=None, max_examples=20, derandomize=True, phases=[Phase.generate])
@given(
    cases=st.lists(cases_of_any_kind, min_size=1, max_size=4),
    width=st.sampled_from([2, 7, 40, 129]),
    entropy=st.integers(0, 2**32),
    siblings_seed=st.sampled_from([None, 2**40 + 5]),
)
def test_draws_equal_the_host_s_for_any_batch(cases, width, entropy, siblings_seed):
    generator = np.random.default_rng(entropy)
    logits = np.stack([row_of_kind(case.kind, width, generator) for case in cases])
    assert_same_draws(logits, cases, generator, at_least=0.0, siblings_seed=siblings_seed)


@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_draws_equal_the_host_s_under_each_support(support):
    generator = np.random.default_rng(3)
    kinds = ["flat", "peaked", "ties", "masked", "equal", "single", "tiny", "bf16"]
    cases = [
        Case(kind, temperature, support)
        for kind, temperature in zip(kinds, [-1.0, 0.5, -0.1, -math.inf] * 2, strict=True)
    ]
    logits = np.stack([row_of_kind(case.kind, 40, generator) for case in cases])
    assert_same_draws(logits, cases, generator)


@pytest.mark.parametrize("kind", ["flat", "ties", "huge"])
def test_draws_equal_the_host_s_at_each_temperature(kind):
    generator = np.random.default_rng(4)
    cases = [Case(kind, temperature, vocabulary=HALF) for temperature in TEMPERATURES]
    logits = np.stack([row_of_kind(kind, 40, generator) for _ in cases])
    assert_same_draws(logits, cases, generator)


@pytest.mark.parametrize("width", [2048, 2049, 6000])
def test_draws_equal_the_host_s_from_rows_of_several_tiles(width):
    generator = np.random.default_rng(width)
    cases = [
        Case("flat", -1.0, Support(epsilon=1e-4), HALF),
        Case("flat", -math.inf, Support(top_n_sigma=6.0)),
        Case("peaked", 2.0, Support(min_p=1e-9)),
        Case("bf16", -0.5, Support(xtc=0.02)),
        Case("ties", 1.0),
    ]
    logits = np.stack([row_of_kind(case.kind, width, generator) for case in cases])
    ours = assert_same_draws(logits, cases, generator, at_least=0.6)
    # Candidates in more blocks than are in hand at a time.
    assert max(ours.column(OutcomeNumber.SUPPORT_SIZE)[3:]) == width


def test_siblings_take_every_candidate_once_and_begin_again():
    generator = np.random.default_rng(5)
    logits = torch.from_numpy(np.tile(row_of_kind("flat", 40, generator), (12, 1)))
    cases = [Case("flat", -1.0, Support(top_k=5), order=order) for order in range(12)]
    ours, theirs = draw_both(logits, cases, masks(40, generator), generator, siblings_seed=77)
    drawn = ours.column(OutcomeNumber.TOKEN_ID)
    assert drawn == theirs.column(OutcomeNumber.TOKEN_ID)
    assert len(set(drawn[:5])) == 5
    assert drawn[5:10] == drawn[:5]


def test_ties_in_the_score_go_to_the_lowest_id_and_siblings_take_them_in_order():
    logits = torch.zeros(5, 300)
    logits[:, [5, 140, 290]] = 2.0
    generator = np.random.default_rng(6)
    cases = [Case("ties", 0.0, order=order) for order in range(5)]
    ours, theirs = draw_both(logits, cases, masks(300, generator), generator, siblings_seed=3)
    expected = [5, 140, 290, 0, 1]
    assert ours.column(OutcomeNumber.TOKEN_ID) == expected
    assert theirs.column(OutcomeNumber.TOKEN_ID) == expected


def test_zeros_of_either_sign_tie():
    logits = torch.full((2, 40), -1.0)
    logits[0, 7], logits[0, 20] = -0.0, 0.0
    logits[1, 7], logits[1, 20] = 0.0, -0.0
    generator = np.random.default_rng(12)
    cases = [Case("ties", 0.0), Case("ties", 0.0)]
    for drawn in draw_both(logits, cases, masks(40, generator), generator):
        assert drawn.column(OutcomeNumber.TOKEN_ID) == [7, 7]
        assert drawn.column(OutcomeNumber.DISPLACED_ID) == [7, 7]
        assert drawn.column(OutcomeNumber.RANK) == [2, 2]


def test_xtc_counts_tokens_below_the_other_limits_in_blocks_of_their_own():
    logits = torch.full((1, 300), -20.0)
    logits[0, 0], logits[0, 10], logits[0, 200] = 0.0, -0.1, -2.0
    generator = np.random.default_rng(11)
    cases = [Case("flat", -1.0, Support(min_p=0.5, xtc=0.05))]
    for drawn in draw_both(logits, cases, masks(300, generator), generator):
        # Token 200 is the least likely that xtc counts, and min_p drops all that is no likelier.
        assert drawn.column(OutcomeNumber.IS_INJECTED) == [0]


def test_a_guarded_row_has_no_candidate():
    generator = np.random.default_rng(7)
    cases = [Case("flat", -1.0, guard=ALL), Case("flat", -1.0)]
    logits = torch.from_numpy(np.tile(row_of_kind("flat", 40, generator), (2, 1)))
    for drawn in draw_both(logits, cases, masks(40, generator), generator):
        assert drawn.column(OutcomeNumber.IS_INJECTED) == [0, 1]
        assert drawn.column(OutcomeNumber.SUPPORT_SIZE)[1] == 40


def test_no_rows_are_no_error():
    generator = np.random.default_rng(9)
    for drawn in draw_both(torch.zeros(0, 40), [], masks(40, generator), generator):
        assert drawn.number == []


# --- writing


@pytest.mark.parametrize("width", [7, 8192, 8195])
def test_injected_rows_become_one_hot_and_all_others_keep_their_bits(width):
    generator = np.random.default_rng(width)
    kinds = ["flat", "nan", "flat", "infinite", "masked"]
    logits = np.stack([row_of_kind(kind, width, generator) for kind in kinds])
    after = torch.from_numpy(logits.copy()).to(DEVICE)
    # Row 0 is named twice, but not injected; row 1 once as injected and once as not.
    rows = torch.tensor([0, 0, 1, 4, 1], device=DEVICE)
    number_KC = torch.zeros(5, len(OutcomeNumber), dtype=torch.int64, device=DEVICE)
    tokens = torch.tensor([0, 1, width - 1, 3, 2], device=DEVICE)
    number_KC[:, OutcomeNumber.TOKEN_ID] = tokens
    number_KC[:, OutcomeNumber.IS_INJECTED] = torch.tensor([0, 0, 1, 1, 0], device=DEVICE)
    write_rows(after, rows, number_KC)
    expected = logits.copy()
    expected[[1, 4]] = -np.inf
    expected[1, width - 1] = expected[4, 3] = 0.0
    assert is_same_bits(after.cpu().numpy(), expected)


# --- bases


@pytest.mark.parametrize("is_truncated", [False, True])
@pytest.mark.parametrize("width", [9, 4099])
def test_rows_become_what_their_bases_make_of_them_on_the_host(width, is_truncated):
    generator = np.random.default_rng(width)
    cases = [
        Case(kind, temperature, SUPPORTS[number % len(SUPPORTS)], number // 9 % 3)
        for number, (kind, temperature) in enumerate(product(SOUND + BROKEN, TEMPERATURES))
    ]
    logits = np.stack([row_of_kind(case.kind, width, generator) for case in cases])
    n_rows, supports = len(cases), [case.support for case in cases]
    limits = generator.random((3, n_rows))
    request = RescaleRequest(
        row_B=torch.arange(n_rows),
        is_wanted_B=torch.from_numpy(generator.random(n_rows) < 0.9),
        mask_NV=masks(width, generator),
        vocabulary_B=torch.tensor([case.vocabulary for case in cases]),
        limits=limit_columns(supports, torch.device("cpu")),
        uses=uses_of(supports),
        temperature_B=torch.tensor([float32_temperature(case.temperature) for case in cases]),
        log_min_p_B=torch.from_numpy(limits[0].astype(np.float32)).log() * 4,
        top_k_B=torch.from_numpy((limits[1] * 9 * is_truncated).astype(np.int64)),
        largest_k=9 if is_truncated else 0,
        top_p_B=torch.from_numpy(limits[2] ** 0.1 if is_truncated else np.ones(n_rows)),
        any_top_p=is_truncated,
    )
    ours, theirs = torch.from_numpy(logits.copy()).to(DEVICE), torch.from_numpy(logits.copy())
    for z_RV, backend, its in (
        (ours, TritonBackend(), on_device(request)),
        (theirs, HostBackend(), request),
    ):
        stats = backend.stats(z_RV, its.row_B, has_deviation=True)
        backend.rescale(z_RV, stats, its)
    n_compared = 0
    for ours_V, theirs_V, logits_V, case in zip(ours.cpu(), theirs, logits, cases, strict=True):
        if is_certain(logits_V, case, request.mask_NV):
            n_compared += 1
            assert torch.allclose(ours_V, theirs_V, rtol=1e-6, atol=0, equal_nan=True), case
    assert n_compared >= 0.8 * n_rows


# --- the whole sampler

SCHEDULES = [
    Schedule(
        (
            Rule(PeriodicTrigger(3), -1.0, Support(min_p=0.05), burst=2, max_injections=5),
            Rule(BernoulliTrigger(0.4), math.inf, Support(top_p=0.9), defer=0),
        )
    ),
    Schedule((Rule(EntropyTrigger(above=1.2), -0.5, Support(epsilon=0.01), cooldown=1),)),
    Schedule((Rule(MarginTrigger(below=0.4), 2.0, Support(top_k=3), guard=("digits",)),)),
    Schedule(
        (
            Rule(TextTrigger("word"), -1.0, Support(top_n_sigma=1.5)),
            Rule(PositionTrigger((1, 4)), -2.0, vocabulary=Vocabulary(include=("english",))),
        )
    ),
    Schedule((Rule(PeriodicTrigger(2), -1.0, Support(min_p=0.01), is_distinct=True),)),
    Schedule(
        (Rule(PeriodicTrigger(4), 0.8, Support(xtc=0.1), defer=0),),
        base=(
            Piece(3.0, until=3, support=Support(min_p=0.05)),
            Piece(-2.0, support=Support(top_n_sigma=2.0), top_k=6, top_p=0.95),
        ),
    ),
]
N_POSITIONS = 6
WIDTH = 16


def sampler_over(backend, device, rows_per_request=1):
    """A sampler, and its slots of the requests, which have one of the schedules each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "backend_for", lambda _: backend)
        sampler = ScheduleSampler(TOKENS.table(), WIDTH, device, rows_per_request)
    slots = [
        sampler.open(str(number), schedule, 1000 + number, Siblings(5, 1))
        for number, schedule in enumerate(SCHEDULES)
    ]
    return sampler, np.array(slots)


def logits_of_requests():
    """Logits [request, position, V]; they do not depend on what was sampled before."""
    generator = np.random.default_rng(10)
    shape = len(SCHEDULES), N_POSITIONS, WIDTH
    logits = generator.normal(0, 2.5, shape)
    logits[generator.random(shape) < 0.1] = -np.inf
    return logits.astype(np.float32)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Makes it an error that the host waits for a GPU."""
    if IS_INTERPRETED:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pick(values: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
    return values[torch.from_numpy(chosen).to(values.device, non_blocking=True)]


def decode(sampler, slots, device):
    """Steps all requests side by side; rewritten logits and tokens [request, position, …]."""
    logits = logits_of_requests()
    rows = np.arange(len(slots))
    after, tokens = np.empty_like(logits), np.zeros(logits.shape[:2], dtype=np.int64)
    for position in range(N_POSITIONS):
        last = torch.from_numpy(tokens[:, position - 1]).to(device)
        batch = torch.from_numpy(logits[:, position].copy()).to(device)
        positions = np.full(len(slots), position)
        with without_waiting():
            sampler.step(batch, rows, slots, positions, partial(pick, last))
        after[:, position] = batch.cpu().numpy()
        tokens[:, position] = after[:, position].argmax(axis=1)
    return after, tokens


def assert_same_traces(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, trace in ours.items():
        assert trace.deferred == theirs[key].deferred
        for left, right in zip(trace.injections, theirs[key].injections, strict=True):
            inexact = {"logprob": 0.0, "entropy": 0.0}
            assert left._replace(**inexact) == right._replace(**inexact)
            assert left.logprob == pytest.approx(right.logprob, abs=1e-4)
            assert left.entropy == pytest.approx(right.entropy, abs=1e-4)


def test_a_sampler_over_the_kernels_does_what_one_on_the_host_does():
    keys = [str(number) for number in range(len(SCHEDULES))]
    ours, slots = sampler_over(TritonBackend(), DEVICE)
    after, tokens = decode(ours, slots, DEVICE)
    theirs, slots = sampler_over(HostBackend(), torch.device("cpu"))
    expected, expected_tokens = decode(theirs, slots, torch.device("cpu"))
    assert np.allclose(after, expected, atol=1e-5)
    assert (tokens == expected_tokens).all()
    traces = theirs.take(keys)
    assert all(trace.injections for trace in traces.values())
    assert_same_traces(ours.take(keys), traces)


def test_drafts_over_the_kernels_give_what_steps_one_by_one_on_the_host_give():
    keys = [str(number) for number in range(len(SCHEDULES))]
    n_requests = len(keys)
    host, slots = sampler_over(HostBackend(), torch.device("cpu"))
    expected, tokens = decode(host, slots, torch.device("cpu"))
    sampler, slots = sampler_over(TritonBackend(), DEVICE, rows_per_request=3)
    logits = logits_of_requests()
    # (first position, rows): the last row of the first step is of a draft that is not accepted.
    for begin, n_rows in ((0, 3), (2, 3), (5, 1)):
        place = [(i, j) for i in range(n_requests) for j in range(n_rows)]
        request, order = np.array(place).T
        position = begin + order
        is_wrong = (begin == 0) & (order == 2)
        last = np.where(is_wrong, 12, tokens[request, position - 1])
        z = logits[request, np.where(is_wrong, 5, position)]
        # And two rows of no interest: of no scheduled request, and of a prefill.
        columns = (
            np.append(slots[request], [0, slots[0]]),
            np.append(position, [3, -1]),
            np.append(order, [0, 0]),
            np.append(last, [0, 0]),
        )
        before = np.concatenate([z, z[:2]])
        batch = torch.from_numpy(before.copy()).to(DEVICE)
        on_device = [torch.from_numpy(column).to(DEVICE) for column in columns]
        with without_waiting():
            sampler.step_drafts(batch, slots, *on_device)
        after = batch.cpu().numpy()
        assert is_same_bits(after[-2:], before[-2:])
        is_kept = ~is_wrong
        kept = expected[request, position][is_kept]
        assert np.allclose(after[:-2][is_kept], kept, atol=1e-5)
    assert_same_traces(sampler.take(keys), host.take(keys))
