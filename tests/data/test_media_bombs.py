"""Files made to take memory, time, other files or the network: each gives a reason, in bounds, and the parent lives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import hostile_files
import pytest
from made_videos import numbered, write_video

from reelwright.data.decode import BadVideo, probe
from reelwright.data.limits import LimitsConfig
from reelwright.data.sandbox import Decoders, Unfinished

LIMITS = LimitsConfig(memory_mb=256, seconds=2)
IDLE_MB = 200  # of memory in use, more than an idle child has


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders(2, LIMITS) as pool:
        yield pool


def reason(decoders: Decoders, path: Path) -> str:
    with pytest.raises(BadVideo) as caught:
        decoders.call(probe, path)
    return str(caught.value)


def still_works(decoders: Decoders, folder: Path) -> bool:
    sound = write_video(folder / "sound" / "sound.mp4", numbered(5))
    return decoders.call(probe, sound).num_frames == 5


def test_pictures_of_65535_a_side_are_refused(decoders: Decoders, tmp_path: Path) -> None:
    for name, data in hostile_files.huge_headers().items():
        (tmp_path / name).write_bytes(data)
        assert reason(decoders, tmp_path / name), name
    hostile_files.png(tmp_path / "huge.png", hostile_files.SIDE, hostile_files.SIDE, honest=False)
    assert reason(decoders, tmp_path / "huge.png")
    assert still_works(decoders, tmp_path)


def test_a_picture_that_really_is_huge_is_stopped_by_the_memory_limit(decoders: Decoders, tmp_path: Path) -> None:
    bomb = hostile_files.png(tmp_path / "black.png", 10_000, 9600, honest=True)  # 288 MB of pixels
    assert bomb.stat().st_size < 2_000_000
    assert reason(decoders, bomb) == "took more than 256 MB to decode (data.limits.memory_mb)"
    assert still_works(decoders, tmp_path)


def test_frames_without_end_are_stopped_by_the_time_limit(decoders: Decoders, tmp_path: Path) -> None:
    bomb = hostile_files.endless_gif(tmp_path / "endless.gif", frames=9000, side=2000)  # 16 MB each as decoded
    started = time.monotonic()
    with pytest.raises(Unfinished, match=r"took longer than \d+\.?\d* s of processor time to decode"):
        decoders.call(probe, bomb)
    assert time.monotonic() - started < 120
    assert still_works(decoders, tmp_path)


def test_declared_frames_that_are_not_there_cost_nothing(decoders: Decoders, tmp_path: Path) -> None:
    movie = write_video(tmp_path / "made.mp4", numbered(4)).read_bytes()
    for count in (1 << 20, 0x7FFFFFFF, 0xFFFFFFFF):
        (tmp_path / f"{count}.mp4").write_bytes(hostile_files.with_sample_count(movie, count))
        assert reason(decoders, tmp_path / f"{count}.mp4")
    assert still_works(decoders, tmp_path)


def test_files_that_are_none(decoders: Decoders, tmp_path: Path) -> None:
    (tmp_path / "zero.mp4").touch()
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert reason(decoders, tmp_path / "zero.mp4") == "the file is empty (0 bytes)"
    assert reason(decoders, tmp_path / "fifo.mp4") == "not a regular file"
    assert reason(decoders, tmp_path / "folder.mp4") == "not a regular file"
    assert reason(decoders, tmp_path / "loop.mp4")
    assert reason(decoders, Path("/dev/zero")) == "not a regular file"


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """(address of a server on this machine, list of who called it)."""
    calls: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        done = threading.Event()

        def listen() -> None:
            while not done.is_set():
                try:
                    connection, caller = server.accept()
                except TimeoutError:
                    continue
                calls.append(str(caller))
                connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/video.mp4", calls
        time.sleep(0.2)
        done.set()
        thread.join()


def test_no_list_leads_to_another_file_or_address(
    decoders: Decoders, tmp_path: Path, listener: tuple[str, list[str]]
) -> None:
    url, calls = listener
    write_video(tmp_path / "beside.mp4", numbered(5))
    for name, text in hostile_files.playlists("beside.mp4", url).items():
        (tmp_path / name).write_text(text)
        assert reason(decoders, tmp_path / name), name
    write_video(tmp_path / "beside.ts", numbered(5), codec="mpeg2video", pix_fmt="yuv420p", options={})
    (tmp_path / "segments.ts").write_text(hostile_files.playlists("beside.ts", url)["hls.mp4"])
    assert reason(decoders, tmp_path / "segments.ts")
    assert calls == []


def test_a_movie_whose_samples_lie_elsewhere_is_refused(
    decoders: Decoders, tmp_path: Path, listener: tuple[str, list[str]]
) -> None:
    url, calls = listener
    beside = write_video(tmp_path / "beside.mp4", numbered(5))
    reference = tmp_path / "reference.mp4"
    reference.write_bytes(hostile_files.with_data_reference(beside.read_bytes(), str(beside)))
    willing = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(reference), options=willing) as container:  # so the reference is a true one
        assert len(list(container.decode(video=0))) == 5
    assert reason(decoders, reference)
    for target in (url, f"file:{beside}", f"concat:{beside}"):
        reference.write_bytes(hostile_files.with_data_reference(beside.read_bytes(), target))
        assert reason(decoders, reference)
    assert calls == []


BOMBS_IN_A_PROCESS = """
import json, resource, sys
from pathlib import Path
from reelwright.data.decode import BadVideo, probe
from reelwright.data.limits import LimitsConfig
from reelwright.data.sandbox import Decoders
reasons = {}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Decoders(1, LimitsConfig(memory_mb=256, seconds=3)) as decoders:
    for path in sorted(Path(sys.argv[1]).iterdir()):
        try:
            reasons[path.name] = str(decoders.call(probe, path).num_frames)
        except BadVideo as bad:
            reasons[path.name] = str(bad)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([reasons, after - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS keeps no limit of memory")
def test_memory_is_bounded_in_the_child_and_untouched_in_the_parent(tmp_path: Path) -> None:
    for name, data in hostile_files.huge_headers().items():
        (tmp_path / name).write_bytes(data)
    hostile_files.png(tmp_path / "black.png", 10_000, 9600, honest=True)
    hostile_files.png(tmp_path / "black-larger.png", 16000, 11000, honest=True)
    done = subprocess.run(
        [sys.executable, "-c", BOMBS_IN_A_PROCESS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    reasons, parent_grew_kb, largest_child_kb = json.loads(done.stdout)
    assert done.stderr == ""  # FFmpeg's complaints included
    assert len(reasons) == 12
    assert all(not text.isdecimal() for text in reasons.values()), reasons
    assert parent_grew_kb < 20_000
    assert largest_child_kb < (LIMITS.memory_mb + IDLE_MB) * 1024
