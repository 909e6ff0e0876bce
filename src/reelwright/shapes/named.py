"""Three clips known by their names, for a first look and a first test of any trainer."""

from __future__ import annotations

from dataclasses import dataclass

from reelwright.shapes.sampling import sample_scene, scene_generator
from reelwright.shapes.world import LINE, Factors, Prompt, find_track


@dataclass(frozen=True)
class NamedClip:
    """A caption and the words it states."""

    caption: str
    shape: str
    colour: str
    motion: str


NAMED_CLIPS = (
    NamedClip("a green circle moving from left to right", "circle", "green", "right"),
    NamedClip("a blue square expanding", "square", "blue", "growing"),
    NamedClip("a red line rotating", LINE, "red", "rotating"),
)


def named_prompt(purpose: str, index: int, seed: int, duration_seconds: float = 2.0) -> Prompt:
    """One of the three in turn; the start and the exact way depend on the purpose ("training" or "prompt"), the seed
    and the index."""
    clip = NAMED_CLIPS[index % len(NAMED_CLIPS)]
    rng = scene_generator("named", purpose, seed, index)
    words = (clip.shape, clip.colour, clip.motion)
    scene = sample_scene(*words, find_track("d2"), rng, duration_seconds, speed="quickly", size="large")
    return Prompt(clip.caption, (Factors(*words),), scene)
