"""The clips that a codec is trained on, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized

import torch
from torch import Tensor

from reelwright.models.codec import pixels_to_video, video_to_pixels
from reelwright.models.symmetry import Symmetry
from reelwright.models.trained_codec import Augment
from reelwright.randomness import keyed_generator
from reelwright.types import UserError

MEMORY_BYTES = 1 << 30  # of clips held as pixels while training
HELD_BYTES = 12 << 20  # of clips in one tensor, or a single clip; their components are computed together


def held_in_memory(videos: Iterable[Tensor], most: int) -> tuple[list[list[Tensor]], list[list[int]]]:
    """The clips, uint8 `m f h w 3` a tensor, those of one size together: at most `most`, MEMORY_BYTES in all.

    Beside them which of the videos' clips each is, in order.

    Evenly taken. Tensors of many clips: one a clip, between the floats each comes as, tears the heap to three times its
    size.
    """
    groups: dict[torch.Size, list[Tensor]] = {}
    numbers: dict[torch.Size, list[int]] = {}
    count = len(videos) if isinstance(videos, Sized) else most
    kept = seen = seen_bytes = held_bytes = 0
    for video in videos:
        for clip in video_to_pixels(video):  # f h w 3
            seen_bytes += clip.numel()
            room = max(1, min(most, MEMORY_BYTES * (seen + 1) // seen_bytes))  # clips of the mean size so far
            if seen >= kept * max(1.0, count / room) and (held_bytes + clip.numel() <= MEMORY_BYTES or not kept):
                tensors, own = groups.setdefault(clip.shape, []), numbers.setdefault(clip.shape, [])
                together, place = _held_together(clip.shape), len(own)
                if place % together == 0:
                    tensors.append(clip.new_empty((together, *clip.shape)))
                tensors[-1][place % together] = clip
                own.append(seen)
                kept, held_bytes = kept + 1, held_bytes + clip.numel()
            seen += 1
    if not groups:
        raise UserError("codec: there is no clip to train it on")
    for shape, tensors in groups.items():
        tensors[-1] = tensors[-1][: (len(numbers[shape]) - 1) % _held_together(shape) + 1]
    return list(groups.values()), list(numbers.values())


def _held_together(clip: torch.Size) -> int:
    """How many clips of this shape, uint8, one tensor holds."""
    return max(1, HELD_BYTES // clip.numel())


class AsVideos:
    """The clips held, augmented, as a linear codec's `fit` reads them: float `1 3 f h w`, of known number."""

    def __init__(self, clips: list[list[Tensor]], augment: Augment) -> None:
        self._tensors = [tensor for group in clips for tensor in group]
        self._augment: Augment = augment

    def __len__(self) -> int:
        return sum(len(tensor) for tensor in self._tensors)

    def __iter__(self) -> Iterator[Tensor]:
        generator = keyed_generator("autoencoder components")
        for tensor in self._tensors:
            for clip in tensor:
                volume = pixels_to_video(clip[None])[0]  # 3 f h w
                yield Symmetry.drawn(self._augment, generator).of_volume(volume)[None]
