"""Pictures -> H.264 or VP9, one at a time: a video being written never lies in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from numpy.typing import NDArray

from reelwright.types import UserError

AddPicture = Callable[..., None]

# swscale's default colour conversion costs 10 dB on smooth pictures (40 against 51 dB, both ways, measured).
EXACT_CONVERSION = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
# Without B-frames the first timestamp is 0 in every reader; crf 10 is visually lossless.
# x264's analysis of half-size frames ahead is left out: at 32x32 it gave other bytes in 10 of 1,500 writes of a video,
# without it in 0 of 700.
H264_OPTIONS = {"crf": "10", "preset": "medium", "bf": "0", "x264-params": "rc-lookahead=0:weightp=0:scenecut=0"}
VP9_OPTIONS = {"crf": "12", "b:v": "0", "row-mt": "0", "deadline": "good", "cpu-used": "2"}
PADDED = "padded from "  # mp4 only: the true size, kept in the 'description' tag
UNSTEADY = 0.1  # of a frame's time: how far from an even rate rounded timestamps get (8 fps in a gif: 0.04)
FINE_TIME_BASE = Fraction(1, 90_000)  # seconds: for pictures that do not follow one rate


@contextmanager
def encoding(
    path: Path, suffix: str, height: int, width: int, rate: Fraction, comment: str | None, steady: bool = True
) -> Iterator[AddPicture]:
    """`add(picture)` with uint8 RGB `h w c` appends a picture to the file at `path`; `suffix` is ".mp4" or ".webm".

    H.264 in mp4 or VP9 in webm, yuv420p, BT.601 limited range. An odd side in mp4 is padded as `write_video` says.
    Pictures are 1 / rate seconds apart; where not `steady`, each comes with its own time, `add(picture, seconds)`,
    and `rate` is their mean. The file is whole when the context ends.
    """
    mp4 = suffix == ".mp4"
    container_options = {"fflags": "+bitexact"}  # no version of the muxer, no random segment id
    metadata = {} if comment is None else {"comment": comment}
    padding = (height % 2, width % 2) if mp4 else (0, 0)
    if mp4:
        container_options["movflags"] = "+faststart"
    if any(padding):
        metadata["description"] = f"{PADDED}{width}x{height}"
    with av.open(str(path), "w", format=suffix[1:], options=container_options) as container:
        container.metadata.update(metadata)
        stream = container.add_stream(
            "libx264" if mp4 else "libvpx-vp9", rate=rate, options=H264_OPTIONS if mp4 else VP9_OPTIONS
        )
        stream.height, stream.width = height + padding[0], width + padding[1]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1
        codec.colorspace, codec.color_range = Colorspace.ITU601, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        time_base = 1 / rate if steady else FINE_TIME_BASE
        codec.time_base = time_base
        latest = -1

        def add(picture: NDArray[np.uint8], seconds: float = 0.0) -> None:
            nonlocal latest
            if any(padding):
                picture = np.pad(picture, ((0, padding[0]), (0, padding[1]), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                interpolation=EXACT_CONVERSION,
            )
            latest = latest + 1 if steady else max(latest + 1, round(seconds / FINE_TIME_BASE))
            frame.pts, frame.time_base = latest, time_base
            container.mux(stream.encode(frame))

        yield add
        container.mux(stream.encode(None))


def true_size(height: int, width: int, description: str) -> tuple[int, int]:
    """(height, width) of a video as it was before it was padded; `description` is the container's tag."""
    if not description.startswith(PADDED):
        return height, width
    try:
        noted_width, noted_height = (int(side) for side in description.removeprefix(PADDED).split("x"))
    except ValueError:  # a stranger's text that begins like ours
        return height, width
    return (
        noted_height if height - noted_height in (0, 1) else height,
        noted_width if width - noted_width in (0, 1) else width,
    )


def even_rate(seconds: NDArray[np.float64], nominal: Fraction | None) -> tuple[Fraction, bool]:
    """(frames a second, whether the frames shown at `seconds`, ascending and at least two, come that evenly).

    The nominal rate or a usual one where it fits, else the mean. UserError where all frames have one time.
    """
    span = float(seconds[-1] - seconds[0])
    if span <= 0:
        raise UserError("all frames of the video have the same timestamp; re-encode it at a frame rate")
    measured = (len(seconds) - 1) / span
    mean = Fraction(measured).limit_denominator(1001)
    usual = (Fraction(round(measured)), Fraction(round(measured * 1.001) * 1000, 1001))  # 24 and 23.976
    for rate in (nominal, *usual, mean):
        if rate:
            even = seconds[0] + np.arange(len(seconds)) / float(rate)
            if np.abs(seconds - even).max() * float(rate) <= UNSTEADY:
                return rate, True
    return mean, False
