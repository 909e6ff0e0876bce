"""Is a difference larger than the noise? Paired differences, one a seed, with Student's t interval over the seeds.

All runs of one seed share their first weights, noise and order of samples, so they are no independent measurements:
differences are averaged over the settings of the other factors within a seed, and only then tested over seeds. (Pairs
taken as independent would let two names of one setting, which give the same runs twice, narrow every interval.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from reelwright.metrics.statistics import UNBOUNDED, clipped, mean_interval, student_t_quantile

FEW_SEEDS = 5
ROUNDING = 1e-9  # relative: what float64 makes of equal differences
Verdict = Literal["larger", "not larger", "equal", "unknown"]


@dataclass(frozen=True)
class Pair:
    """One measure of two runs that differ in one factor alone. `noise` is the standard error of their difference that
    the measure itself has (videos of finite number); 0 where both were measured on the same fixed draws."""

    seed: int
    reference: float
    value: float
    noise: float = 0.0


@dataclass(frozen=True)
class Effect:
    """Mean difference to the reference with its interval; None where the seeds are too few to tell."""

    mean: float
    low: float | None
    high: float | None
    standardised: float | None  # mean over the standard deviation between seeds (Cohen's d of paired data)
    seeds: int
    pairs: int
    confidence: float
    verdict: Verdict


def paired_effect(pairs: Sequence[Pair], comparisons: int = 1, bounds: tuple[float, float] = UNBOUNDED) -> Effect:
    """Mean of value - reference over seeds, with a t interval that holds for all `comparisons` at once at 95 %.

    The interval is mean -+ t s / sqrt(n) over the n seeds' mean differences (Student 1908), at confidence
    1 - 0.05 / comparisons (Bonferroni). It is never narrower than the normal interval that the measure's own noise
    gives these pairs: seeds that agree by chance, as coarse scores do, are no proof. `bounds` are those of the measure:
    no difference of two such values is greater than they are apart. ValueError without pairs or with one that is not
    finite.
    """
    widest = bounds[1] - bounds[0]
    if not pairs or not all(math.isfinite(x) for pair in pairs for x in (pair.reference, pair.value, pair.noise)):
        raise ValueError("an effect needs at least one pair, and finite values in all of them")
    by_seed: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_seed.setdefault(pair.seed, []).append(pair)
    differences = [float(np.mean([p.value - p.reference for p in group])) for group in by_seed.values()]
    n, mean = len(differences), float(np.mean(differences))
    confidence = 1 - 0.05 / comparisons
    floor = math.sqrt(sum(_noise_of_mean(group) ** 2 for group in by_seed.values())) / n
    if all(pair.value == pair.reference for pair in pairs):
        reach = min(widest, _reach(floor, confidence)) if n > 1 or floor else None
        return Effect(0.0, None if reach is None else -reach, reach, None, n, len(pairs), confidence, "equal")
    if n == 1:
        return Effect(mean, None, None, None, n, len(pairs), confidence, "unknown")
    spread = float(np.std(differences, ddof=1))
    if spread <= ROUNDING * abs(mean) and floor == 0:  # the same number at every seed: nothing to judge by
        return Effect(mean, None, None, None, n, len(pairs), confidence, "unknown")
    low, high = _interval(differences, floor, confidence, (-widest, widest))
    standardised = mean / spread if spread else None
    verdict: Verdict = "larger" if low > 0 or high < 0 else "not larger"
    return Effect(mean, low, high, standardised, n, len(pairs), confidence, verdict)


def _noise_of_mean(group: Sequence[Pair]) -> float:
    return math.sqrt(sum(pair.noise**2 for pair in group)) / len(group)


def _interval(
    values: Sequence[float], floor: float, confidence: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Student's t interval of the mean, no narrower than the normal one of standard error `floor`, within `bounds`."""
    low, high = mean_interval(values, confidence)
    reach, mean = _reach(floor, confidence), float(np.mean(values))
    return clipped((min(low, mean - reach), max(high, mean + reach)), bounds)


def _reach(standard_error: float, confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2) * standard_error


def sentence(factor: str, level: str, reference: str, measure: str, effect: Effect, others: Sequence[str]) -> str:
    """What may be said of one level against the reference, the test and its limits included."""
    better = " (lower is better)" if measure == "held-out loss" else ""
    between = f"The {measure}{better} at '{level}' minus '{reference}'"
    n = effect.seeds
    how = f"one paired difference a seed, {n} seed{'s' * (n > 1)}"
    if others:
        how += f", averaged over {' and '.join(others)}"
    if effect.verdict == "equal":
        text = (
            f"{factor}: no difference at all. Every run at '{level}' has exactly the {measure} of its pair at "
            f"'{reference}' ({effect.pairs} pair{'s' * (effect.pairs > 1)}, {n} seed{'s' * (n > 1)})."
        )
        if effect.high:
            text += f" The noise of the score itself, of so many videos, would hide one of up to {effect.high:.2g}."
        return text
    if effect.verdict == "unknown":
        why = (
            "With one seed nothing tells a difference from the noise between seeds: add seeds"
            if n == 1
            else f"The difference is the same number at all {n} seeds, which leaves no spread to judge it by"
        )
        return f"{factor}: cannot be said. {between} is {signed(effect.mean)}. {why}."
    assert effect.low is not None and effect.high is not None
    level_of = f"{effect.confidence:.1%}".replace(".0%", "%").replace("%", " %")
    interval = f"{level_of} interval {signed(effect.low)} to {signed(effect.high)}"
    size = (
        ""
        if effect.standardised is None or n < 3
        else f"; {abs(effect.standardised):.2g} standard deviations between seeds"
    )
    test = f"{how}; paired t{size}"
    if effect.verdict == "larger":
        text = f"{factor}: a difference larger than the noise. {between} is {signed(effect.mean)}, {interval} ({test})."
    else:
        widest = max(abs(effect.low), abs(effect.high))
        text = (
            f"{factor}: no difference larger than the noise was found. {between} is {signed(effect.mean)}, {interval} "
            f"({test}). This does not show that there is none: one of up to {widest:.2g} would fit these runs as well."
        )
    if n < FEW_SEEDS:
        text += f" {n} seeds are few: the interval is {_width(effect)} standard errors wide to each side."
    return text


def _width(effect: Effect) -> str:
    return f"{student_t_quantile(effect.confidence, effect.seeds - 1):.1f}"


def signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def interval_over_seeds(
    values: Sequence[float], noises: Sequence[float], bounds: tuple[float, float] = UNBOUNDED
) -> dict[str, float | None]:
    """Mean and 95 % t interval of one arm's runs, no narrower than their own noise, within `bounds`; no interval of
    one run."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None}
    low, high = _interval(values, math.hypot(*noises) / len(values), 0.95, bounds)
    return {"mean": mean, "low": low, "high": high}
