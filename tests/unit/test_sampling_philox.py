"""Random numbers: Philox against its published answers, Gumbel against its distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import reference_noise as reference
from negtemp_data.sampling import gumbel, philox
from negtemp_data.sampling.philox import Stream

# Source: Random123, tests/kat_vectors, philox4x32 10: counter, key, output.
KNOWN_ANSWERS = [
    pytest.param(
        (0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), id="zeros"
    ),
    pytest.param(
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        id="ones",
    ),
    pytest.param(
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        id="pi",
    ),
]

KEYS_IN_RANGE = [answer for answer in KNOWN_ANSWERS if answer.id != "ones"]
"""Row seeds have 63 bits, so a key of ones can't occur."""

ids = st.integers(0, 2**18)
positions = st.integers(0, 2**20)
rules = st.integers(0, 64)
seeds = st.integers(0, 2**63 - 1) | st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1])


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_reference_philox_gives_the_published_words(counter, key, words):
    assert reference.philox_words(counter, key) == words


@pytest.mark.parametrize(("counter", "key", "words"), KEYS_IN_RANGE)
def test_philox_gives_the_first_published_word(counter, key, words):
    token_id, position, rule, stream = (torch.tensor(word) for word in counter)
    seed = torch.tensor(key[1] << 32 | key[0])
    assert int(philox(seed, token_id, position, rule, stream)) == words[0]


@settings(max_examples=200, derandomize=True)
@given(seed=seeds, token=ids, position=positions, rule=rules, stream=st.sampled_from(Stream))
def test_philox_equals_the_reference_for_any_counter(seed, token, position, rule, stream):
    word = philox(*(torch.tensor(x) for x in (seed, token, position, rule)), stream)
    assert word.dtype == torch.int64
    assert int(word) == reference.random_word(seed, token, position, rule, int(stream))


def test_philox_broadcasts_and_gives_each_element_its_own_word():
    generator = np.random.default_rng(1)
    seed = generator.integers(0, 2**63, size=(5, 1))
    token = np.arange(7)
    words = philox(
        torch.from_numpy(seed),
        torch.from_numpy(token),
        torch.tensor(3),
        torch.tensor(1),
        Stream.DRAW,
    )
    expected = [[reference.random_word(int(s), int(t), 3, 1, 0) for t in token] for s in seed[:, 0]]
    assert words.tolist() == expected


def test_streams_of_one_row_do_not_repeat_each_other():
    zero = torch.tensor(0)
    words = {int(philox(torch.tensor(9), zero, zero, zero, stream)) for stream in Stream}
    assert len(words) == len(Stream)


@pytest.mark.parametrize("word", [0, 1, 2**31, 2**32 - 129, 2**32 - 128, 2**32 - 2, 2**32 - 1])
def test_gumbel_is_finite_and_in_its_documented_range_for_extreme_words(word):
    number = gumbel(torch.tensor([word]))
    assert number.dtype == torch.float32
    assert -2.9 < float(number) < 22.9
    assert float(number) == pytest.approx(reference.gumbel_number(word), rel=1e-6, abs=1e-6)


def test_gumbel_grows_as_the_word_falls():
    words = torch.tensor([0, 1, 2**8, 2**16, 2**24, 2**31, 2**32 - 1])
    assert (gumbel(words).diff() < 0).all()


@settings(max_examples=200, derandomize=True)
@given(word=st.integers(0, 2**32 - 1))
def test_gumbel_equals_the_reference(word):
    # Near 0 the outer logarithm's argument is near 1, so the error is absolute.
    assert float(gumbel(torch.tensor(word))) == pytest.approx(
        reference.gumbel_number(word), rel=1e-6, abs=1e-6
    )


def test_draw_noise_is_gumbel_distributed():
    # 200,000 numbers; a right generator with random seeds would fail one time in a million.
    token = torch.arange(2000)
    position = torch.arange(100)[:, None]
    noise = gumbel(philox(torch.tensor(2**62 + 5), token, position, torch.tensor(0), Stream.DRAW))
    sample = noise.flatten().to(torch.float64).numpy()
    assert stats.kstest(sample, stats.gumbel_r.cdf).pvalue > 1e-6
    # The test has power: a shift by a fiftieth of the deviation is seen.
    shift = 0.02 * math.pi / math.sqrt(6)
    assert stats.kstest(sample + shift, stats.gumbel_r.cdf).pvalue < 1e-6
