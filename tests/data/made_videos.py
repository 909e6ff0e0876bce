"""Small real videos, made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


def numbered(count: int, height: int = 48, width: int = 64) -> Frames:
    """Pictures `f h w c`; picture k is flat with the values (5 k, 255 - 5 k, 60), so that it can be told by looking."""
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    for k in range(count):
        frames[k] = (5 * k % 256, (255 - 5 * k) % 256, 60)
    return frames


def numbers_of(frames: Frames) -> list[int]:
    """Inverse of `numbered`, for lossy codecs too."""
    return [round(float(frame[..., 0].mean()) / 5) for frame in frames]


def planar(planes: Sequence[NDArray[Any]], layout: str) -> av.VideoFrame:
    """A frame of these planes, each `h w` of 8 bits, or of 16 where the layout has more than 8."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, layout)
    for plane, values in zip(frame.planes, planes, strict=True):
        lines = np.zeros((plane.height, plane.line_size), dtype=np.uint8)
        data = np.ascontiguousarray(values).view(np.uint8)
        lines[:, : data.shape[1]] = data
        plane.update(lines.tobytes())
    return frame


def write_video(
    path: Path,
    frames: Sequence[Any] | NDArray[Any],
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 30),
    codec: str = "libx264rgb",
    pix_fmt: str = "rgb24",
    pixel_aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    tags: dict[str, Any] | None = None,
    picture_of: Callable[[Any], av.VideoFrame] | None = None,
) -> Path:
    """Encode `f h w c` RGB pictures, losslessly by default; picture k is shown at `pts[k] * time_base`.

    `picture_of` makes frames of other layouts than RGB from whatever `frames` holds.
    """
    picture_of = picture_of or (lambda picture: av.VideoFrame.from_ndarray(picture, format="rgb24"))
    if codec == "libx264rgb":
        options = {"qp": "0", "preset": "ultrafast"} | (options or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=round(1 / time_base), options=options or {})
        first = picture_of(frames[0])
        stream.height, stream.width = first.height, first.width
        stream.pix_fmt, stream.time_base = pix_fmt, time_base
        stream.codec_context.time_base, stream.codec_context.thread_count = time_base, 1
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for k, picture in enumerate(frames):
            frame = picture_of(picture)
            if pix_fmt != frame.format.name:
                space = (tags or {}).get("colorspace")
                frame = frame.reformat(
                    format=pix_fmt, dst_colorspace=space, dst_color_range=(tags or {}).get("color_range")
                )
            for name, value in (tags or {}).items():
                setattr(frame, name, value)
            frame.pts, frame.time_base = (k if pts is None else pts[k]), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
