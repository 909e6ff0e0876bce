from __future__ import annotations

from collections import Counter

import pytest

from reelwright.shapes.sampling import scene_generator
from reelwright.shapes.splits import draw_scene, motions_of, prompts, training_scenes
from reelwright.shapes.tables import combinations, splits_of, training_split
from reelwright.shapes.world import TRACKS, find_track

SPLITS = splits_of("s1")


def shown_by(scene, track):
    """The combination a scene shows."""
    triples = tuple((f.shape, f.colour, f.motion) for f in (moving.factors for moving in scene.objects))
    first = scene.objects[0].factors
    more = {"change": (first.change,), "graded": (first.speed, first.size)}.get(find_track(track).kind, ())
    return triples if len(triples) == 2 else (*triples[0], *more)


@pytest.mark.parametrize("track", [name for name in TRACKS if name != "d2"])
def test_training_scenes_show_training_combinations_only(track):
    allowed = set(combinations("in_distribution", track))
    shown = Counter(shown_by(scene, track) for scene in training_scenes(1500, seed=0, track=track))
    assert set(shown) <= allowed
    if len(allowed) < 300:
        assert len(shown) > 0.95 * len(allowed)
    motions = Counter(motions_of(combination)[0] for combination in shown.elements())
    assert max(motions.values()) < 2 * min(motions.values()), "all motions are equally frequent"


def test_a_coverage_trains_on_its_combinations_and_tests_on_the_tenth_left_out():
    allowed = set(combinations("covered", "s1", 0.25))
    shown = {shown_by(scene, "s1") for scene in training_scenes(800, seed=0, coverage=0.25)}
    assert shown <= allowed and len(shown) > 0.95 * len(allowed) and training_split(0.25) == "covered"
    asked = prompts("uncovered", 28, seed=0, coverage=0.25)
    assert asked == prompts("uncovered", 28, seed=0, coverage=0.9), "one test for the whole curve"
    assert not {shown_by(p.scene, "s1") for p in asked} & set(combinations("covered", "s1", 0.9))


@pytest.mark.parametrize("track", ["s2", "s3", "graded"])
def test_prompts_of_the_other_tracks_state_their_headline(track):
    for split in splits_of(track):
        asked = prompts(split, 40, seed=5, track=track)
        assert asked == prompts(split, 40, seed=5, track=track)
        assert {shown_by(p.scene, track) for p in asked} <= set(combinations(split, track))
        for prompt in asked:
            headline = find_track(track).headline
            assert prompt.stated == tuple(moving.factors.only(headline) for moving in prompt.scene.objects)
        assert sum(all(f.motion == "still" for f in p.stated) for p in asked) * 9 <= 40


def test_a_scene_is_what_its_combination_says():
    for track in ("s1", "s2", "s3", "graded"):
        for combination in combinations("in_distribution", track)[::101]:
            scene = draw_scene(combination, find_track(track), scene_generator("test", track))
            assert shown_by(scene, track) == combination


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
