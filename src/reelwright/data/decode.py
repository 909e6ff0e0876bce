"""Video file -> uint8 frames at a requested rate, exactly and without ever changing the speed of motion.

The time of a frame is its timestamp, never its number divided by a nominal rate. The decoder gives frames in the
order they are shown; where a container's timestamps contradict that order, the same timestamps are dealt out in
ascending order (`settle_timestamps`). A file with frames the decoder had to guess is refused; only before the first
sound key frame, where a recording was cut into, are such frames left out.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from reelwright.data.resize import fit
from reelwright.types import FileSlice, Size, VideoFile

PROBE_VERSION = f"1/av-{av.__version__}"  # a change re-probes every file; raise the number when probing changes
CONTAINERS = "mov,matroska,avi,gif,mpegts,mpeg,flv,asf,ivf"  # FFmpeg's names of the demuxers we let read a file
# Images are clips of one frame. Their demuxer is named: FFmpeg would take `a%03d.png` for a sequence of other files.
IMAGES = ((b"\x89PNG", "png_pipe"), (b"\xff\xd8\xff", "jpeg_pipe"), (b"RIFF....WEBP", "webp_pipe"), (b"BM", "bmp_pipe"))
REORDERED_FRAMES = (
    16  # no codec shows a frame further from its place in the file (H.264, A.3.1: max_dec_frame_buffering)
)


class BadVideo(Exception):
    """A video file that cannot be used; the text is the reason in plain words."""


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

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)

    @property
    def first_seconds(self) -> float:
        return float(self.timestamps[0])

    @property
    def frame_seconds(self) -> float:
        """The usual time between two frames (median); 0 for a single frame."""
        return float(np.median(np.diff(self.timestamps))) if len(self.timestamps) > 1 else 0.0

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
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "timestamps"}
        return {**fields, "timestamps": packed}

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> VideoInfo:
        timestamps = np.frombuffer(zlib.decompress(base64.b64decode(plain["timestamps"])), dtype="<f8")
        return VideoInfo(**{**plain, "timestamps": timestamps.astype(np.float64)})


def probe(path: VideoFile) -> VideoInfo:
    """Decode every frame and report what is there. BadVideo says why a file cannot be used."""
    seconds: list[float | None] = []
    skipped = 0
    first: av.VideoFrame | None = None
    with opened(path) as (container, stream):
        # The loop filter changes pixels, not which frames decode; without it probing is a fifth faster.
        stream.codec_context.options = {"skip_loop_filter": "all"}
        for frame in _frames(container, stream):
            if frame is None:
                skipped += 1
                continue
            first = first or frame
            seconds.append(frame.time)
        if first is None:
            damaged = f"none of its {skipped} frames is sound or follows a sound key frame"
            raise BadVideo(damaged if skipped else "no frame can be decoded")
        rotation, mirrored = orientation(first)
        height, width = first.height, first.width * _pixel_aspect(stream)
        if rotation in (90, 270):
            height, width = width, height
        nominal = float(stream.average_rate or stream.guessed_rate or 0)
        return VideoInfo(
            timestamps=settle_timestamps(seconds, step=1 / nominal if nominal > 0 else 0.04),
            width=max(1, round(width)),
            height=max(1, round(height)),
            rotation=rotation,
            mirrored=mirrored,
            codec=stream.codec_context.name,
            skipped_frames=skipped,
            declared_seconds=_declared_seconds(container, stream),
        )


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
    wanted = nearest_frames(info.timestamps, targets)
    pictures: dict[int, NDArray[np.uint8]] = {}
    remaining = sorted(set(wanted.tolist()), reverse=True)
    index = -1
    with opened(path) as (container, stream):
        aspect = _pixel_aspect(stream)
        for frame in _frames(container, stream):
            if frame is None:
                continue
            index += 1
            if index == remaining[-1]:
                pictures[index] = fit(shown(frame), size.height, size.width, _shown_aspect(frame, aspect))
                remaining.pop()
                if not remaining:
                    return np.stack([pictures[i] for i in wanted])
    raise BadVideo(f"ends after {index + 1} frames where {info.num_frames} were found before; it has changed")


def shown(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """The picture as it is meant to be seen, uint8 `h w c` RGB of full range, pixels still as wide as stored.

    Colours follow the frame's own tags (matrix and range); without tags swscale takes BT.601, limited range.
    Alpha is ignored.
    """
    picture = np.asarray(frame.reformat(format="rgb24", threads=1).to_ndarray(), dtype=np.uint8)
    rotation, mirrored = orientation(frame)
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


def _shown_aspect(frame: av.VideoFrame, pixel_aspect: float) -> float:
    """Width of a shown pixel over its height: a quarter turn lays the stored pixel on its side."""
    return 1 / pixel_aspect if orientation(frame)[0] in (90, 270) else pixel_aspect


def _pixel_aspect(stream: av.VideoStream) -> float:
    """Width of a stored pixel over its height; 1 where the file does not say or says nonsense."""
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return float(ratio) if ratio and 1 / 16 <= ratio <= 16 else 1.0


def _declared_seconds(container: Any, stream: av.VideoStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


@contextmanager
def opened(path: VideoFile) -> Iterator[tuple[Any, av.VideoStream]]:
    """The container and its first real video stream; BadVideo where there is none."""
    try:
        if not path.is_file():
            raise BadVideo("not a regular file" if path.exists() else "the file is not there")
        if path.stat().st_size == 0:
            raise BadVideo("the file is empty (0 bytes)")
    except OSError as error:
        raise BadVideo(f"cannot be read: {error.strerror or error}") from None
    image = _image_demuxer(path)
    options = {"protocol_whitelist": "file,subfile", "format_whitelist": image or CONTAINERS}
    try:
        url = path.url if isinstance(path, FileSlice) else f"file:{path}"
        container = av.open(url, format=image, options=options, metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        known = CONTAINERS.replace(",", ", ")
        reason = f"not a video in a container known here ({known}): {_plain(error)}"
        raise BadVideo(_why_unreadable(path, reason)) from None
    with container:
        # A cover picture is a video stream of one attached frame: not what the file is about.
        streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
        if not streams:
            kinds = sorted({s.type for s in container.streams})
            if kinds:
                raise BadVideo(f"holds no video stream, only {', '.join(kinds)}")
            raise BadVideo(_why_unreadable(path, "holds no stream at all: it was cut short or is damaged"))
        stream = streams[0]
        if stream.codec_context is None:
            raise BadVideo(_why_unreadable(path, "its codec is unknown to this FFmpeg"))
        stream.thread_count = 1  # frame threads lose different frames around an error from run to run
        yield container, stream


def _image_demuxer(path: VideoFile) -> str | None:
    """The demuxer of an image by its first bytes; None where they are those of no image known here."""
    with path.open("rb") as file:
        head = file.read(12)
    return next((name for mark, name in IMAGES if re.match(mark, head, re.DOTALL)), None)


def _frames(container: Any, stream: av.VideoStream) -> Iterator[av.VideoFrame | None]:
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
        raise BadVideo(f"decoding failed after {count} frames: {_plain(error)}") from None


def _plain(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:]


def _why_unreadable(path: VideoFile, otherwise: str) -> str:
    """What the first bytes tell of a file that gave no video; `otherwise` where they tell nothing."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[4:8] in (b"ftyp", b"mdat", b"moov", b"free", b"skip", b"wide"):
        boxes = _top_level_boxes(path)
        if "moov" not in boxes:
            return f"an mp4/mov without its index (boxes: {', '.join(boxes[:6])}; no moov): cut short or never finished"
        return f"a damaged mp4/mov (boxes: {', '.join(boxes[:6])})"
    if head.lstrip()[:7] == b"#EXTM3U":
        return "a playlist, not a video"
    if all(byte in b"\t\n\r\f" or byte >= 32 for byte in head):
        return "not a video: it looks like a text file"
    return otherwise


def _top_level_boxes(path: VideoFile) -> list[str]:
    """Names of the outermost boxes of an ISO media file, as far as their sizes lead (ISO/IEC 14496-12, 4.2)."""
    names: list[str] = []
    end = path.stat().st_size
    with path.open("rb") as file:
        at = 0
        while at + 8 <= end and len(names) < 64:
            file.seek(at)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            names.append(ascii(header[4:8].decode("latin-1")).strip("'"))
            if length < 8:  # 0 says "to the end of the file"
                break
            at += length
    return names
