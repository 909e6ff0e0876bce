"""A long video through something that takes a window of it at a time, and the results cross-faded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from reelwright.types import Size, UserError

Pictures = NDArray[np.uint8]  # `h w c` or `f h w c`, RGB


@dataclass(frozen=True)
class Windows:
    """Which frames go through the model together: `starts[i]` and as many from there as a window has."""

    size: Size  # of each, padded to what codec and patch need
    starts: tuple[int, ...]
    num_frames: int  # of the video

    @property
    def count(self) -> int:
        return len(self.starts)


def through_windows(
    pictures: Iterable[Pictures], windows: Windows, change: Callable[[Pictures, int], Pictures]
) -> Iterator[Pictures]:
    """Pictures `h w c` of a video -> as many, each as the windows over it changed it.

    `change(frames f h w c, first)` gives the frames from number `first` on back, changed. It is given whole windows:
    the last row, column and frame are repeated where the video ends, and that is cropped off again. The share of a
    window rises linearly over the frames it has in common with those before it. UserError for too few pictures.
    """
    pictures = iter(pictures)
    waiting: list[Pictures] = []
    faded = np.zeros((0, 1, 1, 3), np.float32)  # frames of earlier windows that reach into this one
    stops = (*windows.starts[1:], windows.num_frames)
    begin = 0  # number of the first one waiting
    for start, stop in zip(windows.starts, stops, strict=True):
        del waiting[: start - begin]
        begin = start
        needed = min(windows.size.frames, windows.num_frames - start)
        waiting.extend(islice(pictures, needed - len(waiting)))
        if len(waiting) < needed:
            raise UserError(f"the video ends after {start + len(waiting)} frames; it had {windows.num_frames} before")
        height, width = waiting[0].shape[:2]
        changed = change(_padded(waiting, windows.size), start)[:needed, :height, :width].astype(np.float32)
        common = len(faded)
        share = ((np.arange(common, dtype=np.float32) + 0.5) / max(1, common))[:, None, None, None]
        changed[:common] = faded + share * (changed[:common] - faded)
        yield from changed[: stop - start].round().clip(0, 255).astype(np.uint8)
        faded = changed[stop - start :].copy()  # lets go of the rest


def _padded(pictures: list[Pictures], size: Size) -> Pictures:
    frames = np.stack(pictures)
    missing = [(0, extent - present) for extent, present in zip(size.tuple, frames.shape[:3], strict=True)]
    return np.pad(frames, (*missing, (0, 0)), mode="edge")
