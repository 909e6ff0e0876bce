"""Clips that show the same although their bytes differ: found by the perceptual hashes of their pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from reelwright.data.looks import HASH_BITS, Looks

# How far a film and its copy are apart. Of 16 films at half the size and x264's crf 35: at most 6 bits, but for one at
# most 4 levels, changes by 0.65 to 0.99 times. Of 1225 pairs of different films the nearest are 26 bits apart. But
# drawings of one thing in other colours have the same hash, which knows luma's shape alone: hence the other two.
NEAR_BITS = 6  # of 64, by which the first, the middle and the last pictures may each differ
NEAR_LEVELS = 12.0  # of 255, by which the brightest parts may differ
NEAR_CHANGE = 2.0  # times by which the mean change from picture to picture may differ,
STILL_CHANGE = 0.1  # and by so many levels beside, as next to nothing is hard to compare

BANDS = NEAR_BITS + 1  # of so many parts of a hash at least one is equal in near-duplicates: 6 bits cannot spoil all 7
LARGE_GROUP = 16  # a group of more clips is divided by a third part
NEIGHBOURS = (
    32  # where it is larger still, of clips that nearly all look the same, each is compared with so many others
)
_PART = np.uint64(16)  # bits of a key set aside for a part, which has at most 10
_ONES = np.array([number.bit_count() for number in range(256)], dtype=np.uint8)
Words = NDArray[np.uint64]
Levels = NDArray[np.float64]
Numbers = NDArray[np.intp]


def near_duplicates(looks: Sequence[Looks]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, ascending: as many as link all near-duplicates, directly or through others.

    Not all pairs are compared. Clips are grouped by one part of their first and one of their last hash (and in large
    groups one of the middle one), for every choice of parts in turn, and compared within a group: near-duplicates share
    a group for at least one choice. So the work grows with the number of clips and not with its square.
    """
    known = [number for number, look in enumerate(looks) if all(look.hashes)]  # 0: too flat to be known by
    if len(known) < 2:
        return []
    hashes = np.array([looks[number].hashes for number in known], dtype=np.uint64)
    levels = np.array([(looks[number].brightest, looks[number].change) for number in known])
    near = _Links(len(known))
    everything = np.concatenate([hashes, levels.view(np.uint64)], axis=1)
    _, firsts, which = np.unique(everything, axis=0, return_index=True, return_inverse=True)
    near.add(firsts[which.ravel()], np.arange(len(known)))
    first, middle, last = (_parts(hashes[firsts, picture]) for picture in range(3))
    for one, other in product(range(BANDS), repeat=2):
        key = first[one] << _PART | last[other]
        _, which, sizes = np.unique(key, return_inverse=True, return_counts=True)
        crowded = sizes[which.ravel()] > LARGE_GROUP
        _link_groups(near, key[~crowded], firsts[~crowded], hashes, levels)
        for part in middle if crowded.any() else ():
            _link_groups(near, (key << _PART | part)[crowded], firsts[crowded], hashes, levels)
    return sorted((known[a], known[b]) for a, b in near.pairs)


class _Links:
    """Pairs that were linked, none of them between what was linked through others before."""

    def __init__(self, count: int) -> None:
        self.pairs: list[tuple[int, int]] = []
        self._group = np.arange(count)  # the least number each is linked to

    def apart(self, a: Numbers, b: Numbers) -> NDArray[np.bool_]:
        """Which of these pairs are not linked yet."""
        return self._group[a] != self._group[b]

    def add(self, a: Numbers, b: Numbers) -> None:
        new = self.apart(a, b)
        parent = self._group.tolist()
        for pair in zip(a[new].tolist(), b[new].tolist(), strict=True):
            low, high = sorted(_root(parent, number) for number in pair)
            if low != high:
                parent[high] = low
                self.pairs.append((min(pair), max(pair)))
        self._group = np.array(parent)
        while (self._group[self._group] != self._group).any():
            self._group = self._group[self._group]


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def groups(count: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `count` things the least one it is linked to, directly or through others."""
    parent = list(range(count))
    for a, b in links:
        low, high = sorted((_root(parent, a), _root(parent, b)))
        parent[high] = low
    return [_root(parent, thing) for thing in range(count)]


def _link_groups(near: _Links, key: Words, members: Numbers, hashes: Words, levels: Levels) -> None:
    """Link near members of equal keys."""
    order = np.argsort(key, kind="stable")
    key, members = key[order], members[order]
    for apart in range(1, 1 + NEIGHBOURS):
        together = key[:-apart] == key[apart:]
        if not together.any():
            break
        a, b = members[:-apart][together], members[apart:][together]
        new = near.apart(a, b)
        a, b = a[new], b[new]
        alike = _are_near(hashes[a], hashes[b], levels[a], levels[b])
        if alike.any():
            near.add(a[alike], b[alike])


def _are_near(a: Words, b: Words, a_levels: Levels, b_levels: Levels) -> NDArray[np.bool_]:
    """Row by row."""
    low, high = np.minimum(a_levels, b_levels), np.maximum(a_levels, b_levels)
    alike = (high[:, 0] - low[:, 0] <= NEAR_LEVELS) & (high[:, 1] <= NEAR_CHANGE * low[:, 1] + STILL_CHANGE)
    for picture in range(a.shape[1]):  # what one picture decides needs no other
        differing = np.ascontiguousarray(a[alike, picture] ^ b[alike, picture]).view(np.uint8).reshape(-1, 8)
        alike[alike] = _ONES[differing].sum(axis=1, dtype=np.uint8) <= NEAR_BITS
    return alike


def _parts(words: Words) -> list[Words]:
    """Each hash cut into BANDS parts; bits that lie side by side, which say similar things, go to different parts."""
    parts = []
    for band in range(BANDS):
        part = np.zeros(len(words), dtype=np.uint64)
        for bit in range(band, HASH_BITS, BANDS):
            part = part << np.uint64(1) | words >> np.uint64(bit) & np.uint64(1)
        parts.append(part)
    return parts
