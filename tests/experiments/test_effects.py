"""Is a difference larger than the noise: against scipy in float64, and on cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reelwright.experiments.effects import Pair, interval_over_seeds, paired_effect, sentence


def pairs_of(a: np.ndarray, b: np.ndarray, noise: float = 0.0) -> list[Pair]:
    """a, b: seeds x settings of the other factors."""
    return [Pair(seed, a[seed, k], b[seed, k], noise) for seed in range(a.shape[0]) for k in range(a.shape[1])]


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("settings", [1, 3])
@pytest.mark.parametrize("comparisons", [1, 4])
def test_interval_and_verdict_are_scipys_paired_t(seeds: int, settings: int, comparisons: int) -> None:
    rng = np.random.default_rng(seeds * 10 + settings)
    for shift in (0.0, 0.5, 5.0):
        a, b = rng.normal(size=(seeds, settings)), rng.normal(size=(seeds, settings)) + shift
        effect = paired_effect(pairs_of(a, b), comparisons)
        test = stats.ttest_rel(b.mean(axis=1), a.mean(axis=1))
        expected = test.confidence_interval(1 - 0.05 / comparisons)
        assert effect.low == pytest.approx(expected.low, rel=1e-9)
        assert effect.high == pytest.approx(expected.high, rel=1e-9)
        assert effect.verdict == ("larger" if test.pvalue < 0.05 / comparisons else "not larger")
        differences = (b - a).mean(axis=1)
        assert effect.standardised == pytest.approx(differences.mean() / differences.std(ddof=1), rel=1e-12)
        assert (effect.seeds, effect.pairs) == (seeds, seeds * settings)


def test_the_interval_holds_in_19_of_20_experiments() -> None:
    """Also where the other factor changes nothing, so that its runs come twice: pairs are no independent draws."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        a, b = (np.repeat(rng.normal(size=(4, 1)), 3, axis=1) for _ in range(2))
        effect = paired_effect(pairs_of(a, b))
        assert effect.low is not None and effect.high is not None
        held += effect.low <= 0 <= effect.high
    assert 0.93 < held / 2000 < 0.97
    naive = 0
    for _ in range(500):
        a, b = (np.repeat(rng.normal(size=(4, 1)), 3, axis=1) for _ in range(2))
        interval = stats.ttest_rel(b.ravel(), a.ravel()).confidence_interval(0.95)
        naive += interval.low <= 0 <= interval.high
    assert naive / 500 < 0.85, "what pairs taken as independent would give"


def test_equal_runs_are_called_equal() -> None:
    effect = paired_effect([Pair(0, 0.3, 0.3), Pair(1, 0.4, 0.4)])
    assert (effect.verdict, effect.mean, effect.low, effect.high) == ("equal", 0, 0, 0)
    text = sentence("attention", "b", "a", "held-out loss", effect, [])
    assert "no difference at all" in text and "2 pairs, 2 seeds" in text


def test_one_seed_says_nothing_of_the_noise() -> None:
    effect = paired_effect([Pair(0, 1.0, 0.2), Pair(0, 1.0, 0.3)])
    assert effect.verdict == "unknown" and effect.low is None and effect.mean == pytest.approx(-0.75)
    assert "add seeds" in sentence("rate", "b", "a", "held-out loss", effect, ["x"])


def test_the_same_number_at_every_seed_leaves_no_spread_to_judge_by() -> None:
    effect = paired_effect([Pair(0, 1.0, 0.5), Pair(1, 1.0, 0.5)])
    assert effect.verdict == "unknown" and "no spread" in sentence("rate", "b", "a", "x", effect, [])


def test_seeds_that_agree_by_chance_are_no_proof_for_a_coarse_score() -> None:
    """One video of 16 more at each of three seeds: no more than its own noise of 0.06 allows."""
    agreeing = [Pair(seed, 0.0, 1 / 16, 0.06) for seed in range(3)]
    effect = paired_effect(agreeing)
    assert effect.verdict == "not larger" and effect.high is not None
    reach = stats.norm.ppf(0.975) * 0.06 / math.sqrt(3)
    assert effect.high == pytest.approx(1 / 16 + reach, rel=1e-9)
    assert paired_effect([Pair(p.seed, p.reference, p.value, 0.01) for p in agreeing]).verdict == "larger"


def test_equal_scores_are_called_equal_with_what_their_noise_would_hide() -> None:
    effect = paired_effect([Pair(seed, 0.25, 0.25, 0.06) for seed in range(3)])
    reach = stats.norm.ppf(0.975) * 0.06 / math.sqrt(3)
    assert (effect.verdict, effect.mean) == ("equal", 0) and effect.high == pytest.approx(reach, rel=1e-9)
    text = sentence("attention", "b", "a", "joint accuracy", effect, [])
    assert "no difference at all" in text and f"would hide one of up to {reach:.2g}" in text
    assert paired_effect([Pair(0, 0.25, 0.25, 0.06), Pair(1, 0.25, 0.26, 0.06)]).verdict == "not larger"


@pytest.mark.parametrize("pairs", [[], [Pair(0, math.nan, 1.0)], [Pair(0, 1.0, math.inf)]])
def test_nothing_and_what_is_not_finite_is_refused(pairs: list[Pair]) -> None:
    with pytest.raises(ValueError, match="finite"):
        paired_effect(pairs)


def test_sentences_say_the_test_and_its_limits() -> None:
    found = paired_effect([Pair(seed, 1.0, 0.5 + 0.01 * seed) for seed in range(3)])
    text = sentence("rate", "high", "low", "held-out loss", found, ["width"])
    assert "larger than the noise" in text and "lower is better" in text and "\N{MINUS SIGN}0.49" in text
    assert "95 % interval" in text and "averaged over width" in text and "3 seeds are few" in text and "4.3" in text
    lost = paired_effect([Pair(seed, 1.0, 1.0 + (-1) ** seed) for seed in range(6)])
    text = sentence("rate", "high", "low", "joint accuracy", lost, [])
    assert "no difference larger than the noise was found" in text and "does not show that there is none" in text
    assert "few" not in text
    widened = paired_effect([Pair(seed, 1.0, 1.0 + (-1) ** seed) for seed in range(6)], comparisons=2)
    assert "97.5 % interval" in sentence("rate", "high", "low", "x", widened, [])


def test_interval_over_seeds() -> None:
    values = [0.2, 0.5, 0.3]
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    over = interval_over_seeds(values, [0.0] * 3)
    assert (over["low"], over["high"]) == pytest.approx(expected, rel=1e-9)
    assert interval_over_seeds([0.2], [0.1]) == {"mean": 0.2, "low": None, "high": None}
    assert interval_over_seeds([0.0, 0.0], [0.1, 0.1])["high"] == pytest.approx(stats.norm.ppf(0.975) * 0.1 / 2**0.5)


def test_no_effect_is_greater_than_the_measure_allows():
    pairs = [Pair(0, 0.1, 0.9), Pair(1, 0.9, 0.2)]
    free, within = paired_effect(pairs), paired_effect(pairs, bounds=(0.0, 1.0))
    assert free.low is not None and free.low < -1 and free.high is not None and free.high > 1
    assert (within.low, within.high) == (-1.0, 1.0) and within.verdict == free.verdict == "not larger"
    over = interval_over_seeds([0.1, 0.9], [0.0, 0.0], (0.0, math.inf))
    assert over["low"] == 0.0 and over["high"] == interval_over_seeds([0.1, 0.9], [0.0, 0.0])["high"]
