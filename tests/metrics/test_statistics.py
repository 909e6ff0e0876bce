import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reelwright.metrics.statistics import mean_interval, student_t_quantile, wilson_interval


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
    assert mean_interval([3.0]) == (-math.inf, math.inf)
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="at least one number"):
        mean_interval([])


def test_mean_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(1.0, 2.0, (2000, 6))
    covered = sum(low <= 1.0 <= high for low, high in map(mean_interval, draws))
    assert 0.935 < covered / 2000 < 0.965
