"""Sentences about scenes: templates, paraphrases, and which factors a caption states."""

from __future__ import annotations

import numpy as np

from reelwright.shapes.sampling import choose
from reelwright.shapes.world import DIRECTIONS, HEADLINE, Factors, Prompt, Scene

# {a} is the article of {object}; {moves} is a finite verb phrase, {moving} a participle.
TRAINING_TEMPLATES = (
    "{a} {object} {moves}",
    "the {object} {moves}",
    "{a} {object} is {moving}",
    "the {object} is {moving}",
    "there is {a} {object} {moving}",
    "a video of {a} {object} {moving}",
    "a clip of {a} {object} {moving}",
    "{a} {object} that {moves}",
    "we see {a} {object} {moving}",
    "in this video {a} {object} {moves}",
    "in this clip the {object} is {moving}",
    "this is {a} {object} that is {moving}",
)
TRAINING_TEMPLATES_WITHOUT_MOTION = (
    "{a} {object}",
    "there is {a} {object}",
    "a video of {a} {object}",
    "we see {a} {object} in this clip",
)
# A fifth of all templates, of words that the others teach.
HELD_OUT_TEMPLATES = (
    "in this clip we see {a} {object} that {moves}",
    "there is {a} {object} that is {moving}",
    "this is a video of the {object} {moving}",
)
HELD_OUT_TEMPLATES_WITHOUT_MOTION = ("this is a clip of {a} {object}",)

# (finite verb phrase, participle)
MOTION_PHRASES: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (
        ("moves left", "moving left"),
        ("moves to the left", "moving to the left"),
        ("slides left", "sliding left"),
        ("goes to the left", "going to the left"),
    ),
    "right": (
        ("moves right", "moving right"),
        ("moves to the right", "moving to the right"),
        ("slides right", "sliding right"),
        ("goes to the right", "going to the right"),
    ),
    "up": (("moves up", "moving up"), ("slides up", "sliding up"), ("goes up", "going up")),
    "down": (("moves down", "moving down"), ("slides down", "sliding down"), ("goes down", "going down")),
    "growing": (("grows", "growing"), ("gets bigger", "getting bigger")),
    "shrinking": (("shrinks", "shrinking"), ("gets smaller", "getting smaller")),
    "rotating": (("rotates", "rotating"), ("spins", "spinning"), ("turns around", "turning around")),
    "still": (("stays still", "staying still"), ("does not move", "not moving")),
}
for _diagonal in ("up-left", "up-right", "down-left", "down-right"):
    _upright, _sideways = _diagonal.split("-")
    MOTION_PHRASES[_diagonal] = (
        (f"moves {_upright} and to the {_sideways}", f"moving {_upright} and to the {_sideways}"),
        (f"moves diagonally {_upright} and {_sideways}", f"moving diagonally {_upright} and {_sideways}"),
        (f"slides {_upright} and {_sideways}", f"sliding {_upright} and {_sideways}"),
    )
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}

# What training captions state: mostly the headline, sometimes less, sometimes more.
_ALL_THREE, _ONE_LESS = 0.5, 0.1  # shares; the rest state size, speed or region too


def caption(
    scene: Scene, rng: np.random.Generator, held_out: bool = False, states: tuple[str, ...] | None = None
) -> Prompt:
    """A sentence that is true of the scene's one object.

    `states` names the factors to state, as far as the scene has them; None draws them as training captions do.
    `held_out` uses templates that no training caption has.
    """
    if len(scene.objects) != 1:
        raise ValueError(f"a caption is about one object, the scene has {len(scene.objects)}")
    factors = scene.objects[0].factors.only(_draw_stated(rng) if states is None else states)
    if factors.motion is None and (factors.speed or factors.region):
        raise ValueError(f"states = {states}: speed and region are said of a motion; state motion too")
    if factors.motion is None:
        templates = HELD_OUT_TEMPLATES_WITHOUT_MOTION if held_out else TRAINING_TEMPLATES_WITHOUT_MOTION
    else:
        templates = HELD_OUT_TEMPLATES if held_out else TRAINING_TEMPLATES
    template = choose(rng, templates)
    words = [factors.colour, factors.shape or "object"]
    if factors.size:
        words.insert(0, choose(rng, SIZE_WORDS[factors.size]))
    phrase = " ".join(word for word in words if word)
    moves, moving = _motion_phrases(factors, rng) if factors.motion else ("", "")
    article = "an" if phrase[0] in "aeiou" else "a"
    return Prompt(template.format(a=article, object=phrase, moves=moves, moving=moving), (factors,), scene)


def _draw_stated(rng: np.random.Generator) -> tuple[str, ...]:
    """Which factors a training caption states."""
    kind = rng.random()
    if kind < _ALL_THREE:
        return HEADLINE
    if kind < _ALL_THREE + _ONE_LESS:
        left_out = choose(rng, HEADLINE)
        return tuple(name for name in HEADLINE if name != left_out)
    more = [name for name in ("size", "speed", "region") if rng.random() < 0.5]
    return (*HEADLINE, *(more or [choose(rng, ("size", "speed", "region"))]))


def _motion_phrases(factors: Factors, rng: np.random.Generator) -> tuple[str, str]:
    """The finite and participle phrases of the motion, with speed and region where they are stated."""
    assert factors.motion is not None
    phrases = choose(rng, MOTION_PHRASES[factors.motion])
    if factors.speed:
        before = rng.random() < 0.5
        phrases = tuple(f"{factors.speed} {p}" if before else f"{p} {factors.speed}" for p in phrases)
    if factors.region:
        near = "from" if factors.motion in DIRECTIONS else "at"
        word = choose(rng, ("starting at", near))
        phrases = tuple(f"{p} {word} the {factors.region}" for p in phrases)
    return phrases[0], phrases[1]
