"""From what was asked and what was read to the figures of a table.

Shares come as counts (k of n), so that whoever prints them can give their interval. Still prompts are counted apart
and never in the headline: a generator of frozen videos must not profit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations, product

from reelwright.shapes.checker import MIN_TRAVEL, Reading
from reelwright.shapes.checker_objects import SceneReading
from reelwright.shapes.world import DIRECTIONS, FACTOR_VALUES, Factors, Prompt


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

    joint: Count  # every stated factor of every object right; without still prompts
    still: Count  # the same for still prompts
    factors: dict[str, Count]  # each stated factor by itself, object by object; without still prompts
    binding_deficit: float | None  # product of the factors' shares, once an object, minus the joint share
    complete: Count | None  # of two objects: everything asked for is there, on whichever object
    abstained: Count  # prompts of which a stated factor could not be read; counted as wrong above
    valid: Count  # videos with the objects asked for on a plain background throughout
    reasons: dict[str, int]  # why something was not read, most frequent first
    direction_error_degrees: float | None  # mean over objects that move, of those whose direction is stated
    path_residual_pixels: float | None  # mean r.m.s. distance of the centroids from a straight line
    diversity: dict[str, float]  # of each unstated factor: entropy of what was read over that of the reference scenes

    @property
    def swapped(self) -> Count | None:
        """Of two objects: everything asked for is there, but on the wrong one. What binding alone gets wrong."""
        return None if self.complete is None else Count(self.complete.k - self.joint.k, self.complete.n)


@dataclass(frozen=True)
class Asked:
    """One object of one video: what was said of it, the reference scene's, and what was read of the video's."""

    stated: Factors
    shown: Factors
    reading: Reading


AnyReading = Reading | SceneReading
_NOT_THERE = Reading(Factors(), None, ("there is no second object",))


def match_objects(prompt: Prompt, reading: AnyReading) -> tuple[Asked, ...]:
    """Each stated object with what was read of it: the assignment under which most factors are right.

    Of equally good ones it is the one that keeps the order.
    """
    found = list(reading.objects) if isinstance(reading, SceneReading) else [reading]
    found += [_NOT_THERE] * (len(prompt.stated) - len(found))
    order = _best_order(prompt.stated, [one.factors for one in found])
    chosen = [found[place] for place in order]
    scene = prompt.scene.objects
    return tuple(Asked(s, o.factors, r) for s, o, r in zip(prompt.stated, scene, chosen, strict=True))


def _best_order(stated: Sequence[Factors], found: Sequence[Factors]) -> tuple[int, ...]:
    """For each stated object the place of the found one that is taken for it."""
    return max(
        permutations(range(len(found)), len(stated)),
        key=lambda order: sum(_agreement(s, found[place]) for s, place in zip(stated, order, strict=True)),
    )


def _agreement(stated: Factors, read: Factors) -> int:
    known = read.stated()
    return sum(known.get(name) == value for name, value in stated.stated().items())


def score(results: Iterable[tuple[Prompt, AnyReading]]) -> Scores:
    """Scores of one row: videos made from prompts that all state the same factors, and what the checker read."""
    pairs = list(results)
    matched = [match_objects(prompt, reading) for prompt, reading in pairs]
    moving = [objects for objects in matched if not _is_still(objects)]
    still = [objects for objects in matched if _is_still(objects)]
    every = [one for objects in matched for one in objects]
    factors = _factor_counts([one for objects in moving for one in objects])
    joint = _joint(moving)
    objects_each = max((len(objects) for objects in matched), default=1)
    binding = None
    if moving and factors:
        binding = math.prod(count.share for count in factors.values()) ** objects_each - joint.share
    residuals = [one.reading.trajectory for one in every if one.reading.trajectory]
    reasons = Counter(reading.abstained for _, reading in pairs if reading.abstained)
    unread = sum(any(_unread_factors(one) for one in objects) for objects in matched)
    return Scores(
        joint=joint,
        still=_joint(still),
        factors=factors,
        binding_deficit=binding,
        complete=Count(sum(map(_is_complete, moving)), len(moving)) if objects_each > 1 else None,
        abstained=Count(unread, len(pairs)),
        valid=Count(sum(reading.valid for _, reading in pairs), len(pairs)),
        reasons=dict(reasons.most_common()),
        direction_error_degrees=_mean(_direction_errors([one for objects in moving for one in objects])),
        path_residual_pixels=_mean([path.path_residual * path.pixels for path in residuals]),
        diversity=_diversity(every),
    )


def is_right(prompt: Prompt, reading: AnyReading) -> bool:
    """Whether every factor that the prompt states was read in the video."""
    return wrong_factors(prompt, reading) == 0


def wrong_factors(prompt: Prompt, reading: AnyReading) -> int:
    """How many of the stated factors, of all objects, were not read as stated."""
    return sum(_wrong(one) for one in match_objects(prompt, reading))


def _wrong(one: Asked) -> int:
    return len(one.stated.stated()) - _agreement(one.stated, one.reading.factors)


def _unread_factors(one: Asked) -> set[str]:
    return one.stated.stated().keys() - one.reading.factors.stated().keys()


def _is_still(objects: Sequence[Asked]) -> bool:
    return all(one.stated.motion == "still" for one in objects)


def _is_complete(objects: Sequence[Asked]) -> bool:
    """Whether the values asked of each factor are those shown, whichever object has them."""
    names = {name for one in objects for name in one.stated.stated()}
    return all(
        Counter(getattr(one.stated, name) for one in objects)
        == Counter(getattr(one.reading.factors, name) for one in objects)
        for name in names
    )


def _joint(videos: Sequence[Sequence[Asked]]) -> Count:
    return Count(sum(not any(map(_wrong, objects)) for objects in videos), len(videos))


def _factor_counts(objects: Sequence[Asked]) -> dict[str, Count]:
    counts = {}
    for name in FACTOR_VALUES:
        asked = [(getattr(one.stated, name), getattr(one.reading.factors, name)) for one in objects]
        asked = [(wanted, read) for wanted, read in asked if wanted is not None]
        if asked:
            counts[name] = Count(sum(wanted == read for wanted, read in asked), len(asked))
    return counts


def confusions(results: Iterable[tuple[Prompt, AnyReading]]) -> dict[str, dict[tuple[str, str | None], int]]:
    """How often each stated value of each factor was read as which, in the order of the world's lists; None where it
    could not be read."""
    counts = Counter(
        (name, wanted, getattr(one.reading.factors, name))
        for prompt, reading in results
        for one in match_objects(prompt, reading)
        for name, wanted in one.stated.stated().items()
    )
    found = {
        name: {
            (wanted, read): counts[name, wanted, read]
            for wanted, read in product(values, (*values, None))
            if (name, wanted, read) in counts
        }
        for name, values in FACTOR_VALUES.items()
    }
    return {name: of_factor for name, of_factor in found.items() if of_factor}


def _direction_errors(objects: Sequence[Asked]) -> list[float]:
    """Degrees between the direction asked and the one taken, of the objects that go anywhere."""
    errors = []
    for one in objects:
        wanted, path = DIRECTIONS.get(one.stated.motion or ""), one.reading.trajectory
        if wanted is None or path is None:
            continue
        x, y = path.velocity
        if math.hypot(x, y) * path.duration_seconds < MIN_TRAVEL:
            continue
        error = math.atan2(wanted[0] * y - wanted[1] * x, wanted[0] * x + wanted[1] * y)
        errors.append(abs(math.degrees(error)))
    return errors


def _diversity(objects: Sequence[Asked]) -> dict[str, float]:
    """1 where a generator varies what it was not told as much as the renderer does, 0 where it never does."""
    diversity = {}
    for name in FACTOR_VALUES:
        unstated = [one for one in objects if getattr(one.stated, name) is None]
        rendered = _entropy(getattr(one.shown, name) for one in unstated)
        if rendered > 0:
            diversity[name] = _entropy(getattr(one.reading.factors, name) for one in unstated) / rendered
    return diversity


def _entropy(values: Iterable[str | None]) -> float:
    """Shannon entropy in nats of the values that are known."""
    counts = Counter(value for value in values if value is not None)
    total = sum(counts.values())
    return -sum(k / total * math.log(k / total) for k in counts.values())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
