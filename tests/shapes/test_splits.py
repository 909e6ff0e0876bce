from __future__ import annotations

from collections import Counter

import pytest

from reelwright.shapes.splits import (
    TABLE_HASH,
    combinations,
    held_out_pairs_of,
    prompts,
    table_hash,
    training_scenes,
)
from reelwright.shapes.world import COLOURS, MOTIONS, TRACKS

SPLITS = ("in_distribution", "held_out_pairs", "held_out_triples", "paraphrases")


def pairs(triple):
    return {(0, triple[0], triple[1]), (1, triple[0], triple[2]), (2, triple[1], triple[2])}


def test_the_table_is_the_published_one():
    assert table_hash() == TABLE_HASH


@pytest.mark.parametrize("track", TRACKS)
def test_splits_are_disjoint_and_hold_out_what_they_say(track):
    seen = set(combinations("in_distribution", track))
    seen_pairs = set().union(*(pairs(t) for t in seen))
    novel_pairs, novel_triples = combinations("held_out_pairs", track), combinations("held_out_triples", track)
    assert not seen & set(novel_pairs) and not seen & set(novel_triples)
    for triple in novel_pairs:
        assert len(pairs(triple) - seen_pairs) == 1 == len(held_out_pairs_of(triple))
    for triple in novel_triples:
        assert pairs(triple) <= seen_pairs
    assert combinations("paraphrases", track) == combinations("in_distribution", track)


@pytest.mark.parametrize("track", TRACKS)
def test_about_a_fifth_of_each_kind_of_pair_is_held_out_evenly(track):
    shapes = TRACKS[track].shapes
    seen_pairs = set().union(*(pairs(t) for t in combinations("in_distribution", track)))
    totals = {0: len(shapes) * len(COLOURS), 1: len(shapes) * len(MOTIONS) - 1, 2: len(COLOURS) * len(MOTIONS)}
    for kind, total in totals.items():
        held_out = total - sum(pair[0] == kind for pair in seen_pairs)
        assert 0.17 <= held_out / total <= 0.23, (kind, held_out, total)
    for words, position in ((shapes, 0), (tuple(COLOURS), 1), (MOTIONS, 2)):
        assert {t[position] for t in combinations("in_distribution", track)} == set(words)


@pytest.mark.parametrize("track", TRACKS)
def test_training_scenes_show_training_combinations_only(track):
    allowed = set(combinations("in_distribution", track))
    shown = Counter()
    for scene in training_scenes(1500, seed=0, track=track):
        factors = scene.objects[0].factors
        shown[(factors.shape, factors.colour, factors.motion)] += 1
    assert set(shown) <= allowed
    assert len(shown) > 0.95 * len(allowed)


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_state_the_headline_and_come_from_their_split(split):
    asked = prompts(split, 100, seed=5)
    assert asked == prompts(split, 100, seed=5) != prompts(split, 100, seed=6)
    triples = []
    for prompt in asked:
        assert set(prompt.stated[0].stated()) == {"shape", "colour", "motion"}
        factors = prompt.scene.objects[0].factors
        assert prompt.stated[0] == factors.only(("shape", "colour", "motion"))
        triples.append((factors.shape, factors.colour, factors.motion))
    assert set(triples) <= set(combinations(split))
    assert sum(triple[2] == "still" for triple in triples) * 9 <= len(triples)
    counts = Counter(triple for triple in triples if triple[2] != "still")
    assert max(counts.values()) - min(counts.values()) <= 1, "every combination comes once before any comes twice"


def test_rows_of_their_own_state_one_factor_more():
    for name in ("size", "speed", "region"):
        for prompt in prompts("in_distribution", 30, seed=0, stated_too=name):
            assert set(prompt.stated[0].stated()) == {"shape", "colour", "motion", name}
    with pytest.raises(ValueError, match="stated_too"):
        prompts("in_distribution", 1, seed=0, stated_too="weight")


def test_prompts_and_training_clips_share_no_scene():
    training = set(training_scenes(500, seed=0))
    assert not training & {prompt.scene for prompt in prompts("in_distribution", 200, seed=0)}
