import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reelwright.metrics.statistics import (
    UNBOUNDED,
    clipped,
    mean_interval,
    possible_range,
    student_t_quantile,
    wilson_interval,
)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=200, deadline=None)
def test_wilson_is_scipys(k_n: tuple[int, int]) -> None:
    k, n = k_n
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson_interval(k, n, z=float(stats.norm.ppf(0.975))) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_wilson_at_the_ends() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for k, n in ((-1, 5), (6, 5), (1, 0)):
        with pytest.raises(ValueError, match="between 0 and n"):
            wilson_interval(k, n)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 7, 8, 30, 255, 1001, 20_000])
@pytest.mark.parametrize("confidence", [0.1, 0.5, 0.95, 0.999])
def test_t_quantiles_are_scipys(degrees: int, confidence: float) -> None:
    expected = stats.t.ppf((1 + confidence) / 2, degrees)
    assert student_t_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
@settings(max_examples=100, deadline=None)
def test_mean_interval_is_scipys(values: list[float]) -> None:
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if spread < 1e-9:
        return
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=spread)
    assert mean_interval(values) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_mean_interval_of_little() -> None:
    assert mean_interval([3.0]) == mean_interval([3.0], bounds=(0, math.inf)) == (-math.inf, math.inf)
    assert mean_interval([0.3], bounds=(-1, 1)) == (-1, 1)
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="at least one number"):
        mean_interval([])


def test_mean_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(1.0, 2.0, (2000, 6))
    covered = sum(low <= 1.0 <= high for low, high in map(mean_interval, draws))
    assert 0.935 < covered / 2000 < 0.965


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_no_interval_leaves_the_values_that_can_be(cosines: list[float]) -> None:
    low, high = mean_interval(cosines, bounds=(-1, 1))
    mean = float(np.mean(cosines))
    assert -1 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= 1
    free = mean_interval(cosines)
    assert (low, high) == (max(free[0], -1), min(free[1], 1)), "within them nothing changes"


@pytest.mark.full
def test_a_clipped_interval_covers_as_often_and_a_bootstrap_of_few_values_does_not() -> None:
    rng = np.random.default_rng(0)
    draws = rng.uniform(0, 1, (2000, 5))
    free = [mean_interval(values) for values in draws]
    within = [mean_interval(values, bounds=(0, 1)) for values in draws]
    assert sum(low < 0 or high > 1 for low, high in free) > 200
    covered = [low <= 0.5 <= high for low, high in within]
    assert covered == [low <= 0.5 <= high for low, high in free] and sum(covered) / 2000 > 0.91
    again = draws[np.arange(2000)[:, None, None], rng.integers(0, 5, (2000, 400, 5))].mean(axis=2)
    low, high = np.quantile(again, [0.025, 0.975], axis=1)
    assert ((low <= 0.5) & (high >= 0.5)).mean() < 0.87


def test_what_values_a_metric_can_have() -> None:
    assert possible_range("CLIP cosine") == (-1, 1) and possible_range("CLIPScore") == (0, 2.5)
    assert possible_range("CLIP cosine, matched minus shuffled") == (-2, 2)
    assert possible_range("frame consistency (SSIM of luma)") == (-1, 1)
    assert possible_range("held-out loss") == possible_range("PSNR to own clip (dB)") == (0, math.inf)
    assert possible_range("my own metric") == UNBOUNDED
    assert clipped((-3.0, 0.5), (-1, 1)) == (-1, 0.5) and clipped((0.2, 9.0), UNBOUNDED) == (0.2, 9.0)
