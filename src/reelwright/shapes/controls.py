"""Videos and prompts spoilt on purpose. A score that does not fall on them measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np

from reelwright.shapes.sampling import choose, scene_generator
from reelwright.shapes.world import FACTOR_VALUES, Factors, Prompt, Scene


def frozen(video: np.ndarray, seed: int) -> np.ndarray:
    """The first frame, repeated."""
    return np.repeat(video[:1], len(video), axis=0)


def reversed_in_time(video: np.ndarray, seed: int) -> np.ndarray:
    return video[::-1].copy()


def frame_shuffled(video: np.ndarray, seed: int) -> np.ndarray:
    """The same frames in a random order."""
    return video[np.argsort(scene_generator("frame order", seed).random(len(video)))]


def blank(video: np.ndarray, seed: int) -> np.ndarray:
    """Every pixel the video's median colour."""
    return np.broadcast_to(np.median(video, axis=(0, 1, 2)).astype(np.uint8), video.shape).copy()


def noise(video: np.ndarray, seed: int) -> np.ndarray:
    """Uniform noise."""
    return (scene_generator("noise", seed).random(video.shape) * 256).astype(np.uint8)


CONTROLS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "frozen": frozen,
    "reversed": reversed_in_time,
    "frame-shuffled": frame_shuffled,
    "blank": blank,
    "noise": noise,
}


def shuffled_captions(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """The same prompts in a random order that leaves none in its place: what chance alone gives.

    Video i, made from prompts[i], is then scored against the result's i-th. Two prompts may state the same words; such
    luck is part of chance, and to rule it out would put this row below what an honest guess reaches.
    """
    if len(prompts) < 2:
        raise ValueError(f"{len(prompts)} prompts cannot be shuffled; take at least 2")
    circle = np.argsort(scene_generator("caption order", seed).random(len(prompts)))
    shuffled = list(prompts)
    for here, there in zip(circle, np.roll(circle, 1), strict=True):
        shuffled[here] = prompts[there]
    return shuffled


def nearest_training_scenes(prompts: Sequence[Prompt], training: Sequence[Scene], seed: int) -> list[Scene]:
    """For each prompt a training scene that agrees with it in the most stated factors: what retrieval would show.

    Of two objects whichever is taken for which counts, if it is the better way. Ties are broken by the seed.
    """
    objects = range(len(training[0].objects))
    shown = {
        name: np.array([[getattr(scene.objects[k].factors, name) or "" for k in objects] for scene in training])
        for name in FACTOR_VALUES
    }  # scenes objects
    chosen: dict[tuple[Factors, ...], np.ndarray] = {}
    result = []
    for index, prompt in enumerate(prompts):
        if prompt.stated not in chosen:
            agreement = [
                np.sum([shown[name] == value for name, value in stated.stated().items()], axis=0)
                for stated in prompt.stated
            ]  # of each stated object with each one shown: scenes objects
            ways = [
                np.sum([agreement[i][:, k] for i, k in enumerate(order)], axis=0)
                for order in permutations(objects, len(agreement))
            ]
            best = np.max(ways, axis=0)
            chosen[prompt.stated] = np.flatnonzero(best == best.max())
        result.append(training[choose(scene_generator("nearest", seed, index), chosen[prompt.stated].tolist())])
    return result
