"""Which combinations of words a model may train on, and which each split asks for.

The hold-out is arithmetic on the positions of the words in the world's lists: a pair of words is held out where its
cell of a Latin square of order 5 (the sum of the positions modulo 5) holds one chosen symbol, which takes a fifth of
the pairs and spreads them evenly over rows and columns. Triples are held out by a linear form modulo 9, chosen so that
in every track each pair of a held-out triple still occurs in training. No random numbers are involved, so the tables
are the same everywhere and for ever; `TABLE_HASHES` makes sure of it.

- One object (s1, s1-hard): a combination is (shape, colour, motion).
- Two objects (s2): two such triples that differ in all three words, in the order they are said. A split's prompts have
  one object of that split beside one of training. `swaps` are held out by a symbol of their own: both triples are
  trained on, and so is the scene with the motions exchanged, but never this way round.
- A change (s3): (shape, colour, motion, change); the pairs of each word with the change have Latin squares as well.
- Graded: (shape, colour, motion, speed, size). What stays in place shows all five words of each in training, what
  travels only the two of S1; `interpolation` asks what travels for the word between them, `extrapolation` for those
  beyond, each of speed or of size, not of both.
- A coverage trains on a share of all triples of a track of one object, whatever the squares say; `uncovered` is the
  tenth that no coverage trains on.
"""

from __future__ import annotations

import functools
import hashlib
import json
from itertools import product
from typing import Any, Literal, get_args

from reelwright.shapes.world import (
    CHANGES,
    COLOURS,
    DIRECTIONS,
    GRADED_SIZES,
    GRADED_SPEEDS,
    MOTIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    Track,
    find_track,
    is_possible,
)

Split = Literal[
    "in_distribution", "held_out_pairs", "held_out_triples", "paraphrases", "swaps", "interpolation", "extrapolation",
    "covered", "uncovered", "named",
]  # fmt: skip
Triple = tuple[str, str, str]  # shape, colour, motion
Combination = tuple[Any, ...]  # of words, or of two triples: see above

_ONE: tuple[Split, ...] = ("in_distribution", "held_out_pairs", "held_out_triples", "paraphrases")
_SPLITS: dict[str, tuple[Split, ...]] = {
    "one": _ONE,
    "two": (*_ONE, "swaps"),
    "change": _ONE,
    "graded": ("in_distribution", "interpolation", "extrapolation"),
    "named": ("named",),
}
COVERED: tuple[Split, ...] = ("covered", "uncovered")
LARGEST_COVERAGE = 0.9

# Of every split of the track; s1's rows are the rows of s1-hard with the core shapes.
TABLE_HASHES = {
    "s1": "dc4c1f3b48a822e0f0339542e237a8e93740d73055fcf87cba8bf21346a2a269",
    "s1-hard": "f575d8842344b833eb21220720a88f78e3ed61171c9396dee747442f5de09e0a",
    "s2": "2461f9903e94537ed1c8f9cba9fc1b68aebc98e26b48eefd5f92658ca5dd864c",
    "s3": "1da848f93c0fad91ac2f6932fbd2e9e919c8813809d6ecfb6b5a5aad3c596928",
    "graded": "60ef172f6c6d4697532805dcff798d86af0c1b836b30c29f8e7727e7777e5187",
}

_SHAPE = {name: i for i, name in enumerate(SHAPES)}
_COLOUR = {name: i for i, name in enumerate(COLOURS)}
_MOTION = {name: i for i, name in enumerate(MOTIONS)}
_CHANGE = {name: i for i, name in enumerate(CHANGES)}
_ORDER, _HELD_OUT_SYMBOL = 5, 3
# A lattice modulo a prime: any few neighbours in its order hold every word about equally often.
_COVERAGE_STEPS, _COVERAGE_MODULUS = (59, 278, 421), 997


def splits_of(track: str, coverage: float | None = None) -> tuple[Split, ...]:
    """The splits that prompts of a track can be drawn from, the first the one that training clips are like."""
    return _SPLITS[find_track(track).kind] if coverage is None else COVERED


