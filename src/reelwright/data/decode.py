"""Video file -> uint8 frames at a requested rate, exactly and without ever changing the speed of motion.

The time of a frame is its timestamp, never its number divided by a nominal rate. The decoder gives frames in the
order they are shown; where a container's timestamps contradict that order, the same timestamps are dealt out in
ascending order (`settle_timestamps`). A file with frames the decoder had to guess is refused; only before the first
sound key frame, where a recording was cut into, are such frames left out.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from reelwright.data.colours import colour_remark, has_transparency, to_rgb
from reelwright.data.containers import BadVideo, opened, plain
from reelwright.data.looks import UNSEEN, Looks, Observer
from reelwright.data.resize import fit
from reelwright.types import Size, VideoFile

PROBE_VERSION = f"2/av-{av.__version__}"  # a change re-probes every file; raise the number when probing changes
REORDERED_FRAMES = 16  # no codec shows a frame further from its place in the file (H.264, A.3.1: MaxDpbFrames)
_LONGEST_REMARK = 300


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What decoding the whole file showed."""

    timestamps: NDArray[np.float64]  # seconds, ascending, one for every frame that decodes without an error
    width: int  # as shown: after rotation and with square pixels
    height: int
    rotation: int  # degrees clockwise from the stored picture to the shown one: 0, 90, 180 or 270
    mirrored: bool  # the shown picture is also flipped left to right, after the rotation
    codec: str
    skipped_frames: int  # damaged ones before the first sound key frame
    declared_seconds: float  # how long the file says it lasts; 0 where it does not say
    looks: Looks = UNSEEN
    remarks: tuple[str, ...] = ()  # what is done to its pictures that their owner may not expect

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)

    @property
    def first_seconds(self) -> float:
        return float(self.timestamps[0])

    @cached_property
    def frame_seconds(self) -> float:
        """The usual time between two frames (median); 0 for a single frame."""
        steps = np.sort(np.diff(self.timestamps))  # `np.median` takes five times as long for so few
        return float(steps[(len(steps) - 1) // 2] + steps[len(steps) // 2]) / 2 if len(steps) else 0.0

    @property
    def duration_seconds(self) -> float:
        """From the first frame's appearance to the last one's end."""
        return float(self.timestamps[-1] - self.timestamps[0]) + self.frame_seconds

    @property
    def fps(self) -> float:
        """Frames per second on average; 0 for a single frame."""
        span = float(self.timestamps[-1] - self.timestamps[0])
        return (len(self.timestamps) - 1) / span if span > 0 else 0.0

    @property
    def ends_early(self) -> bool:
        """Whether more than a tenth of what the file declares is missing: files without an index can be cut unseen."""
        end = max(self.duration_seconds, float(self.timestamps[-1]) + self.frame_seconds)
        return self.num_frames > 1 and end < 0.9 * self.declared_seconds

    def to_plain(self) -> dict[str, Any]:
        """For JSON; `from_plain` gives back exactly the same numbers."""
        packed = base64.b64encode(zlib.compress(self.timestamps.astype("<f8").tobytes())).decode()
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fields, "timestamps": packed, "looks": self.looks.to_plain(), "remarks": list(self.remarks)}

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> VideoInfo:
        """ValueError, TypeError or KeyError where the parts cannot be those of an info."""
        timestamps = np.frombuffer(zlib.decompress(base64.b64decode(plain["timestamps"])), dtype="<f8")
        looks, remarks = Looks.from_plain(plain["looks"]), tuple(plain["remarks"])
        if not all(isinstance(remark, str) and len(remark) <= _LONGEST_REMARK for remark in remarks):
            raise ValueError(f"remarks = {remarks!r}: each must be a short text")
        return VideoInfo(**{**plain, "timestamps": timestamps.astype(np.float64), "looks": looks, "remarks": remarks})


def probe(path: VideoFile) -> VideoInfo:
    """Decode every frame and report what is there. BadVideo says why a file cannot be used."""
    seconds: list[float | None] = []
    skipped = 0
    pictures = _Pictures()
    with opened(path) as (container, stream):
        # Without H.264's and HEVC's loop filter probing is a fifth faster. The same frames decode; their edges are
        # harder, which the small pictures of `looks` average out.
        stream.codec_context.options = {**stream.codec_context.options, "skip_loop_filter": "all"}
        for frame in decoded_frames(container, stream):
            if frame is None:
                skipped += 1
                continue
            seconds.append(frame.time)
            pictures.see(frame, stream)
        if not seconds:
            damaged = f"none of its {skipped} frames is sound or follows a sound key frame"
            raise BadVideo(damaged if skipped else "no frame can be decoded")
        nominal = float(stream.average_rate or stream.guessed_rate or 0)
        return VideoInfo(
            timestamps=settle_timestamps(seconds, step=1 / nominal if nominal > 0 else 0.04),
            codec=stream.codec_context.name,
            skipped_frames=skipped,
            declared_seconds=_declared_seconds(container, stream),
            looks=pictures.observer.looks(),
            remarks=pictures.remarks(),
            **pictures.geometry,
        )


class _Pictures:
    """What probing sees of the pictures themselves."""

    def __init__(self) -> None:
        self.observer = Observer()
        self.geometry: dict[str, Any] = {}  # of the first frame: the fields of VideoInfo
        self._coded_aspect: Any = None
        self._kinds: set[tuple[Any, ...]] = set()
        self._sizes: dict[str, None] = {}  # in order
        self._remarks: dict[str, None] = {}
        self._count = self._interlaced = 0

    def see(self, frame: av.VideoFrame, stream: av.VideoStream) -> None:
        """BadVideo where the frame cannot be brought to RGB, or its pixels have another shape than those before it."""
        aspect = stream.codec_context.sample_aspect_ratio or 1
        if self._count == 0:
            self.geometry = _geometry(frame, stream)
            self._coded_aspect = aspect
        # A decoder knows a new pixel aspect some frames before the first one that has it, and PyAV not which that is.
        if aspect != self._coded_aspect:
            change = f"from {self._coded_aspect} to {aspect} about frame {self._count}"
            raise BadVideo(f"its pixel aspect changes {change}: these are two recordings; cut it in two there")
        colours = frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries
        kind = frame.format.name, frame.width, frame.height, *colours
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._look_closely(frame)
        self._count += 1
        self._interlaced += frame.interlaced_frame
        self.observer.see(frame, self._upright)

    def _upright(self, small: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return upright(small, self.geometry["rotation"], self.geometry["mirrored"])

    def _look_closely(self, frame: av.VideoFrame) -> None:
        to_rgb(frame)  # what cannot be converted is said now, not in the middle of preparing
        self._sizes[f"{frame.width}x{frame.height}"] = None
        remark = colour_remark(frame)
        if remark is not None:
            self._remarks[remark] = None
        if has_transparency(frame):
            self._remarks["has transparent pixels: they are laid over white"] = None

    def remarks(self) -> tuple[str, ...]:
        found = list(self._remarks)
        if len(self._sizes) > 1:
            sizes = ", ".join(list(self._sizes)[:4])
            found.append(f"its picture size changes ({sizes}): each frame is cropped by itself")
        if self._interlaced:
            found.append(f"{self._interlaced} of its {self._count} frames are interlaced: both fields stay woven")
        return tuple(found)


def _geometry(frame: av.VideoFrame, stream: av.VideoStream) -> dict[str, Any]:
    rotation, mirrored = orientation(frame)
    height, width = frame.height, frame.width * _pixel_aspect(stream)
    if rotation in (90, 270):
        height, width = width, height
    return {
        "width": max(1, round(width)),
        "height": max(1, round(height)),
        "rotation": rotation,
        "mirrored": mirrored,
    }


def settle_timestamps(seconds: list[float | None], step: float) -> NDArray[np.float64]:
    """Ascending times for frames given in the order they are shown.

    A missing time is one `step` (nominal seconds per frame) after its predecessor. A fall by more than codecs reorder
    starts a new recording that goes on one `step` after the old one ended (glued streams). Smaller contradictions are
    sorted out: B-frames in AVI carry the right set of times on the wrong frames, while the decoder's order is right.
    """
    jitter = min(max(REORDERED_FRAMES * step, 0.1), 1.0)  # bounds for files whose nominal rate is nonsense
    settled = np.empty(len(seconds), dtype=np.float64)
    offset, latest = 0.0, None
    for i, value in enumerate(seconds):
        if value is None:
            time = latest + step if latest is not None else 0.0
        else:
            time = value + offset
            if latest is not None and time < latest - jitter:
                offset += latest + step - time
                time = latest + step
        latest = time if latest is None else max(latest, time)
        settled[i] = time
    settled.sort()
    return settled


def nearest_frames(timestamps: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.intp]:
    """For each target time the index of the frame whose timestamp is nearest; the earlier one on a tie."""
    right = np.searchsorted(timestamps, targets, side="left").clip(0, len(timestamps) - 1)
    left = (right - 1).clip(0)
    # A nanosecond of slack, so that rounding of k / fps cannot decide a tie.
    take_left = targets - timestamps[left] <= timestamps[right] - targets + 1e-9
    chosen = np.where(take_left, left, right)
    return np.searchsorted(timestamps, timestamps[chosen], side="left")  # the first of frames with one timestamp


def read_window(
    path: VideoFile, size: Size, fps: float, start_seconds: float = 0.0, info: VideoInfo | None = None
) -> NDArray[np.uint8]:
    """`size.frames` pictures, uint8 `f h w c`: for k = 0, 1, ... the frame nearest to first + start + k / fps.

    `info` is what `probe` said of this very file; without it the file is probed first. Each picture is turned as the
    file says, brought to square pixels, resized by area averaging and cropped at the centre (`resize.fit`).
    BadVideo where the file does not last that long or does not decode.
    """
    info = info or probe(path)
    targets = info.first_seconds + start_seconds + np.arange(size.frames) / fps
    late = float(targets[-1] - info.timestamps[-1])
    if late > info.frame_seconds / 2 + 1e-6:
        needed, there = start_seconds + (size.frames - 1) / fps, info.timestamps[-1] - info.first_seconds
        raise BadVideo(
            f"too short: {size.frames} frames at {fps:g} fps from {start_seconds:g} s reach to {needed:.3f} s, "
            f"the last frame is at {there:.3f} s"
        )
    return _read_frames(path, size, nearest_frames(info.timestamps, targets), info)


def read_spread(
    path: VideoFile,
    size: Size,
    info: VideoInfo | None = None,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
) -> NDArray[np.uint8]:
    """`size.frames` pictures evenly spaced over the whole clip, uint8 `f h w c`; motion looks faster the longer it is.

    Of the frames shown from `start_seconds` to before `end_seconds` (after the first frame; None: to the end), the
    first at time a and the last at b: for k = 0 .. n - 1 the frame nearest to a + k (b - a) / (n - 1), both ends
    among them; a single one is taken from the middle. Pictures are brought to size as in `read_window`.
    BadVideo where there are fewer than `size.frames` frames, or they do not decode.
    """
    info = info or probe(path)
    since = info.timestamps - info.first_seconds
    inside = since >= start_seconds - 1e-6
    if end_seconds is not None:
        inside &= since < end_seconds - 1e-6
    part = np.flatnonzero(inside)
    if len(part) < size.frames:
        until = "its end" if end_seconds is None else f"{end_seconds:g} s"
        raise BadVideo(f"too short: {size.frames} frames are wanted, {start_seconds:g} s to {until} holds {len(part)}")
    first, last = info.timestamps[part[0]], info.timestamps[part[-1]]
    targets = np.linspace(first, last, size.frames) if size.frames > 1 else np.array([(first + last) / 2])
    return _read_frames(path, size, nearest_frames(info.timestamps, targets), info)


def _read_frames(path: VideoFile, size: Size, wanted: NDArray[np.intp], info: VideoInfo) -> NDArray[np.uint8]:
    """The frames of these indices, in this order, brought to size."""
    pictures: dict[int, NDArray[np.uint8]] = {}
    remaining = sorted(set(wanted.tolist()), reverse=True)
    index = -1
    with opened(path) as (container, stream):
        for frame in decoded_frames(container, stream):
            if frame is None:
                continue
            index += 1
            if index == remaining[-1]:
                aspect = _pixel_aspect(stream)
                if info.rotation in (90, 270):  # a quarter turn lays the stored pixel on its side
                    aspect = 1 / aspect
                # Turned as the first frame was: to ask every frame for it makes PyAV keep them all in memory.
                picture = upright(to_rgb(frame), info.rotation, info.mirrored)
                pictures[index] = fit(picture, size.height, size.width, aspect)
                remaining.pop()
                if not remaining:
                    return np.stack([pictures[i] for i in wanted])
    raise BadVideo(f"ends after {index + 1} frames where {info.num_frames} were found before; it has changed")


def upright(picture: NDArray[np.uint8], rotation: int, mirrored: bool) -> NDArray[np.uint8]:
    """A stored picture `h w ...`, turned by so many degrees clockwise, then mirrored left to right."""
    picture = np.rot90(picture, k=-rotation // 90)
    return picture[:, ::-1] if mirrored else picture


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """(degrees clockwise, then mirrored left to right) that bring a stored picture upright.

    The display matrix maps stored (x, y) to shown (a x + c y, b x + d y), y downward (ISO/IEC 14496-12, 8.2.2).
    Only quarter turns and flips are followed; anything else, which no camera writes, counts as upright.
    """
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data of a kind this PyAV does not know stands in front of it
        data = None
        if frame.rotation in (-90, 90, 180, -180):
            return -frame.rotation % 360, False
    if data is None:
        return 0, False
    a, b, _, c, d = np.sign(np.frombuffer(bytes(data), dtype=np.int32)[:5]).tolist()
    turns = {(1, 0, 0, 1): 0, (0, 1, -1, 0): 90, (-1, 0, 0, -1): 180, (0, -1, 1, 0): 270}
    if (a, b, c, d) in turns:
        return turns[a, b, c, d], False
    return turns.get((-a, b, -c, d), 0), (-a, b, -c, d) in turns


def _pixel_aspect(stream: av.VideoStream) -> float:
    """Width of a stored pixel over its height; 1 where the file does not say or says nonsense."""
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return float(ratio) if ratio and 1 / 16 <= ratio <= 16 else 1.0


def _declared_seconds(container: Any, stream: av.VideoStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def decoded_frames(container: Any, stream: av.VideoStream) -> Iterator[av.VideoFrame | None]:
    """Frames in the order they are shown; None for a damaged one before the first sound key frame.

    BadVideo where the decoder gives up or has to guess: what follows a guessed frame is predicted from it, although
    the decoder calls it sound.
    """
    count, started = 0, False
    try:
        for frame in container.decode(stream):
            started = started or not frame.is_corrupt and (count == 0 or frame.key_frame)
            if started and frame.is_corrupt:
                raise BadVideo(f"frame {count} is damaged: the decoder had to guess parts of it")
            yield frame if started else None
            count += 1
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise BadVideo(f"decoding failed after {count} frames: {plain(error)}") from None
