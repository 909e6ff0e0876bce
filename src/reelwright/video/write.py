"""Frames -> mp4, webm or gif, each carrying the recipe that made it; and back.

Encoders run on one thread and no date or tool version is written, so that the same frames and recipe give the same
bytes. For H.264 that is an observation (1,100 writes of a 32x32 video gave one file), not a promise of the encoder:
what has to be equal for certain are the frames given, not files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from reelwright.types import UsageError, UserError
from reelwright.video.stream import EXACT_CONVERSION, AddPicture, encoding, true_size

FORMATS = (".mp4", ".webm", ".gif")
STREAMED_FORMATS = FORMATS[:2]  # a gif needs all its pictures at once: they share one palette
MAX_DECODED_BYTES = 4 * 2**30
HUNDREDTH = Fraction(1, 100)  # of a second: what a gif counts its delays in
MAX_GIF_FPS = 50  # players slow down delays of less than two hundredths


def write_video(path: Path, frames: Any, fps: float, recipe: dict[str, Any] | None = None) -> None:
    """Write `frames` (uint8 RGB `f h w c`, array or tensor) at `fps` frames a second; the suffix picks the format.

    mp4 is H.264 and webm VP9, both yuv420p and BT.601 limited range (what readers assume of small untagged video, so
    that those which ignore the tag are right too). H.264 has no odd sizes in yuv420p: the last column or row is
    repeated once, the true size is noted in the container, and `read_frames` crops it off. gif has one palette for all
    frames and delays in hundredths of a second.

    `recipe` (JSON values) is embedded as the container's comment and written to `sidecar_path(path)`. The file appears
    whole or not at all. UsageError: unknown suffix, or an fps that a gif cannot hold. ValueError: not such frames.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: unknown video format '{path.suffix}'; end the name in {', '.join(FORMATS)}")
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps = {fps}: it must be positive; 8 or 24 are usual")
    pictures = as_frames(frames)
    rate = Fraction(fps).limit_denominator(1001)
    if path.suffix.lower() != ".gif":
        height, width = pictures.shape[1:3]
        with streamed_video(path, height, width, rate, recipe) as add:
            for picture in pictures:
                add(picture)
        return
    with _published(path, recipe) as (temporary, comment):
        _encode_gif(temporary, pictures, rate, comment)


