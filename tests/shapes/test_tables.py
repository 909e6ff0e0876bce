from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from reelwright.shapes.tables import (
    COVERED,
    TABLE_HASHES,
    combinations,
    held_out_pairs_of,
    is_held_out_swap,
    split_of,
    splits_of,
    swapped,
    table_hash,
)
from reelwright.shapes.world import CHANGES, COLOURS, DIRECTIONS, GRADED_SIZES, GRADED_SPEEDS, MOTIONS, TRACKS

ONE_OBJECT = ("s1", "s1-hard")


def pairs(combination):
    """Every two words of a combination, with their places."""
    words = list(enumerate(combination))
    return {(a, b) for a in words for b in words if a < b}


@pytest.mark.parametrize("track", TABLE_HASHES)
def test_the_table_is_the_published_one(track):
    assert table_hash(track) == TABLE_HASHES[track]


def test_every_track_has_a_table_but_the_named_clips():
    assert set(TABLE_HASHES) == set(TRACKS) - {"d2"}
    assert splits_of("d2") == ("named",) and combinations("named", "d2") == ()


@pytest.mark.parametrize("track", [*ONE_OBJECT, "s3"])
def test_splits_are_disjoint_and_hold_out_what_they_say(track):
    seen = set(combinations("in_distribution", track))
    seen_pairs = set().union(*(pairs(t) for t in seen))
    novel_pairs, novel_triples = combinations("held_out_pairs", track), combinations("held_out_triples", track)
    assert not seen & set(novel_pairs) and not seen & set(novel_triples)
    for combination in novel_pairs:
        assert len(pairs(combination) - seen_pairs) == 1 == len(held_out_pairs_of(combination)), combination
    seen_triples = {c[:3] for c in seen}
    for combination in novel_triples:
        assert pairs(combination) <= seen_pairs and combination[:3] not in seen_triples
    assert combinations("paraphrases", track) == combinations("in_distribution", track)


@pytest.mark.parametrize("track", ONE_OBJECT)
def test_about_a_fifth_of_each_kind_of_pair_is_held_out_evenly(track):
    shapes = TRACKS[track].shapes
    seen_pairs = set().union(*(pairs(t) for t in combinations("in_distribution", track)))
    totals = {(0, 1): len(shapes) * len(COLOURS), (0, 2): len(shapes) * len(MOTIONS) - 1,
              (1, 2): len(COLOURS) * len(MOTIONS)}  # fmt: skip
    for kind, total in totals.items():
        held_out = total - sum((a[0], b[0]) == kind for a, b in seen_pairs)
        assert 0.17 <= held_out / total <= 0.23, (kind, held_out, total)
    for words, position in ((shapes, 0), (tuple(COLOURS), 1), (MOTIONS, 2)):
        assert {t[position] for t in combinations("in_distribution", track)} == set(words)


def test_a_change_is_trained_with_every_other_word_but_a_fifth():
    seen = combinations("in_distribution", "s3")
    with_change = {(place, c[place], c[3]) for c in seen for place in range(3)}
    assert {c[3] for c in seen} == set(CHANGES)
    for place, words in ((0, TRACKS["s3"].shapes), (1, tuple(COLOURS))):
        held_out = [pair for pair in product(words, CHANGES) if (place, *pair) not in with_change]
        assert 0.15 <= len(held_out) / (len(words) * len(CHANGES)) <= 0.25
    assert not any(c[3] == "bounces" and c[2] not in DIRECTIONS for c in seen)


def test_two_objects_differ_in_every_word_and_each_is_of_its_split():
    trained = set(combinations("in_distribution", "s1"))
    for split in splits_of("s2"):
        for pair in combinations(split, "s2")[::7]:
            assert all(a != b for a, b in zip(*pair, strict=True))
            kinds = Counter(split_of(triple) for triple in pair)
            if split in ("held_out_pairs", "held_out_triples"):
                assert kinds == {split: 1, "in_distribution": 1}
            else:
                assert kinds == {"in_distribution": 2}
            assert is_held_out_swap(pair) == (split == "swaps")
    for pair in combinations("in_distribution", "s2")[::50]:
        assert set(pair) <= trained and pair[::-1] in combinations("in_distribution", "s2"), "either is said first"


def test_a_held_out_swap_is_trained_the_other_way_round():
    trained = set(combinations("in_distribution", "s2"))
    swaps = combinations("swaps", "s2")
    assert len(swaps) > 200
    for pair in swaps:
        assert pair not in trained and swapped(pair) in trained and swapped(swapped(pair)) == pair


def test_graded_words_are_held_out_of_what_travels_alone():
    seen = combinations("in_distribution", "graded")
    travelling = [c for c in seen if c[2] in DIRECTIONS]
    in_place = [c for c in seen if c[2] not in DIRECTIONS]
    assert {c[3] for c in travelling} == {"slowly", "quickly"} and {c[4] for c in travelling} == {"small", "large"}
    assert {c[3] for c in in_place} - {None} == set(GRADED_SPEEDS) and {c[4] for c in in_place} == set(GRADED_SIZES)
    for split, new in (
        ("interpolation", {"moderately", "medium"}),
        ("extrapolation", {"very slowly", "very quickly", "very small", "very large"}),
    ):
        asked = combinations(split, "graded")
        assert all(c[2] in DIRECTIONS and len({c[3], c[4]} & new) == 1 for c in asked)
        assert {word for c in asked for word in c[3:]} >= new


@pytest.mark.parametrize("track", ONE_OBJECT)
def test_coverages_grow_and_leave_the_same_tenth_out(track):
    shares = (0.1, 0.25, 0.5, 0.75, 0.9)
    covered = [set(combinations("covered", track, share)) for share in shares]
    left_out = {share: set(combinations("uncovered", track, share)) for share in shares}
    assert len({frozenset(triples) for triples in left_out.values()}) == 1
    everything = covered[-1] | left_out[0.9]
    for share, smaller, larger in zip(shares, covered, [*covered[1:], everything], strict=True):
        assert smaller < larger and len(smaller) / len(everything) == pytest.approx(share, abs=0.01)
        for place, words in enumerate((TRACKS[track].shapes, tuple(COLOURS), MOTIONS)):
            counts = Counter(triple[place] for triple in smaller)
            assert set(counts) == set(words), "every word is taught"
            if place < 2:
                assert max(counts.values()) <= 2 * min(counts.values())
    assert splits_of(track, 0.25) == COVERED


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"track 's1' has in_distribution, .*paraphrases$"):
        combinations("swaps", "s1")
    with pytest.raises(ValueError, match=r"'held_out_pairs'.*covered, uncovered for a collection of coverage 0.5"):
        combinations("held_out_pairs", "s1", 0.5)
    with pytest.raises(ValueError, match="at most 0.9"):
        combinations("covered", "s1", 0.95)
    with pytest.raises(ValueError, match="leaves out .*blue"):
        combinations("covered", "s1", 0.01)
    with pytest.raises(ValueError, match="tracks of one object"):
        combinations("covered", "s2", 0.5)
