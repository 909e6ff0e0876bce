"""Small real videos, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
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


def write_video(
    path: Path,
    frames: Frames,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 30),
    codec: str = "libx264rgb",
    pix_fmt: str = "rgb24",
    pixel_aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    tags: dict[str, Any] | None = None,
) -> Path:
    """Encode `f h w c` pictures, losslessly by default; picture k is shown at `pts[k] * time_base`."""
    if codec == "libx264rgb":
        options = {"qp": "0", "preset": "ultrafast"} | (options or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=round(1 / time_base), options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.time_base = pix_fmt, time_base
        stream.codec_context.time_base, stream.codec_context.thread_count = time_base, 1
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for k, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if pix_fmt != "rgb24":
                space = (tags or {}).get("colorspace")
                frame = frame.reformat(
                    format=pix_fmt, dst_colorspace=space, dst_color_range=(tags or {}).get("color_range")
                )
            frame.pts, frame.time_base = (k if pts is None else pts[k]), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