@contextlib.contextmanager
def streamed_video(
    path: Path, height: int, width: int, rate: Fraction, recipe: dict[str, Any] | None = None, steady: bool = True
) -> Iterator[AddPicture]:
    """`write_video` to mp4 or webm for pictures that come one at a time: `add(picture)` takes uint8 RGB `h w c`.

    `steady` and the pictures' own times are those of `stream.encoding`. UsageError for another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in STREAMED_FORMATS:
        raise UsageError(f"{path}: written picture by picture, a video is one of {', '.join(STREAMED_FORMATS)}")
    with (
        _published(path, recipe) as (temporary, comment),
        encoding(temporary, suffix, height, width, rate, comment, steady) as add,
    ):
        yield add


@contextlib.contextmanager
def _published(path: Path, recipe: dict[str, Any] | None) -> Iterator[tuple[Path, str | None]]:
    """(a temporary file that becomes `path`, the recipe as the container's comment); then its JSON beside it."""
    comment = None if recipe is None else to_json(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        yield temporary, comment
        sidecar = sidecar_path(path)
        if comment is None:
            sidecar.unlink(missing_ok=True)  # an older file's recipe must not be taken for this one's
        else:
            with _replacing(sidecar) as temporary_sidecar:
                temporary_sidecar.write_text(to_json(json.loads(comment), indent=2) + "\n", encoding="utf-8")


def sidecar_path(path: Path) -> Path:
    """Where the recipe lies beside a video: `x.mp4` has `x.mp4.json`, which spares `x.gif`'s and a user's `x.json`."""
    return path.with_name(path.name + ".json")


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe a generated video carries, else that of the JSON beside it; UserError where there is neither."""
    path = Path(path)
    sidecar = sidecar_path(path)
    comment = _read_comment(path) if path.is_file() else None
    for text in (comment, sidecar.read_text(encoding="utf-8", errors="replace") if sidecar.is_file() else None):
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            recipe = json.loads(text or "")
            if isinstance(recipe, dict):
                return recipe
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a video made by `reelwright generate`")
    raise UserError(
        f"{path}: carries no recipe, and there is none in {sidecar.name} beside it; only videos made by "
        "`reelwright generate` that were not re-encoded since can be repeated"
    )


def read_frames(path: Path) -> tuple[NDArray[np.uint8], float]:
    """All frames of a small video as uint8 RGB `f h w c`, and its mean fps. UserError where it cannot be decoded.

    For our own files: rotation, pixel aspect and variable frame rates are the business of the data room.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    pictures: list[NDArray[np.uint8]] = []
    duration_seconds = 0.0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            for frame in container.decode(stream):
                picture = np.asarray(frame.to_ndarray(format="rgb24", interpolation=EXACT_CONVERSION), dtype=np.uint8)
                if (len(pictures) + 1) * picture.nbytes > MAX_DECODED_BYTES:
                    raise UserError(f"{path}: decodes to over {MAX_DECODED_BYTES >> 30} GiB; cut it into shorter clips")
                pictures.append(picture)
                duration_seconds += float(frame.duration or 0) * float(stream.time_base or 0)
            note = container.metadata.get("description", "")
    except FFmpegError as error:
        raise UserError(f"{path}: cannot be decoded as a video ({error.strerror}); is it damaged?") from None
    if not pictures or rate is None:
        raise UserError(f"{path}: holds no frame that can be decoded")
    if len({picture.shape for picture in pictures}) > 1:
        raise UserError(f"{path}: changes its picture size midway; re-encode it at one size")
    video = np.stack(pictures)
    # A gif's delays alternate (12 and 13 hundredths at 8 fps); only their sum tells the rate.
    fps = len(pictures) / duration_seconds if path.suffix.lower() == ".gif" and duration_seconds else float(rate)
    height, width = true_size(video.shape[1], video.shape[2], note)
    return video[:, :height, :width], fps


def as_frames(frames: Any) -> NDArray[np.uint8]:
    """An array or tensor checked to be uint8 RGB `f h w c`, as a numpy array. ValueError says what it is instead."""
    if hasattr(frames, "detach"):
        frames = frames.detach().cpu().numpy()
    array = np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"frames must be uint8 'f h w 3' and not empty, got {array.dtype} {array.shape}")
    return array


def to_json(recipe: dict[str, Any], indent: int | None = None) -> str:
    """JSON in readable Unicode; in ASCII escapes where the text is not valid Unicode (a prompt of broken bytes)."""
    text = json.dumps(recipe, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(recipe, allow_nan=False, indent=indent)
    return text


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path` that becomes `path` once all is written and synced."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _encode_gif(path: Path, frames: NDArray[np.uint8], rate: Fraction, comment: str | None) -> None:
    """One palette of 256 colours fitted to all frames, error-diffused; the comment as a GIF89a comment extension."""
    if rate > MAX_GIF_FPS:
        raise UsageError(f"fps = {float(rate):g}: a gif holds at most {MAX_GIF_FPS} frames a second; use mp4 or webm")
    height, width = frames.shape[1:3]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / rate)
    split, fit = graph.add("split"), graph.add("palettegen", "reserve_transparent=0")
    paint, sink = graph.add("paletteuse", "dither=sierra2_4a"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(paint, 0, 0)
    split.link_to(fit, 1, 0)
    fit.link_to(paint, 0, 1)
    paint.link_to(sink)
    graph.configure()
    for index, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = index, 1 / rate
        source.push(frame)
    source.push(None)
    starts = [round(index / rate / HUNDREDTH) for index in range(len(frames) + 1)]
    options = {"fflags": "+bitexact", "final_delay": str(starts[-1] - starts[-2])}
    with av.open(str(path), "w", format="gif", options=options) as container:
        stream = container.add_stream("gif", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = HUNDREDTH
        for start in starts[:-1]:
            frame = sink.pull()
            assert isinstance(frame, av.VideoFrame)
            frame.pts, frame.time_base = start, HUNDREDTH
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if comment is not None:
        _insert_gif_comment(path, json.dumps(json.loads(comment)).encode("ascii"))


def _insert_gif_comment(path: Path, comment: bytes) -> None:
    """Put a comment extension (GIF89a, section 24: 7-bit ASCII in blocks of at most 255 bytes) before the pictures."""
    data = path.read_bytes()
    flags = data[10]
    start = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)  # header, screen descriptor, global colour table
    blocks = (comment[i : i + 255] for i in range(0, len(comment), 255))
    extension = b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\x00"
    path.write_bytes(data[:start] + extension + data[start:])


def _read_comment(path: Path) -> str | None:
    """The container's comment; None where it has none or is no container."""
    try:
        if path.suffix.lower() == ".gif":
            from PIL import Image

            with Image.open(path, formats=["GIF"]) as image:
                comment = image.info.get("comment")
                return comment.decode("utf-8", "replace") if isinstance(comment, bytes) else None
        with av.open(str(path)) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
            return tags.get("comment")
    except (FFmpegError, OSError, SyntaxError, ValueError):
        return None
