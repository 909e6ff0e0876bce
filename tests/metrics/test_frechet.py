import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from reelwright.metrics.frechet import frechet_curve, frechet_distance, frechet_gaussians


def features(seed: int, n: int, d: int, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) + shift


def by_square_root(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook formula with scipy's matrix square root."""
    first, second = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    root = np.asarray(sqrtm(first @ second))
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


@given(st.integers(1, 24), st.integers(0, 10_000), st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_equals_scipys_square_root(d: int, seed: int, shift: float) -> None:
    a, b = features(seed, 3 * d + 5, d), features(seed + 1, 4 * d + 7, d, shift)
    assert frechet_distance(a, b) == pytest.approx(by_square_root(a, b), rel=1e-9, abs=1e-9)


def test_gaussians_with_a_known_answer() -> None:
    generator = np.random.default_rng(0)
    # commuting covariances: the distance is that of the standard deviations along the common axes
    axes = np.linalg.qr(generator.normal(size=(6, 6))).Q
    first, second = generator.uniform(0.1, 4, 6), generator.uniform(0.1, 4, 6)
    shift = generator.normal(size=6)
    expected = shift @ shift + np.sum((np.sqrt(first) - np.sqrt(second)) ** 2)
    sigmas = [axes @ np.diag(values) @ axes.T for values in (first, second)]
    assert frechet_gaussians(np.zeros(6), sigmas[0], shift, sigmas[1]) == pytest.approx(expected, rel=1e-12)
    # two dimensions, not commuting: trace of the root = sqrt(trace(S1 S2) + 2 sqrt(det(S1 S2)))
    one, two = np.array([[2.0, 0.6], [0.6, 0.5]]), np.array([[0.7, -0.4], [-0.4, 1.5]])
    assert not np.allclose(one @ two, two @ one)
    root = np.sqrt(np.trace(one @ two) + 2 * np.sqrt(np.linalg.det(one @ two)))
    expected = np.trace(one) + np.trace(two) - 2 * root
    assert frechet_gaussians(np.zeros(2), one, np.zeros(2), two) == pytest.approx(expected, rel=1e-12)
    # a point and a Gaussian: the whole spread
    assert frechet_gaussians(np.zeros(2), np.zeros((2, 2)), np.ones(2), two) == pytest.approx(2 + np.trace(two))


def test_fewer_vectors_than_dimensions() -> None:
    a, b = features(1, 8, 400), features(2, 12, 400, 0.5)
    covariances = [np.cov(values, rowvar=False) for values in (a, b)]
    from_covariances = frechet_gaussians(a.mean(axis=0), covariances[0], b.mean(axis=0), covariances[1])
    assert frechet_distance(a, b) == pytest.approx(from_covariances, rel=1e-6)
    # two vectors each, by hand: lines of variance |u|^2 and |v|^2 whose product has the trace |u . v|
    u, v = a[0] - a[1], b[0] - b[1]
    shift = a[:2].mean(axis=0) - b[:2].mean(axis=0)
    expected = shift @ shift + u @ u / 2 + v @ v / 2 - abs(u @ v)
    assert frechet_distance(a[:2], b[:2]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(8, 400), (500, 16)])
def test_a_set_is_at_no_distance_from_itself(n: int, d: int) -> None:
    a = features(3, n, d)
    scale = float(np.var(a, axis=0).sum())
    assert 0 <= frechet_distance(a, a) < 1e-12 * scale
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-12 * scale
    assert frechet_distance(a, a + 2.0) == pytest.approx(4.0 * d, rel=1e-9)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_properties(seed: int) -> None:
    a, b = features(seed, 30, 5), features(seed + 1, 40, 5, 0.3)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5))).Q
    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * distance, rel=1e-10)
    assert distance > 0


def test_large_offsets_do_not_drown_the_spread() -> None:
    a, b = features(4, 200, 8), features(5, 200, 8)
    assert frechet_distance(a + 1e6, b + 1e6) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_curve_sizes_floor_and_bias() -> None:
    generator = np.random.default_rng(6)
    real, fake = generator.normal(size=(80, 10)), generator.normal(size=(64, 10)) + 0.2
    rows = frechet_curve(real, fake, seed=0)
    assert [(row.n, row.pairs) for row in rows] == [(64, 1), (32, 2), (16, 4)]
    assert rows[0].floor is None  # 80 real ones do not make two sets of 64
    assert rows[1].floor is not None and rows[2].floor is not None
    assert rows[0].distance < rows[1].distance < rows[2].distance  # fewer videos, larger estimate
    assert rows[1].floor < rows[2].floor and rows[1].floor < rows[1].distance
    assert rows == frechet_curve(real, fake, seed=0) != frechet_curve(real, fake, seed=1)


def test_curve_of_one_distribution_lies_at_the_floor() -> None:
    generator = np.random.default_rng(7)
    rows = frechet_curve(generator.normal(size=(800, 4)), generator.normal(size=(400, 4)), seed=0)
    for row in rows:
        assert row.floor is not None
        assert row.distance == pytest.approx(row.floor, abs=3 * 4 / row.n)
    assert all(one.distance < 0.2 for one in rows)


def test_floor_is_of_disjoint_halves() -> None:
    real = np.arange(12.0).reshape(6, 2)  # six distinct points on a line
    rows = frechet_curve(real, real, seed=3)
    assert [row.n for row in rows] == [6, 3]  # 6 / 4 would leave one vector
    assert rows[0].distance == pytest.approx(0, abs=1e-12) and rows[0].floor is None
    assert rows[1].floor is not None and rows[1].floor > 0.1  # halves that shared points could coincide


def test_mistakes_are_named() -> None:
    a = features(8, 10, 3)
    with pytest.raises(ValueError, match="at least two vectors"):
        frechet_distance(a[:1], a)
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        frechet_distance(a, a[:, :2])
    broken = a.copy()
    broken[4, 1] = np.nan
    with pytest.raises(ValueError, match="b: 1 feature vectors are not finite"):
        frechet_distance(a, broken)
    with pytest.raises(ValueError, match="smallest eigenvalue is -1"):
        frechet_gaussians(np.zeros(2), np.diag([1.0, -1.0]), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="symmetric"):
        frechet_gaussians(np.zeros(2), np.eye(2), np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="of one d"):
        frechet_gaussians(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