@functools.cache
def combinations(split: Split, track: str = "s1", coverage: float | None = None) -> tuple[Combination, ...]:
    """Every combination of a split, in the order of the world's lists. Paraphrases use the in-distribution ones.

    The three named clips are no combinations of a table: `named.py` has them.

    `coverage` is the share of all combinations that `covered` trains on. ValueError where the track has no such split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split = {split!r} is not known; use one of {', '.join(get_args(Split))}")
    if split not in splits_of(track, coverage):
        known = ", ".join(splits_of(track, coverage))
        raise ValueError(f"split = {split!r}: track {track!r} has {known}" + _of_coverage(coverage))
    found = find_track(track)
    if coverage is not None:
        return _covered(split, found, track, coverage)
    if found.kind == "named":
        return ()
    wanted: Split = "in_distribution" if split == "paraphrases" else split
    if found.kind == "two":
        return _pairs(wanted, found)
    triples = _possible(found)
    if found.kind == "graded":
        trained = [t for t in triples if split_of(t) == "in_distribution"]
        return tuple((*t, *grades) for t in trained for grades in _grades(t[2], wanted))
    if found.kind == "change":
        quadruples = ((*t, change) for t in triples for change in CHANGES if is_possible(t[0], t[2], change))
        return tuple(q for q in quadruples if split_of(q) == wanted)
    return tuple(t for t in triples if split_of(t) == wanted)


def training_split(coverage: float | None = None) -> Split:
    """The split that training clips are drawn from."""
    return "in_distribution" if coverage is None else "covered"


def held_out_pairs_of(combination: Combination) -> list[tuple[str, str]]:
    """The pairs of this triple, or triple with its change, that no training clip shows."""
    shape, colour, motion, *more = combination
    i, j, k = _SHAPE[shape], _COLOUR[colour], _MOTION[motion]
    pairs = [((shape, colour), i + j), ((shape, motion), i + k), ((colour, motion), j + k)]
    for change in more:
        c = _CHANGE[change]
        pairs += [((shape, change), i + c), ((colour, change), j + c), ((motion, change), k + c)]
    return [pair for pair, symbol in pairs if symbol % _ORDER == _HELD_OUT_SYMBOL]


def split_of(combination: Combination) -> Split | None:
    """The split a combination of one object belongs to; None for those with two or more held-out pairs, which no split
    uses."""
    novel = len(held_out_pairs_of(combination))
    if novel:
        return "held_out_pairs" if novel == 1 else None
    shape, colour, motion = combination[:3]
    held_out = (3 * _SHAPE[shape] + 2 * _COLOUR[colour] + 2 * _MOTION[motion]) % 9 == 5
    return "held_out_triples" if held_out else "in_distribution"


def swapped(pair: tuple[Triple, Triple]) -> tuple[Triple, Triple]:
    """The same two objects with their motions exchanged."""
    (shape, colour, motion), (other_shape, other_colour, other_motion) = pair
    return (shape, colour, other_motion), (other_shape, other_colour, motion)


def is_held_out_swap(pair: tuple[Triple, Triple]) -> bool:
    """Whether two objects are kept from having their motions this way round, whichever is said first.

    Its swap never is: exchanging the motions changes the symbol, and where it does not neither is held out.
    """
    a, b = sorted((_SHAPE[s] * len(COLOURS) + _COLOUR[c], _MOTION[m]) for s, c, m in pair)
    return (a[1] - b[1]) % _ORDER != 0 and (a[0] + 2 * b[0] + a[1] + 3 * b[1]) % _ORDER == _HELD_OUT_SYMBOL


def table_hash(track: str) -> str:
    """sha256 of a track's whole table, every split."""
    table = {split: combinations(split, track) for split in splits_of(track)}
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def _possible(track: Track) -> list[Triple]:
    return [t for t in product(track.shapes, COLOURS, MOTIONS) if is_possible(t[0], t[2])]


def _pairs(split: Split, track: Track) -> tuple[tuple[Triple, Triple], ...]:
    """Pairs of triples that differ in every word."""
    in_split = {t: split_of(t) for t in _possible(track)}
    trained = [t for t, of in in_split.items() if of == "in_distribution"]
    if split in ("in_distribution", "swaps"):
        asked = product(trained, trained)
    else:
        novel = [t for t, of in in_split.items() if of == split]
        asked = [*product(novel, trained), *product(trained, novel)]
    differing = (pair for pair in asked if all(a != b for a, b in zip(*pair, strict=True)))
    if split != "swaps":
        return tuple(pair for pair in differing if not is_held_out_swap(pair))
    return tuple(
        pair for pair in differing
        if is_held_out_swap(pair) and all(in_split.get(t) == "in_distribution" for t in swapped(pair))
    )  # fmt: skip


def _grades(motion: str, split: Split) -> list[tuple[str | None, str]]:
    """The (speed, size) a graded split has for a motion."""
    usual, usual_sizes = set(SPEEDS), set(SIZES)
    if split == "in_distribution":
        if motion in DIRECTIONS:
            return list(product(SPEEDS, SIZES))
        return list(product((None,) if motion == "still" else GRADED_SPEEDS, GRADED_SIZES))
    if motion not in DIRECTIONS:
        return []
    if split == "interpolation":
        return [*(("moderately", size) for size in SIZES), *((speed, "medium") for speed in SPEEDS)]
    beyond = [s for s in GRADED_SPEEDS if s not in usual and s != "moderately"]
    beyond_sizes = [s for s in GRADED_SIZES if s not in usual_sizes and s != "medium"]
    # the longest ways leave room for small objects only, the largest objects for slow ways only
    return [*((speed, "small") for speed in beyond), *(("slowly", size) for size in beyond_sizes)]


def _covered(split: Split, found: Track, track: str, coverage: float) -> tuple[Triple, ...]:
    if found.kind != "one":
        raise ValueError(f"coverage = {coverage}: is for tracks of one object, such as s1, not for {track!r}")
    if not 0 < coverage <= LARGEST_COVERAGE:
        raise ValueError(
            f"coverage = {coverage}: must be above 0 and at most {LARGEST_COVERAGE}, the rest is for tests"
        )
    triples = _possible(found)
    a, b, c = _COVERAGE_STEPS
    order = sorted(
        triples, key=lambda t: (a * _SHAPE[t[0]] + b * _COLOUR[t[1]] + c * _MOTION[t[2]]) % _COVERAGE_MODULUS
    )
    chosen = (
        order[: round(coverage * len(order))] if split == "covered" else order[round(LARGEST_COVERAGE * len(order)) :]
    )
    missing = {*found.shapes, *COLOURS, *MOTIONS} - {word for triple in chosen for word in triple}
    if split == "covered" and missing:
        raise ValueError(f"coverage = {coverage}: leaves out {', '.join(sorted(missing))}; take more, such as 0.1")
    members = set(chosen)
    return tuple(t for t in triples if t in members)


def _of_coverage(coverage: float | None) -> str:
    return "" if coverage is None else f" for a collection of coverage {coverage:g}"
