"""How scores are measured, against counting by hand; how answers are spoilt."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negtemp_data.judging.sentences import split_sentences
from negtemp_data.lab.damage import DAMAGES, is_usable, whole_sentences
from negtemp_data.lab.measures import (
    auc,
    auc_interval,
    calibration_error,
    paired_interval,
    rank_correlation,
    suggest_threshold,
)

scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=20)


@given(good=scores, bad=scores)
def test_auc_counts_pairs_and_half_of_the_ties(good: list[float], bad: list[float]) -> None:
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    assert auc(np.array(good), np.array(bad)) == pytest.approx(wins / len(good) / len(bad))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    # Two normal distributions one deviation apart have an AUC of Φ(1/√2) = 0.7602.
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        good, bad = generator.normal(1, 1, 60), generator.normal(0, 1, 60)
        found = auc_interval(good, bad, is_paired=False)
        assert found.low <= found.value <= found.high
        hits += found.low <= 0.7602 <= found.high
    # 95 are expected; fewer than 82 or all 100 have a probability below 1e-2 together.
    assert 82 <= hits < 100


def test_pairs_are_won_by_the_higher_score() -> None:
    good, bad = np.array([3.0, 2.0, 1.0, 1.0]), np.array([1.0, 1.0, 2.0, 1.0])
    found = paired_interval(good, bad)
    assert found.value == pytest.approx(0.625)
    assert 0 <= found.low <= 0.625 <= found.high <= 1


def test_calibration_error_is_small_where_scores_are_log_odds_and_large_where_they_are_not() -> (
    None
):
    generator = np.random.default_rng(2)
    good, bad = generator.normal(1, 1, 4000), generator.normal(-1, 1, 4000)
    assert calibration_error(good, bad) < 0.03
    # Good at both ends and bad between: no logistic curve fits that.
    ends = np.concatenate([generator.normal(3, 0.5, 2000), generator.normal(-3, 0.5, 2000)])
    assert calibration_error(generator.permutation(ends), generator.normal(0, 0.5, 4000)) > 0.3


def test_correlation_of_ranks_does_not_see_scale_and_needs_variation() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [5, 4, 3, 1]) == pytest.approx(-1)
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_the_threshold_reaches_the_precision_on_prompts_that_it_was_not_chosen_on() -> None:
    generator = np.random.default_rng(3)
    good, bad = generator.normal(2, 1, 2000), generator.normal(0, 1, 6000)
    found = suggest_threshold(good, bad, 0.9)
    assert found is not None
    assert found.precision == pytest.approx(0.9, abs=0.03)
    assert found.recall == pytest.approx((good >= found.accept_at).mean(), abs=0.05)
    lower = suggest_threshold(good, bad, 0.8)
    assert lower is not None and lower.accept_at < found.accept_at
    assert suggest_threshold(bad[:2000] - 3, good, 0.9) is None


def test_no_threshold_is_suggested_that_a_few_good_samples_alone_reach() -> None:
    # The best 5 of 100 good samples lie above all bad ones, the others among them.
    bad = np.random.default_rng(4).normal(0, 1, 800)
    good = np.concatenate([np.full(10, 9.0), np.random.default_rng(5).normal(0, 1, 190)])
    assert suggest_threshold(good, bad, 0.9) is None
    good[:60] = 9.0
    found = suggest_threshold(good, bad, 0.9)
    assert found is not None and found.recall == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("n_bad", [2, 5, 9, 10, 30])
def test_the_calibration_error_of_few_samples_is_a_number(n_bad: int) -> None:
    good = np.linspace(0.0, 1.0, 12)
    assert 0 <= calibration_error(good, np.linspace(-1.0, 0.5, n_bad)) <= 1


TEXT = "The sea is wide. It is deep, too!\nFish live there. Who knows how many?"


@given(st.text(alphabet="ab .!?\n\"'", max_size=60))
def test_whole_sentences_are_the_beginning(text: str) -> None:
    assert text.startswith(whole_sentences(text))


def test_an_unfinished_sentence_is_left_out() -> None:
    assert whole_sentences(f"{TEXT} And so") == TEXT
    assert whole_sentences("no end") == "no end"
    assert is_usable(TEXT) and not is_usable("One. Two.")


def spoilt(name: str) -> list[str]:
    damage = next(damage for damage in DAMAGES if damage.name == name)
    answers = [TEXT, "Another answer. It is short. Yes.", "A third. Of three. Sentences."]
    return [damage.apply(answers, 0, random.Random(seed)) for seed in range(20)]


def test_each_damage_is_what_it_says() -> None:
    parts = sorted(part.strip() for part in split_sentences(TEXT))
    for name in ("swapped", "shuffled"):
        for text in spoilt(name):
            assert text != TEXT
            assert sorted(part.strip() for part in split_sentences(text)) == parts
    assert all(text != TEXT for text in spoilt("other"))
    assert len(set(spoilt("other"))) == 2
    for name, share in (("cut-tenth", 0.9), ("cut-half", 0.5)):
        for text in spoilt(name):
            assert TEXT.startswith(text)
            assert share - 0.15 < len(text) / len(TEXT) <= share
            assert text[-1].isalnum() and TEXT[len(text)].isalnum()
