"""Opening a file nobody vouches for: only known containers and codecs, no network, a plain reason for every refusal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import av.error

from reelwright.types import FileSlice, VideoFile

# FFmpeg's names of the demuxers we let read a file. None of them opens other files: no playlists, no image sequences.
CONTAINERS = "mov,matroska,avi,gif,mpegts,mpeg,flv,asf,ivf"
# Images are clips of one frame. Their demuxer is named: FFmpeg would take `a%03d.png` for a sequence of other files.
IMAGES = ((b"\x89PNG", "png_pipe"), (b"\xff\xd8\xff", "jpeg_pipe"), (b"RIFF....WEBP", "webp_pipe"), (b"BM", "bmp_pipe"))
# FFmpeg's names of the decoders we let run, in find_stream_info too: what cameras, browsers, editors and collections
# write. The decoders left out, of games and screen recorders mostly, are many and little tested.
CODECS = (
    "h264", "hevc", "vvc", "libdav1d", "vp8", "vp9", "theora",
    "mpeg1video", "mpeg2video", "mpegvideo", "mpeg4", "h263", "h263p", "flv", "vp6", "vp6a", "vp6f",
    "msmpeg4", "msmpeg4v1", "msmpeg4v2", "wmv1", "wmv2", "wmv3", "vc1",
    "prores", "dnxhd", "cfhd", "dvvideo", "mjpeg", "mjpegb", "svq1", "svq3",
    "ffv1", "ffvhuff", "huffyuv", "utvideo", "magicyuv", "qtrle", "rawvideo", "v210",
    "cinepak", "msvideo1", "msrle", "rpza",
    "gif", "png", "apng", "webp", "bmp",
)  # fmt: skip


class BadVideo(Exception):
    """A video file that cannot be used; the text is the reason in plain words."""


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
    options = {
        "protocol_whitelist": "file,subfile",
        "format_whitelist": image or CONTAINERS,
        "codec_whitelist": ",".join(CODECS),
    }
    try:
        url = path.url if isinstance(path, FileSlice) else f"file:{path}"
        container = av.open(url, format=image, options=options, metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        known = CONTAINERS.replace(",", ", ")
        reason = f"not a video in a container known here ({known}): {plain(error)}"
        raise BadVideo(_why_unreadable(path, reason)) from None
    with container:
        stream = _video_stream(container, path)
        if stream.codec_context.name == "mjpeg":  # it gives half-decoded frames as sound, the rest is stale memory
            stream.codec_context.options = {"err_detect": "explode"}
        stream.thread_count = 1  # frame threads lose different frames around an error from run to run
        yield container, stream


def _video_stream(container: Any, path: VideoFile) -> av.VideoStream:
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
    if stream.codec_context.name not in CODECS:
        raise BadVideo(f"its codec {stream.codec_context.name} is none of those known here ({', '.join(CODECS)})")
    return stream


def _image_demuxer(path: VideoFile) -> str | None:
    """The demuxer of an image by its first bytes; None where they are those of no image known here."""
    with path.open("rb") as file:
        head = file.read(12)
    return next((name for mark, name in IMAGES if re.match(mark, head, re.DOTALL)), None)


def plain(error: Exception) -> str:
    """FFmpeg's word for what went wrong, as the end of a sentence."""
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
