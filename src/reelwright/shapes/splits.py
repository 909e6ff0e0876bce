"""Scenes to train on, and the prompts that test each split; which combinations they have is `tables.py`'s."""

from __future__ import annotations

import functools

import numpy as np

from reelwright.shapes.captions import caption
from reelwright.shapes.named import named_prompt
from reelwright.shapes.sampling import choose, sample_change, sample_pair, sample_scene, scene_generator
from reelwright.shapes.tables import Combination, Split, combinations, training_split
from reelwright.shapes.world import MOTIONS, Prompt, Scene, Track, find_track

STATED_TOO = ("size", "speed", "region")
STILL_SHARE = 9  # at most one prompt in nine is still: a frozen video must not profit


def training_scenes(
    n: int, seed: int, track: str = "s1", duration_seconds: float = 2.0, coverage: float | None = None
) -> list[Scene]:
    """n scenes of training combinations. Scene i depends on (track, seed, i) and the coverage alone: more scenes only
    append."""
    return [training_scene(index, seed, track, duration_seconds, coverage) for index in range(n)]


def training_scene(
    index: int, seed: int, track: str = "s1", duration_seconds: float = 2.0, coverage: float | None = None
) -> Scene:
    """One scene of `training_scenes`. The (first) motion is drawn first, so that all are equally frequent."""
    found = find_track(track)
    if found.kind == "named":
        return named_prompt("training", index, seed, duration_seconds).scene
    rng = scene_generator("training", track, seed, index)
    by_motion = _training_by_motion(track, coverage)
    motion = choose(rng, tuple(by_motion))
    return draw_scene(choose(rng, by_motion[motion]), found, rng, duration_seconds)


def draw_scene(
    combination: Combination, track: Track, rng: np.random.Generator, duration_seconds: float = 2.0
) -> Scene:
    """A scene of a combination of the track's kind."""
    if track.kind == "two":
        first, second = combination
        return sample_pair(first, second, track, rng, duration_seconds)
    shape, colour, motion, *more = combination
    if track.kind == "change":
        return sample_change((shape, colour, motion), more[0], track, rng, duration_seconds)
    speed, size = more or (None, None)
    return sample_scene(shape, colour, motion, track, rng, duration_seconds, speed, size)


def prompts(
    split: Split,
    n: int,
    seed: int,
    track: str = "s1",
    stated_too: str | None = None,
    duration_seconds: float = 2.0,
    coverage: float | None = None,
) -> list[Prompt]:
    """n prompts of a split, each with a reference scene it is true of.

    Headline prompts state exactly the track's headline; `stated_too` adds one of size, speed or region. Every
    combination comes once before any comes twice, in an order drawn from the seed.
    """
    if stated_too is not None and stated_too not in STATED_TOO:
        raise ValueError(f"stated_too = {stated_too!r} is not one of {', '.join(STATED_TOO)}, or None")
    found = find_track(track)
    if found.kind == "named":
        return [named_prompt("prompt", i, seed, duration_seconds) for i in range(n)]
    states = found.headline if stated_too is None else (*found.headline, stated_too)
    drawn: list[Prompt] = []
    still = 0
    lap = 0
    while len(drawn) < n:
        order = scene_generator("prompt order", split, track, seed, lap)
        keyed = sorted(((order.random(), c) for c in combinations(split, track, coverage)), key=lambda item: item[0])
        lap += 1
        for _, combination in keyed:
            if len(drawn) == n:
                break
            motions = motions_of(combination)
            if stated_too == "speed" and "still" in motions:
                continue
            if set(motions) == {"still"}:
                if (still + 1) * STILL_SHARE > n:
                    continue
                still += 1
            rng = scene_generator("prompt", split, track, seed, len(drawn))
            scene = draw_scene(combination, found, rng, duration_seconds)
            drawn.append(caption(scene, rng, held_out=split == "paraphrases", states=states))
    return drawn


def motions_of(combination: Combination) -> tuple[str, ...]:
    """The motion of each object."""
    if isinstance(combination[0], tuple):
        return tuple(triple[2] for triple in combination)
    return (combination[2],)


@functools.cache
def _training_by_motion(track: str, coverage: float | None) -> dict[str, list[Combination]]:
    """The training combinations of each (first) motion, in the order of the world's list."""
    found = combinations(training_split(coverage), track, coverage)
    groups = {motion: [c for c in found if motions_of(c)[0] == motion] for motion in MOTIONS}
    return {motion: group for motion, group in groups.items() if group}
