from __future__ import annotations

import re
from collections import Counter

import pytest

from reelwright.shapes.captions import (
    HELD_OUT_TEMPLATES,
    HELD_OUT_TEMPLATES_WITHOUT_MOTION,
    TRAINING_TEMPLATES,
    TRAINING_TEMPLATES_WITHOUT_MOTION,
    caption,
)
from reelwright.shapes.files import training_prompts
from reelwright.shapes.sampling import scene_generator
from reelwright.shapes.splits import prompts, training_scene, training_scenes


def test_a_fifth_of_the_templates_is_held_out_and_built_from_training_words():
    training = TRAINING_TEMPLATES + TRAINING_TEMPLATES_WITHOUT_MOTION
    held_out = HELD_OUT_TEMPLATES + HELD_OUT_TEMPLATES_WITHOUT_MOTION
    assert len(held_out) / len(training + held_out) == 0.2
    assert not set(training) & set(held_out)
    taught = {word for template in training for word in template.split()}
    assert {word for template in held_out for word in template.split()} <= taught


def test_every_word_of_every_test_prompt_occurs_in_training_captions():
    taught = {word for prompt in training_prompts(2000, seed=0, track="s1-hard") for word in prompt.caption.split()}
    for split in ("paraphrases", "held_out_pairs", "held_out_triples"):
        for stated_too in (None, "size", "speed", "region"):
            for prompt in prompts(split, 60, seed=0, track="s1-hard", stated_too=stated_too):
                assert set(prompt.caption.split()) <= taught, prompt.caption


def test_no_training_caption_uses_a_held_out_template():
    pattern = re.compile(r"in this clip we see .* that |^there is .* that is |^this is a video |^this is a clip ")
    for prompt in training_prompts(1000, seed=0):
        assert not pattern.search(prompt.caption), prompt.caption
    assert all(pattern.search(prompt.caption) for prompt in prompts("paraphrases", 100, seed=0))


def test_captions_say_what_they_state_and_nothing_else():
    words = {
        "shape": {"circle", "square", "triangle", "diamond", "cross"},
        "colour": {"red", "orange", "yellow", "green", "cyan", "blue", "pink", "white"},
        "size": {"small", "little", "large", "big"},
        "speed": {"slowly", "quickly"},
        "region": {"top", "bottom"},
    }
    for prompt in training_prompts(600, seed=1, track="s1-hard"):
        spoken = set(prompt.caption.split())
        stated = prompt.stated[0].stated()
        for factor, known in words.items():
            assert bool(spoken & known) == (factor in stated), prompt.caption
        for factor in ("shape", "colour", "speed"):
            assert factor not in stated or stated[factor] in spoken
        assert prompt.stated[0] == prompt.scene.objects[0].factors.only(tuple(stated))
        assert " a o" not in f" {prompt.caption}", "an orange circle, an object"


def test_training_captions_state_less_and_more_than_the_headline():
    stated = Counter(len(prompt.stated[0].stated()) for prompt in training_prompts(1000, seed=0))
    assert 0.05 < stated[2] / 1000 < 0.15
    assert 0.4 < stated[3] / 1000 < 0.6
    assert stated[4] + stated[5] + stated[6] > 250


def test_impossible_requests_are_refused():
    scene = next(s for s in training_scenes(50, seed=0) if s.objects[0].factors.motion == "left")
    with pytest.raises(ValueError, match="state motion too"):
        caption(scene, scene_generator("x"), states=("shape", "speed"))


def test_a_caption_depends_on_its_generator_alone():
    scene = training_scene(0, seed=0)
    assert caption(scene, scene_generator("x", 1)) == caption(scene, scene_generator("x", 1))
    assert len({caption(scene, scene_generator("x", i)).caption for i in range(60)}) > 30
