"""From what was asked and what was read to the figures of a table.

Shares come as counts (k of n), so that whoever prints them can give their interval. Still prompts are counted apart
and never in the headline: a generator of frozen videos must not profit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reelwright.shapes.checker import MIN_TRAVEL, Reading
from reelwright.shapes.world import DIRECTIONS, FACTOR_VALUES, Prompt


@dataclass(frozen=True)
class Count:
    """k of n."""

    k: int
    n: int

    @property
    def share(self) -> float:
        """k / n; nan where nothing was counted."""
        return self.k / self.n if self.n else math.nan


@dataclass(frozen=True)
class Scores:
    """The figures of one row. Means are None where no video could contribute."""

    joint: Count  # every stated factor right; without still prompts
    still: Count  # the same for still prompts
    factors: dict[str, Count]  # each stated factor by itself; without still prompts
    binding_deficit: float | None  # product of the factors' shares minus the joint share
    abstained: Count  # prompts of which a stated factor could not be read; counted as wrong above
    valid: Count  # videos with one object on a plain background throughout
    reasons: dict[str, int]  # why something was not read, most frequent first
    direction_error_degrees: float | None  # mean over videos that move, of prompts that state a direction
    path_residual_pixels: float | None  # mean r.m.s. distance of the centroids from a straight line
    diversity: dict[str, float]  # of each unstated factor: entropy of what was read over that of the reference scenes


def score(results: Iterable[tuple[Prompt, Reading]]) -> Scores:
    """Scores of one row: videos made from prompts that all state the same factors, and what the checker read."""
    pairs = list(results)
    moving = [(prompt, reading) for prompt, reading in pairs if prompt.stated[0].motion != "still"]
    still = [(prompt, reading) for prompt, reading in pairs if prompt.stated[0].motion == "still"]
    factors = _factor_counts(moving)
    joint = _joint(moving)
    binding = math.prod(count.share for count in factors.values()) - joint.share if moving and factors else None
    residuals = [r.trajectory.path_residual * r.trajectory.pixels for _, r in pairs if r.trajectory]
    reasons = Counter(reading.abstained for _, reading in pairs if reading.abstained)
    unread = sum(any(name not in r.factors.stated() for name in p.stated[0].stated()) for p, r in pairs)
    return Scores(
        joint=joint,
        still=_joint(still),
        factors=factors,
        binding_deficit=binding,
        abstained=Count(unread, len(pairs)),
        valid=Count(sum(reading.valid for _, reading in pairs), len(pairs)),
        reasons=dict(reasons.most_common()),
        direction_error_degrees=_mean(_direction_errors(moving)),
        path_residual_pixels=_mean(residuals),
        diversity=_diversity(pairs),
    )


def is_right(prompt: Prompt, reading: Reading) -> bool:
    """Whether every factor that the prompt states was read in the video."""
    read = reading.factors.stated()
    return all(read.get(name) == value for name, value in prompt.stated[0].stated().items())


def _joint(pairs: Sequence[tuple[Prompt, Reading]]) -> Count:
    return Count(sum(is_right(prompt, reading) for prompt, reading in pairs), len(pairs))


def _factor_counts(pairs: Sequence[tuple[Prompt, Reading]]) -> dict[str, Count]:
    counts = {}
    for name in FACTOR_VALUES:
        asked = [(getattr(p.stated[0], name), getattr(r.factors, name)) for p, r in pairs]
        asked = [(wanted, read) for wanted, read in asked if wanted is not None]
        if asked:
            counts[name] = Count(sum(wanted == read for wanted, read in asked), len(asked))
    return counts


def _direction_errors(pairs: Sequence[tuple[Prompt, Reading]]) -> list[float]:
    """Degrees between the direction asked and the one taken, of the videos whose object goes anywhere."""
    errors = []
    for prompt, reading in pairs:
        wanted = DIRECTIONS.get(prompt.stated[0].motion or "")
        if wanted is None or reading.trajectory is None:
            continue
        x, y = reading.trajectory.velocity
        if math.hypot(x, y) * reading.trajectory.duration_seconds < MIN_TRAVEL:
            continue
        error = math.atan2(wanted[0] * y - wanted[1] * x, wanted[0] * x + wanted[1] * y)
        errors.append(abs(math.degrees(error)))
    return errors


def _diversity(pairs: Sequence[tuple[Prompt, Reading]]) -> dict[str, float]:
    """1 where a generator varies what it was not told as much as the renderer does, 0 where it never does."""
    diversity = {}
    for name in FACTOR_VALUES:
        unstated = [(p, r) for p, r in pairs if getattr(p.stated[0], name) is None]
        rendered = _entropy(getattr(p.scene.objects[0].factors, name) for p, _ in unstated)
        if rendered > 0:
            diversity[name] = _entropy(getattr(r.factors, name) for _, r in unstated) / rendered
    return diversity


def _entropy(values: Iterable[str | None]) -> float:
    """Shannon entropy in nats of the values that are known."""
    counts = Counter(value for value in values if value is not None)
    total = sum(counts.values())
    return -sum(k / total * math.log(k / total) for k in counts.values())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
