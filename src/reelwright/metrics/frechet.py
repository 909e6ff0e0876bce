"""The Frechet distance between two sets of feature vectors, with what a reader needs to judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reelwright.randomness import keyed_generator

SHARES = (1, 2, 4)  # the curve is taken at N, N / 2 and N / 4
NEGATIVE_SHARE = 1e-6  # of a covariance's largest eigenvalue: below it a negative one is rounding


@dataclass(frozen=True)
class FrechetRow:
    """The distance at one number of videos, and what two sets of real videos of that number have between them.

    The estimate falls as the number of videos grows, whatever they show: only rows of equal `n` compare, and `floor`
    says what of the distance is left when nothing is wrong.
    """

    n: int  # feature vectors on each side
    pairs: int  # disjoint subsets of each side, over which `distance` is the mean
    distance: float  # fake against real
    floor: float | None  # real against real, disjoint; None where there are fewer than 2 n real ones


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to feature vectors `n d` and `m d`; float64 throughout.

    |mean_a - mean_b|^2 + trace(S_a + S_b - 2 (S_a S_b)^(1/2)) with covariances over n - 1 (Dowson & Landau 1982;
    of image features: Heusel et al. 2017, eq. 6; of video features: Unterthiner et al. 2018, eq. 2). Fewer vectors than
    dimensions are allowed. ValueError for fewer than two vectors, unequal widths or values that are not finite.
    """
    first, second = _checked(a, "a"), _checked(b, "b")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features of {first.shape[1]} and {second.shape[1]} dimensions: both need the same network")
    return _distance(first.mean(axis=0), _factor(first), second.mean(axis=0), _factor(second))


def frechet_gaussians(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """The same of two Gaussians given by mean `d` and covariance `d d`. ValueError where one is no covariance."""
    means = [np.asarray(mu, dtype=np.float64) for mu in (mu1, mu2)]
    sigmas = [np.asarray(sigma, dtype=np.float64) for sigma in (sigma1, sigma2)]
    width = means[0].size
    if any(mu.shape != (width,) for mu in means) or any(sigma.shape != (width, width) for sigma in sigmas):
        shapes = [values.shape for values in (*means, *sigmas)]
        raise ValueError(f"means {shapes[:2]} and covariances {shapes[2:]}: they must be (d,) and (d, d) of one d")
    factors = [_factor_of_covariance(sigma, name) for sigma, name in zip(sigmas, ("sigma1", "sigma2"), strict=True)]
    return _distance(means[0], factors[0], means[1], factors[1])


def frechet_curve(real: np.ndarray, fake: np.ndarray, seed: int) -> list[FrechetRow]:
    """Distances at N, N / 2 and N / 4 vectors a side, N that of the smaller set, and the floor beside each.

    Subsets are disjoint parts of a random order of each set, keyed by `seed`; sizes below two are left out. ValueError
    as in `frechet_distance`.
    """
    shuffled_real = _shuffled(_checked(real, "real"), seed, "real")
    shuffled_fake = _shuffled(_checked(fake, "fake"), seed, "fake")
    largest = min(len(shuffled_real), len(shuffled_fake))
    rows = []
    for share in SHARES:
        n = largest // share
        if n < 2:
            continue
        parts_real = _parts(shuffled_real, n)
        distances = [
            frechet_distance(one, other)
            for one, other in zip(parts_real[:share], _parts(shuffled_fake, n)[:share], strict=True)
        ]
        halves = list(zip(parts_real[::2], parts_real[1::2], strict=False))[:share]
        floors = [frechet_distance(one, other) for one, other in halves]
        rows.append(FrechetRow(n, share, float(np.mean(distances)), float(np.mean(floors)) if floors else None))
    return rows


def _distance(mean1: np.ndarray, factor1: np.ndarray, mean2: np.ndarray, factor2: np.ndarray) -> float:
    """From means `d` and factors `k d` with factor^T factor = covariance.

    The eigenvalues of the symmetrised product S1^(1/2) S2 S1^(1/2) are the squares of the singular values of
    factor1 factor2^T, so the trace of (S1 S2)^(1/2) is their sum. No root of a rounded eigenvalue is taken, which
    would turn an error of 1e-16 into one of 1e-8, and nothing can become complex.
    """
    shift = mean1 - mean2
    spread = float(np.sum(factor1**2) + np.sum(factor2**2))
    overlap = float(np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum())
    return max(0.0, float(shift @ shift) + spread - 2 * overlap)


def _factor(features: np.ndarray) -> np.ndarray:
    """`min(n, d) d` whose product with itself is the covariance of `n d`."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def _factor_of_covariance(sigma: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(sigma).all() or not np.allclose(sigma, sigma.T, rtol=1e-8, atol=1e-12 * np.abs(sigma).max()):
        raise ValueError(f"{name}: a covariance is finite and symmetric")
    values, vectors = np.linalg.eigh(sigma)
    if values[0] < -NEGATIVE_SHARE * max(values[-1], 0.0):
        raise ValueError(f"{name}: its smallest eigenvalue is {values[0]:g}; a covariance has none below 0")
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def _checked(features: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
        raise ValueError(f"{name}: features of shape {array.shape}; they must be 'n d' with at least two vectors")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {int((~np.isfinite(array)).any(axis=1).sum())} feature vectors are not finite")
    return array


def _shuffled(features: np.ndarray, seed: int, side: str) -> np.ndarray:
    return features[torch.randperm(len(features), generator=keyed_generator("frechet", seed, side)).numpy()]


def _parts(features: np.ndarray, n: int) -> Sequence[np.ndarray]:
    """All disjoint runs of n vectors."""
    return [features[start : start + n] for start in range(0, len(features) - n + 1, n)]
