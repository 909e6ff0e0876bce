"""A child that file content has taken over may answer anything: whatever it is, it is refused or harmless."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_videos import numbered, write_video

from reelwright.data import sandbox
from reelwright.data.decode import BadVideo, VideoInfo, probe, read_window
from reelwright.data.sandbox import Decoders, Unfinished
from reelwright.data.sandbox_messages import pack, unpack
from reelwright.types import FileSlice, Size


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "numbered.mp4", numbered(12))


def test_arguments_come_through_json(video: Path) -> None:
    for value in (None, True, 3, 2.5, "text", Path("/a/b"), Size(1, 2, 3), FileSlice(Path("/a"), 5, 7, "b.mp4")):
        assert unpack(json.loads(json.dumps(pack(value)))) == value
    info = probe(video)
    assert unpack(json.loads(json.dumps(pack(info)))).to_plain() == info.to_plain()
    with pytest.raises(TypeError, match="takes numbers, text, files, sizes and infos"):
        pack([1, 2])


ROGUE = """
import socket, sys, time
from pathlib import Path
connection = socket.socket(fileno=int(sys.argv[1]))
greeting = b'{"ready": true}'
connection.sendall(len(greeting).to_bytes(4, "big") + bytes(8) + greeting)
connection.recv(1 << 16)
connection.sendall(Path(__file__).with_name("answer").read_bytes())
time.sleep(60)
"""


def message(head: bytes, body: bytes = b"", head_bytes: int | None = None, body_bytes: int | None = None) -> bytes:
    lengths = len(head) if head_bytes is None else head_bytes, len(body) if body_bytes is None else body_bytes
    return struct.pack(">IQ", *lengths) + head + body


def info_message(times: bytes = struct.pack("<2d", 0.0, 0.1), **fields: Any) -> bytes:
    info = VideoInfo(np.array([0.0]), 64, 48, 0, False, "h264", 0, 0.1).to_plain()
    return message(json.dumps({"info": {**info, **fields}}).encode(), times)


@pytest.fixture
def rogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Decoders]:
    """Pools whose children answer any job with these bytes."""
    (tmp_path / "rogue_child.py").write_text(ROGUE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "CHILD", "rogue_child")
    monkeypatch.setattr(sandbox, "WALL_SLACK", 0.5)
    monkeypatch.setattr(sandbox, "WALL_FACTOR", 0.0)

    def pool(answer: bytes) -> Decoders:
        (tmp_path / "answer").write_bytes(answer)
        return Decoders(1)

    return pool


FALSE_INFOS = {
    "no message at all": b"hello, I am not a message",
    "a head of 4 GB": message(b"", head_bytes=0xFFFFFFFF),
    "a body of 16 EB": message(b'{"info": {}}', body_bytes=0xFFFFFFFFFFFFFFFF),
    "no JSON": message(b"{'info'}"),
    "no ASCII": message('{"bad": "\u00e9"}'.encode("latin-1")),
    "deep JSON": message(b"[" * 100_000 + b"]" * 100_000),
    "a list": message(b"[]"),
    "an empty object": message(b"{}"),
    "an info of nothing": message(b'{"info": {}}', struct.pack("<d", 0.0)),
    "an info of another kind": message(b'{"info": [1]}', struct.pack("<d", 0.0)),
    "no timestamps": info_message(b""),
    "half a timestamp": info_message(b"1234"),
    "a timestamp that is not a number": info_message(struct.pack("<2d", 0.0, float("nan"))),
    "an endless one": info_message(struct.pack("<2d", 0.0, float("inf"))),
    "descending ones": info_message(struct.pack("<2d", 1.0, 0.0)),
    "a width in words": info_message(width="wide"),
    "a width of truth": info_message(width=True),
    "a width of nothing": info_message(width=0),
    "a height below": info_message(height=-48),
    "one field more": info_message(more=1),
    "an endless duration": info_message(declared_seconds=float("inf")),
    "a codec that moves the cursor": info_message(codec="\x1b[2J"),
    "other looks": info_message(looks={"pictures": 1}),
    "pixels for an info": message(b'{"pixels": [1, 1, 1, 3]}', b"123"),
    "a reason that is none": message(b'{"bad": 5}'),
    "an empty reason": message(b'{"bad": ""}'),
}


@pytest.mark.parametrize("answer", FALSE_INFOS.values(), ids=FALSE_INFOS)
def test_a_false_info_is_refused(rogue: Callable[[bytes], Decoders], video: Path, answer: bytes) -> None:
    with rogue(answer) as decoders, pytest.raises(Unfinished, match="made its decoder answer nonsense"):
        decoders.call(probe, video)


FALSE_PIXELS = {
    "too few": message(b'{"pixels": [1, 2, 2, 3]}', bytes(11)),
    "too many": message(b'{"pixels": [1, 2, 2, 3]}', bytes(13)),
    "another shape": message(b'{"pixels": [1, 2, 3, 2]}', bytes(12)),
    "no shape": message(b'{"pixels": null}', bytes(12)),
    "a shape of truths": message(b'{"numbers": [1]}', bytes(12)),
}


@pytest.mark.parametrize("answer", FALSE_PIXELS.values(), ids=FALSE_PIXELS)
def test_false_pictures_are_refused(rogue: Callable[[bytes], Decoders], video: Path, answer: bytes) -> None:
    with rogue(answer) as decoders, pytest.raises(Unfinished, match="made its decoder answer nonsense"):
        decoders.call(read_window, video, Size(1, 2, 2), 8.0)


def test_what_a_rogue_may_say(rogue: Callable[[bytes], Decoders], video: Path) -> None:
    with rogue(info_message()) as decoders:
        assert decoders.call(probe, video).num_frames == 2
    with (
        rogue(message(b'{"bad": "red \\u001b[31m text"}')) as decoders,
        pytest.raises(BadVideo, match=r"^red \?\[31m text$"),
    ):
        decoders.call(probe, video)
    with (
        rogue(message(b'{"info": ', head_bytes=40)) as decoders,  # and no more
        pytest.raises(Unfinished, match="did not decode within 0.5 s"),
    ):
        decoders.call(probe, video)


def test_compressed_timestamps_of_a_child_are_never_unpacked(rogue: Callable[[bytes], Decoders], video: Path) -> None:
    bomb = base64.b64encode(zlib.compress(bytes(1 << 24))).decode()
    with rogue(info_message(timestamps=bomb)) as decoders:
        assert decoders.call(probe, video).num_frames == 2
