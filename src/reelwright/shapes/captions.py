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
SIZE_WORDS = {
    "very small": ("very small", "very little"), "small": ("small", "little"), "medium": ("medium",),
    "large": ("large", "big"), "very large": ("very large", "very big"),
}  # fmt: skip

# Of two objects: {one} and {two} have their articles.
TRAINING_PAIR_TEMPLATES = (
    "{one} {one_moves} while {two} {two_moves}",
    "{one} {one_moves} and {two} {two_moves}",
    "{one} is {one_moving} while {two} is {two_moving}",
    "there is {one} {one_moving} and {two} {two_moving}",
    "a video of {one} {one_moving} and {two} {two_moving}",
    "there is {one} that {one_moves} and {two} that {two_moves}",
    "we see {one} {one_moving} while {two} {two_moves}",
    "in this clip {one} is {one_moving} and {two} is {two_moving}",
)
HELD_OUT_PAIR_TEMPLATES = (
    "in this clip we see {one} that {one_moves} while {two} is {two_moving}",
    "this is a video of {one} {one_moving} while {two} {two_moves}",
)

# What happens in mid-clip, said after the motion: (finite, participle). {colour} is the one it takes.
CHANGE_PHRASES: dict[str, tuple[tuple[str, str], ...]] = {
    "bounces": ((" and bounces back", " and bouncing back"), (" and then comes back", " and then coming back")),
    "stops": ((" and stops", " and stopping"), (" and then stops", " and then stopping")),
    "changes colour": (
        (" and turns {colour}", " and turning {colour}"),
        (" and becomes {colour}", " and becoming {colour}"),
    ),
}
# And before it.
APPEARING = (("appears and ", "appearing and "), ("suddenly appears and ", "suddenly appearing and "))

# What training captions state: mostly the headline, sometimes less, sometimes more.
_ALL_THREE, _ONE_LESS = 0.5, 0.1  # shares; the rest state size, speed or region too
_HEADLINE_OF_TWO = 0.9


def caption(
    scene: Scene, rng: np.random.Generator, held_out: bool = False, states: tuple[str, ...] | None = None
) -> Prompt:
    """A sentence that is true of the scene's one or two objects.

    `states` names the factors to state of each, as far as it has them; None draws them as training captions do.
    `held_out` uses templates that no training caption has.
    """
    if len(scene.objects) == 2:
        return _caption_of_two(scene, rng, held_out, states)
    if len(scene.objects) != 1:
        raise ValueError(f"a caption is about one or two objects, the scene has {len(scene.objects)}")
    factors = scene.objects[0].factors
    factors = factors.only(_draw_stated(rng, factors) if states is None else states)
    if factors.motion is None and (factors.speed or factors.region or factors.change):
        raise ValueError(f"states = {states}: speed, region and change are said of a motion; state motion too")
    if factors.motion is None:
        templates = HELD_OUT_TEMPLATES_WITHOUT_MOTION if held_out else TRAINING_TEMPLATES_WITHOUT_MOTION
    else:
        templates = HELD_OUT_TEMPLATES if held_out else TRAINING_TEMPLATES
    template = choose(rng, templates)
    phrase = _object_phrase(factors, rng)
    moves, moving = _motion_phrases(factors, rng) if factors.motion else ("", "")
    return Prompt(template.format(a=_article(phrase), object=phrase, moves=moves, moving=moving), (factors,), scene)


def _caption_of_two(scene: Scene, rng: np.random.Generator, held_out: bool, states: tuple[str, ...] | None) -> Prompt:
    """A sentence about both objects, in their order; its length is why training captions rarely say more of them than
    the headline."""
    if states is None:
        states = HEADLINE if rng.random() < _HEADLINE_OF_TWO else (*HEADLINE, "size")
    if "motion" not in states:
        raise ValueError(f"states = {states}: a caption of two objects says how each moves; state motion too")
    template = choose(rng, HELD_OUT_PAIR_TEMPLATES if held_out else TRAINING_PAIR_TEMPLATES)
    words: dict[str, str] = {}
    stated = tuple(moving.factors.only(states) for moving in scene.objects)
    for place, factors in zip(("one", "two"), stated, strict=True):
        phrase = _object_phrase(factors, rng)
        words[place] = f"{choose(rng, (_article(phrase), 'the'))} {phrase}"
        words[f"{place}_moves"], words[f"{place}_moving"] = _motion_phrases(factors, rng)
    return Prompt(template.format(**words), stated, scene)


def _object_phrase(factors: Factors, rng: np.random.Generator) -> str:
    words = [factors.colour, factors.shape or "object"]
    if factors.size:
        words.insert(0, choose(rng, SIZE_WORDS[factors.size]))
    return " ".join(word for word in words if word)


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def _draw_stated(rng: np.random.Generator, factors: Factors) -> tuple[str, ...]:
    """Which factors a training caption states. A change is part of what it says of the motion."""
    kind = rng.random()
    change = ("change", "becomes") if factors.change else ()
    if kind < _ALL_THREE:
        return (*HEADLINE, *change)
    if kind < _ALL_THREE + _ONE_LESS:
        left_out = choose(rng, HEADLINE)
        said = HEADLINE if left_out == "motion" else (*HEADLINE, *change)
        return tuple(name for name in said if name != left_out)
    more = [name for name in ("size", "speed", "region") if rng.random() < 0.5]
    return (*HEADLINE, *change, *(more or [choose(rng, ("size", "speed", "region"))]))


def _motion_phrases(factors: Factors, rng: np.random.Generator) -> tuple[str, str]:
    """The finite and participle phrases of the motion, with speed, region and change where they are stated."""
    assert factors.motion is not None
    phrases = choose(rng, MOTION_PHRASES[factors.motion])
    if factors.speed:
        before = rng.random() < 0.5
        phrases = tuple(f"{factors.speed} {p}" if before else f"{p} {factors.speed}" for p in phrases)
    if factors.region:
        near = "from" if factors.motion in DIRECTIONS else "at"
        word = choose(rng, ("starting at", near))
        phrases = tuple(f"{p} {word} the {factors.region}" for p in phrases)
    if factors.change == "appears":
        phrases = tuple(before + p for before, p in zip(choose(rng, APPEARING), phrases, strict=True))
    elif factors.change:
        after = choose(rng, CHANGE_PHRASES[factors.change])
        phrases = tuple(p + then.format(colour=factors.becomes) for p, then in zip(phrases, after, strict=True))
    return phrases[0], phrases[1]
