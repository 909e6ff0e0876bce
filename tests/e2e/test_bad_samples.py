"""Fault 12: samples that are bad in twenty ways, from none to all of them. Each is named once, with its reason."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from reelwright.data.config import DataConfig
from reelwright.data.inspection import Inspection, inspect
from reelwright.data.sandbox import Decoders
from reelwright.models.codec import BlockCodec
from reelwright.types import UserError
from reelwright.video.write import write_video

GOOD = 12
Make = Callable[[Path, dict[str, Any], str], None]  # makes the bad sample `name` in a folder, with its caption


def _clip(path: Path, frames: int = 8, seed: int = 0, level: int | None = None) -> None:
    pictures = np.random.default_rng(seed).integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8)
    if level is not None:
        pictures[:] = level
    write_video(path, pictures, 8.0)


def _made_then(change: Callable[[bytes], bytes]) -> Make:
    def make(folder: Path, captions: dict[str, Any], name: str) -> None:
        _clip(folder / name, seed=99)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        captions[name] = "a caption"

    return make


def _holding(data: bytes) -> Make:
    return _made_then(lambda _: data)


def _captioned(caption: Any) -> Make:
    def make(folder: Path, captions: dict[str, Any], name: str) -> None:
        _clip(folder / name, seed=98)
        captions[name] = caption

    return make


def _missing_caption(folder: Path, captions: dict[str, Any], name: str) -> None:
    _clip(folder / name, seed=97)


def _missing_file(folder: Path, captions: dict[str, Any], name: str) -> None:
    captions[name] = "a caption"


def _outside(folder: Path, captions: dict[str, Any], name: str) -> None:
    _clip(folder.parent / "outside" / name, seed=96)
    captions[f"../outside/{name}"] = "a caption"


def _link_loop(folder: Path, captions: dict[str, Any], name: str) -> None:
    (folder / name).symlink_to(folder / name)
    captions[name] = "a caption"


def _fifo(folder: Path, captions: dict[str, Any], name: str) -> None:
    os.mkfifo(folder / name)
    captions[name] = "a caption"


def _folder(folder: Path, captions: dict[str, Any], name: str) -> None:
    (folder / name).mkdir()
    captions[name] = "a caption"


def _one_frame(folder: Path, captions: dict[str, Any], name: str) -> None:
    _clip(folder / name, frames=1)
    captions[name] = "a caption"


def _audio_only(folder: Path, captions: dict[str, Any], name: str) -> None:
    with av.open(str(folder / name), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000, layout="mono")
        samples = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    captions[name] = "a caption"


def _black(folder: Path, captions: dict[str, Any], name: str) -> None:
    _clip(folder / name, level=0)
    captions[name] = "a caption"


def _png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than it has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def _without_index(data: bytes) -> bytes:
    return data.replace(b"moov", b"xxxx")


def _flipped(data: bytes) -> bytes:
    """Every seventh byte of the pictures."""
    at = data.index(b"mdat") + 8
    end = data.find(b"moov", at)
    changed = bytearray(data)
    for place in range(at + 40, end if end > 0 else len(data), 7):
        changed[place] ^= 0xFF
    return bytes(changed)


# kind -> (how it is made, a part of its reason)
KINDS: dict[str, tuple[Make, str]] = {
    "truncated": (_made_then(lambda data: data[: len(data) // 3]), ""),
    "zero-bytes": (_holding(b""), "empty"),
    "zeros": (_holding(bytes(4000)), ""),
    "text": (_holding(b"this is no video\n" * 40), "looks like a text file"),
    "bits-flipped": (_made_then(_flipped), ""),
    "no-moov": (_made_then(_without_index), "no moov"),
    "audio-only": (_audio_only, "no video stream"),
    "playlist": (_holding(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"), "playlist"),
    "zip": (_holding(b"PK\x03\x04" + bytes(range(256)) * 20), ""),
    "size-bomb": (_holding(_png_of(65535, 65535)), ""),
    "fifo": (_fifo, ""),
    "link-loop": (_link_loop, ""),
    "folder": (_folder, ""),
    "one-frame": (_one_frame, "too short"),
    "black": (_black, "black from first to last frame"),
    "caption-empty": (_captioned(""), "caption is empty"),
    "caption-blank": (_captioned(" \t\n "), "caption is empty"),
    "caption-number": (_captioned(7), "not text"),
    "caption-half-pair": (_captioned("half of a pair: \ud800"), "not valid Unicode"),
    "caption-missing": (_missing_caption, "has no caption"),
    "caption-huge": (_captioned("word " * 5000), "characters"),
    "file-missing": (_missing_file, "no such video"),
    "path-outside": (_outside, "leads out of the videos folder"),
}


def collection(root: Path, good: int, bad: list[str]) -> dict[str, str]:
    """root/clips with so many good clips and one bad sample of each kind; name of each bad one -> kind."""
    folder = root / "clips"
    folder.mkdir(parents=True)
    captions: dict[str, Any] = {}
    for number in range(good):
        _clip(folder / f"good{number}.mp4", seed=number)
        captions[f"good{number}.mp4"] = f"clip {number}"
    names = {}
    for number, kind in enumerate(bad):
        name = f"bad{number:03}-{kind}.mp4"
        KINDS[kind][0](folder, captions, name)
        names[name] = kind
    (folder / "captions.json").write_text(json.dumps(captions))
    return names


def look(root: Path, decoders: Decoders, **more: Any) -> Inspection:
    settings = {"path": root / "clips", "frames": 8, "height": 16, "width": 16, "flagged": "drop", **more}
    return inspect(DataConfig.parse(settings), decoders=decoders)


@pytest.fixture(scope="module")
def decoders() -> Any:
    with Decoders(2) as pool:
        yield pool


def test_every_kind_is_named_once_with_its_reason(tmp_path: Path, decoders: Decoders) -> None:
    names = collection(tmp_path, GOOD, list(KINDS))
    found = look(tmp_path, decoders)
    reasons = {Path(item.id).name: item.reason for item in found.dropped}
    assert len(reasons) == len(found.dropped), "each once"
    assert set(reasons) == set(names)
    for name, kind in names.items():
        assert len(reasons[name]) > 5 and KINDS[kind][1] in reasons[name], (kind, reasons[name])
        assert "Traceback" not in reasons[name] and "\n" not in reasons[name]
    assert {sample.clip.id for sample in found.samples} == {f"good{number}.mp4" for number in range(GOOD)}
    assert found.num_clips == GOOD + len(KINDS)


def test_captions_that_contradict_or_are_no_text(tmp_path: Path, decoders: Decoders) -> None:
    collection(tmp_path, 3, [])
    captions = tmp_path / "clips" / "captions.json"
    captions.write_text(captions.read_text().replace("{", '{"good1.mp4": "something else", ', 1))
    (twice,) = look(tmp_path, decoders).dropped
    assert twice.id == "good1.mp4" and "captioned twice in captions.json, differently" in twice.reason
    captions.unlink()
    for number, data in enumerate((b"fine", b"caf\xe9", b"\xff\xfe")):
        (tmp_path / "clips" / f"good{number}.txt").write_bytes(data)
    first, second = look(tmp_path, decoders).dropped
    assert (first.id, second.id) == ("good1.mp4", "good2.mp4")
    assert "not UTF-8 text (at byte 3)" in first.reason and "caption is empty" in second.reason


@pytest.mark.parametrize("percent", [0, 10, 50, 100])
def test_the_run_stops_above_what_is_allowed(tmp_path: Path, decoders: Decoders, percent: int) -> None:
    kinds = [
        "zero-bytes",
        "text",
        "caption-empty",
        "one-frame",
        "no-moov",
        "black",
        "zip",
        "file-missing",
        "folder",
        "fifo",
    ]
    bad = kinds[: percent // 10]
    names = collection(tmp_path, 10 - len(bad), bad)
    found = look(tmp_path, decoders, validation=0)
    assert {Path(item.id).name for item in found.dropped} == set(names)
    for allowed in (0.0, 0.1, 0.49, 0.5, 0.99, 1.0):
        config = DataConfig.parse({"path": tmp_path / "clips", "max_dropped": allowed})
        if percent == 100:
            with pytest.raises(UserError, match="no clip is left to train on"):
                found.enforce_max_dropped(config)
        elif len(bad) / 10 > allowed:
            with pytest.raises(UserError, match=rf"{len(bad)} of 10 clips are dropped \({percent}%\)"):
                found.enforce_max_dropped(config)
        else:
            found.enforce_max_dropped(config)


@pytest.mark.full
@pytest.mark.parametrize("percent", range(5, 100, 5))
def test_any_share_of_bad_samples(tmp_path: Path, decoders: Decoders, percent: int) -> None:
    kinds = list(KINDS)
    bad = [kinds[(7 * number + percent) % len(kinds)] for number in range(percent)]
    names = collection(tmp_path, 100 - percent, bad)
    found = look(tmp_path, decoders)
    assert {Path(item.id).name for item in found.dropped} == set(names)
    assert len({item.id for item in found.dropped}) == len(found.dropped) == percent
    assert found.counts()["used"] == 100 - percent


def test_a_clip_the_codec_makes_nan_of_is_named(run_cli, write_recipe, tmp_path, shapes_clips, monkeypatch):
    """What only encoding shows: the codec overflows on this one clip."""
    data = Path(shutil.copytree(shapes_clips, tmp_path / "data"))
    write_video(data / "videos" / "00005.mp4", np.full((8, 32, 32, 3), 255, np.uint8), 8.0)
    encode = BlockCodec.encode

    def overflowing(self: Any, video: torch.Tensor) -> Any:
        return encode(self, torch.full_like(video, torch.inf) if float(video.min()) > 0.97 else video)

    monkeypatch.setattr(BlockCodec, "encode", overflowing)
    result = run_cli("prepare", write_recipe(data=data, cache=tmp_path / "cache"))
    assert result.code == 0 and "23 encoded now" in result.out
    assert result.out.count("dropped 00005.mp4: the codec pca makes NaN or infinity of it") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, decoders: Decoders) -> None:
    collection(tmp_path, 3, [])
    (tmp_path / "clips" / "good1.mp4").chmod(0)
    (lost,) = look(tmp_path, decoders).dropped
    assert (lost.id, lost.reason) == ("good1.mp4", "cannot be read: Permission denied")
