"""Whether a file is a video: tried in a child process with limits, as the file may be made to do harm."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from reelwright.types import UserError
from reelwright.ui.processes import kill_group, start_child

CONTAINERS = "mov,matroska,avi,gif"  # FFmpeg's demuxers of the suffixes a page takes
MAX_SIDE, MAX_PIXELS = 16384, 2**26
MEMORY_BYTES, CPU_SECONDS, WALL_SECONDS = 4 * 2**30, 20, 40


def probe_upload(path: Path) -> None:
    """UserError says in plain words why a file cannot be used: not a video, too large a picture, or past the limits."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    child = start_child("reelwright.ui.probing", [str(path)], signal.SIGKILL, **pipes)
    try:
        said, _ = child.communicate(timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired:
        kill_group(child.pid)
        child.communicate()
        raise UserError(f"its first picture did not decode within {WALL_SECONDS} s") from None
    try:
        problem = json.loads(said)["problem"]
    except (ValueError, KeyError, TypeError):
        raise UserError("it took more memory or time than a video's first picture may") from None
    if problem:
        raise UserError(problem)


def _problem(path: Path) -> str:
    """Why the first picture of the first video stream cannot be used; '' where it can."""
    import av
    import av.error

    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        with av.open(f"file:{path}", options=options, metadata_errors="ignore") as container:
            streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
            if not streams or streams[0].codec_context is None:
                return "holds no video stream that can be decoded"
            stream = streams[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                return f"its pictures are {width}x{height}; at most {MAX_SIDE} a side and {MAX_PIXELS} pixels"
            stream.thread_count = 1
            for _ in container.decode(stream):
                return ""
        return "holds no picture that can be decoded"
    except (av.error.FFmpegError, ValueError, OSError) as error:
        return f"not a video that can be decoded ({getattr(error, 'strerror', None) or error})"


def _main() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.stdout.write(json.dumps({"problem": _problem(Path(sys.argv[1]))}))


if __name__ == "__main__":
    _main()
