"""From pixels to a soft matte: how much of each pixel one object covers, frame by frame.

Part of the frozen checker: see `checker.py` before changing anything here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_CONTRAST = 40.0  # RGB distance from the background below which a pixel is background
MIN_AREA = 0.004  # of the squared shorter side; the world's smallest object covers 0.009
MAX_BORDER_CLUTTER = 0.25  # share of border pixels that may differ from the background
MAX_OTHER_AREA = 0.2  # of the object's area: what a second component may cover and still be a stain


@dataclass(frozen=True, eq=False)
class Matte:
    """The largest object of every frame."""

    alpha: np.ndarray  # f h w float32: share of the pixel that the object covers
    present: np.ndarray  # f bool: large enough to be an object
    crowded: np.ndarray  # f bool: a second object is in the frame
    colour: np.ndarray  # 3 float: RGB of the object's core, its median over all frames


class Unreadable(Exception):
    """The video shows no object that could be measured; the text is the reason for abstaining."""


def extract(video: np.ndarray) -> Matte:
    """Matte of a uint8 `f h w c` video. Raises Unreadable where there is no plain background or no object."""
    frames, height, width, _ = video.shape
    side = min(height, width)
    pixels = video.astype(np.float32)
    offset = pixels - _background(pixels, border=max(1, side // 32))  # f h w c
    distance = np.sqrt(np.einsum("fhwc,fhwc->fhw", offset, offset))
    foreground = distance > MIN_CONTRAST
    if foreground.sum() < MIN_AREA * side * side:
        raise Unreadable("no object stands out from the background")

    # The object's own contrast, from its more contrasting half: its edge is diluted by the background.
    strong = distance >= np.median(distance[foreground])
    contrast = np.median(offset[strong], axis=0)
    power = float(contrast @ contrast)
    if power < MIN_CONTRAST**2:
        raise Unreadable("the object has no one colour")
    components = largest_components(distance > max(MIN_CONTRAST, 0.45 * power**0.5))
    alpha = np.clip(offset @ (contrast / power), 0.0, 1.0)
    reach = max(2, round(side / 24))  # holds the soft edge of an object blurred by 1.5 pixels in 64
    alpha *= dilate(components.main, reach) & ~components.others

    present = alpha.sum(axis=(1, 2)) >= MIN_AREA * side * side
    crowded = components.other_area > MAX_OTHER_AREA * components.main_area
    core = _core(components.main & present[:, None, None], alpha)
    if not core.any():
        raise Unreadable("no object stands out from the background")
    return Matte(alpha, present, crowded, np.median(pixels[core], axis=0).astype(np.float64))


def _background(pixels: np.ndarray, border: int) -> np.ndarray:
    """Median colour of each frame's border, `f 1 1 c`. Raises Unreadable if much of the border has another colour."""
    ring = np.ones(pixels.shape[1:3], dtype=bool)
    ring[border:-border, border:-border] = False
    samples = pixels[:, ring]  # f n c
    background = np.median(samples, axis=1, keepdims=True)
    clutter = np.linalg.norm(samples - background, axis=2) > MIN_CONTRAST
    if clutter.mean() > MAX_BORDER_CLUTTER:
        raise Unreadable("the background is not plain")
    return background[:, None]


def _core(main: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixels wholly inside the object, where the background does not tint its colour; bool f h w."""
    solid = main & (alpha > 0.8)
    eroded = ~dilate(~solid, 1)
    for candidate in (eroded, solid):
        if candidate.any():
            return candidate
    return main


@dataclass(frozen=True, eq=False)
class Components:
    main: np.ndarray  # f h w bool: each frame's largest component
    others: np.ndarray  # f h w bool: the remaining components
    main_area: np.ndarray  # f int
    other_area: np.ndarray  # f int: the second largest


def largest_components(mask: np.ndarray) -> Components:
    """4-connected components of each frame of `f h w` bool: the largest of the frame, and the rest.

    Rows are cut into runs of set pixels, and runs that touch across rows are joined (union-find): the work grows with
    the number of runs, not of pixels.
    """
    frames, height, width = mask.shape
    edges = np.diff(mask.astype(np.int8), axis=2, prepend=0, append=0)  # f h w+1: +1 opens a run, -1 closes it
    frame, row, start = np.nonzero(edges == 1)
    end = np.nonzero(edges == -1)[2]
    root = _join_runs((frame * (height + 1) + row).tolist(), start.tolist(), end.tolist())
    area = np.bincount(root, weights=end - start, minlength=len(root))
    order = np.lexsort((np.arange(len(root)), -area, frame))  # by frame, then the largest first
    is_root = area[order] > 0
    order = order[is_root]
    main_area, other_area = np.zeros(frames, dtype=int), np.zeros(frames, dtype=int)
    first, position = np.unique(frame[order], return_index=True)
    main_area[first] = area[order][position]
    has_second = np.bincount(frame[order], minlength=frames)[first] > 1
    other_area[first[has_second]] = area[order][position[has_second] + 1]
    main_root = np.full(frames, -1)
    main_root[first] = order[position]
    belongs = root == main_root[frame]
    painted = np.zeros((frames, height, width + 1), dtype=np.int8)
    painted[frame[belongs], row[belongs], start[belongs]] = 1
    painted[frame[belongs], row[belongs], end[belongs]] = -1
    main = np.cumsum(painted, axis=2, dtype=np.int8)[:, :, :width].astype(bool)
    return Components(main, mask & ~main, main_area, other_area)


def _join_runs(row: list[int], start: list[int], end: list[int]) -> np.ndarray:
    """Union-find over runs sorted by row, then start; the index of each run's representative."""
    parent = list(range(len(row)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    upper = lower = 0
    while lower < len(row):
        if row[upper] < row[lower] - 1:
            upper += 1
        elif row[upper] >= row[lower]:
            lower += 1
        else:
            if start[upper] < end[lower] and start[lower] < end[upper]:
                parent[find(lower)] = find(upper)
            if end[upper] <= end[lower]:
                upper += 1
            else:
                lower += 1
    return np.array([find(i) for i in range(len(row))], dtype=int)


def dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """Every pixel within `reach` rows and columns of a set one, `f h w` bool."""
    grown = mask
    for axis in (1, 2):
        source, grown = grown, grown.copy()
        length = mask.shape[axis]
        for shift in range(1, min(reach, length - 1) + 1):
            near = [slice(None)] * 3
            far = [slice(None)] * 3
            near[axis], far[axis] = slice(0, length - shift), slice(shift, length)
            grown[tuple(near)] |= source[tuple(far)]
            grown[tuple(far)] |= source[tuple(near)]
    return grown
