"""Which combinations of shape, colour and motion a model may train on, and the prompts that test each split.

The hold-out is arithmetic on the positions of the words in the world's lists: a pair of words is held out where its
cell of a Latin square of order 5 (the sum of the positions modulo 5) holds one chosen symbol, which takes a fifth of
the pairs and spreads them evenly over rows and columns. Triples are held out by a linear form modulo 9, chosen so that
in every track each pair of a held-out triple still occurs in training. No random numbers are involved, so the table is
the same everywhere and for ever; `TABLE_HASH` makes sure of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from itertools import product
from typing import Literal, get_args

from reelwright.shapes.captions import caption
from reelwright.shapes.sampling import choose, sample_scene, scene_generator
from reelwright.shapes.world import COLOURS, HEADLINE, MOTIONS, SHAPES, Prompt, Scene, find_track, is_possible

Split = Literal["in_distribution", "held_out_pairs", "held_out_triples", "paraphrases"]
Combination = tuple[str, str, str]  # shape, colour, motion
STATED_TOO = ("size", "speed", "region")

TABLE_HASH = "f575d8842344b833eb21220720a88f78e3ed61171c9396dee747442f5de09e0a"

_SHAPE = {name: i for i, name in enumerate(SHAPES)}
_COLOUR = {name: i for i, name in enumerate(COLOURS)}
_MOTION = {name: i for i, name in enumerate(MOTIONS)}
STILL_SHARE = 9  # at most one prompt in nine is still: a frozen video must not profit


def held_out_pairs_of(combination: Combination) -> list[tuple[str, str]]:
    """The pairs of this combination that no training clip shows."""
    shape, colour, motion = combination
    i, j, k = _SHAPE[shape], _COLOUR[colour], _MOTION[motion]
    pairs = (((shape, colour), i + j), ((shape, motion), i + k), ((colour, motion), j + k))
    return [pair for pair, symbol in pairs if symbol % 5 == 3]


def split_of(combination: Combination) -> Split | None:
    """The split a combination belongs to; None for those with two or more held-out pairs, which no split uses."""
    novel = len(held_out_pairs_of(combination))
    if novel:
        return "held_out_pairs" if novel == 1 else None
    shape, colour, motion = combination
    held_out = (3 * _SHAPE[shape] + 2 * _COLOUR[colour] + 2 * _MOTION[motion]) % 9 == 5
    return "held_out_triples" if held_out else "in_distribution"


@functools.cache
def combinations(split: Split, track: str = "s1") -> tuple[Combination, ...]:
    """Every combination of a split, in the order of the world's lists. Paraphrases use the in-distribution ones."""
    if split not in get_args(Split):
        raise ValueError(f"split = {split!r} is not known; use one of {', '.join(get_args(Split))}")
    wanted = "in_distribution" if split == "paraphrases" else split
    triples = product(find_track(track).shapes, COLOURS, MOTIONS)
    return tuple(t for t in triples if is_possible(t[0], t[2]) and split_of(t) == wanted)


def table_hash() -> str:
    """sha256 of the whole table, every track and split."""
    table = {split: combinations(split, "s1-hard") for split in get_args(Split)}
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def training_scenes(n: int, seed: int, track: str = "s1", duration_seconds: float = 2.0) -> list[Scene]:
    """n scenes of training combinations. Scene i depends on (track, seed, i) alone: more scenes only append."""
    return [training_scene(index, seed, track, duration_seconds) for index in range(n)]


def training_scene(index: int, seed: int, track: str = "s1", duration_seconds: float = 2.0) -> Scene:
    """One scene of `training_scenes`. The motion is drawn first, so that all are equally frequent."""
    rng = scene_generator("training", track, seed, index)
    allowed = combinations("in_distribution", track)
    motion = choose(rng, MOTIONS)
    shape, colour, motion = choose(rng, [triple for triple in allowed if triple[2] == motion])
    return sample_scene(shape, colour, motion, find_track(track), rng, duration_seconds)


def prompts(
    split: Split,
    n: int,
    seed: int,
    track: str = "s1",
    stated_too: str | None = None,
    duration_seconds: float = 2.0,
) -> list[Prompt]:
    """n prompts of a split, each with a reference scene it is true of.

    Headline prompts state exactly shape, colour and motion; `stated_too` adds one of size, speed or region. Every
    combination comes once before any comes twice, in an order drawn from the seed.
    """
    if stated_too is not None and stated_too not in STATED_TOO:
        raise ValueError(f"stated_too = {stated_too!r} is not one of {', '.join(STATED_TOO)}, or None")
    states = HEADLINE if stated_too is None else (*HEADLINE, stated_too)
    drawn: list[Prompt] = []
    still = 0
    lap = 0
    while len(drawn) < n:
        order = scene_generator("prompt order", split, track, seed, lap)
        keyed = sorted((order.random(), triple) for triple in combinations(split, track))
        lap += 1
        for _, (shape, colour, motion) in keyed:
            if len(drawn) == n:
                break
            if motion == "still":
                if stated_too == "speed" or (still + 1) * STILL_SHARE > n:
                    continue
                still += 1
            rng = scene_generator("prompt", split, track, seed, len(drawn))
            scene = sample_scene(shape, colour, motion, find_track(track), rng, duration_seconds)
            drawn.append(caption(scene, rng, held_out=split == "paraphrases", states=states))
    return drawn
