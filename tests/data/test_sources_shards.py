"""WebDataset shards: listed without unpacking, decoded in place, every damage named."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_videos import numbered, numbers_of, write_video
from PIL import Image

from reelwright.data.cache import Cache
from reelwright.data.config import DataConfig
from reelwright.data.decode import BadVideo, probe, read_window
from reelwright.data.inspection import inspect
from reelwright.data.sources import Listing, read_listing, write_clip_manifest
from reelwright.durable import sha256_of
from reelwright.types import FileSlice, Size, UsageError


def _read(path: Path, **values: Any) -> Listing:
    return read_listing(DataConfig.parse({"path": path, **values}))


def _shard(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _reasons(listing: Listing) -> dict[str, str]:
    assert len({item.id for item in listing.dropped}) == len(listing.dropped)
    return {item.id: item.reason for item in listing.dropped}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", numbered(30)).read_bytes()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_pairs_in_shards(tmp_path: Path, format: int) -> None:
    long = "x" * 90 + "/" + "y" * 60 if format == tarfile.USTAR_FORMAT else "x" * 300
    _shard(
        tmp_path / "train-0000.tar",
        [
            ("0001.mp4", b"one"), ("0001.txt", b"of one"), ("0001.json", b'{"caption": "not this one"}'),
            ("sub/0002.json", b'{"text": ["a", "b"]}'), ("sub/0002.webm", b"two"), ("0003.cls", b"7"),
            (f"{long}.mp4", b"long"), (f"{long}.txt", b"of long"), ("._0001.mp4", b"litter"),
            ("film.3.mp4", b"part"), ("film.3.txt", b"of part 3"),
            ("film.4.mp4", b"part"), ("film.4.txt", b"of part 4"),
        ],
        format,
    )  # fmt: skip
    _shard(tmp_path / "more/train-0001.tar", [("0001.mp4", b"another"), ("0001.txt", b"the same key")], format)
    listing = _read(tmp_path)
    assert listing.format == "webdataset" and not listing.dropped
    captions = {clip.id: clip.captions for clip in listing.clips}
    assert captions == {
        "more/train-0001.tar/0001.mp4": ("the same key",),
        "train-0000.tar/0001.mp4": ("of one",),
        "train-0000.tar/film.3.mp4": ("of part 3",),
        "train-0000.tar/film.4.mp4": ("of part 4",),
        "train-0000.tar/sub/0002.webm": ("a", "b"),
        f"train-0000.tar/{long}.mp4": ("of long",),
    }
    for clip, data in zip(listing.clips, (b"another", b"one", b"part", b"part", b"two", b"long"), strict=True):
        assert isinstance(clip.video, FileSlice)
        with clip.video.open() as file:
            assert file.read() == data
    assert list(_read(tmp_path, only=["train-0000.tar/0001.mp4"]).clips) == [listing.clips[1]]
    assert len(_read(tmp_path, captions=tmp_path / "more/train-0001.tar").clips) == 1


def test_a_video_is_decoded_where_it_lies(tmp_path: Path, video: bytes) -> None:
    """Frames, hash and probe are those of the file itself; nothing is written beside the shard."""
    alone = tmp_path / "alone.mp4"
    alone.write_bytes(video)
    folder = tmp_path / "with ,,: and % in its name"
    _shard(folder / "0.tar", [("a.mp4", video), ("a.txt", b"x"), ("b.mp4", b"text"), ("b.txt", b"y")])
    listing = _read(folder)
    good, bad = (clip.video for clip in listing.clips)
    assert sha256_of(good) == sha256_of(alone)
    assert (probe(good).timestamps == probe(alone).timestamps).all()
    size = Size(4, 32, 32)
    frames = read_window(good, size, 10, 0.2)
    assert (frames == read_window(alone, size, 10, 0.2)).all()
    assert numbers_of(frames) == [6, 9, 12, 15]
    with pytest.raises(BadVideo, match="looks like a text file"):
        probe(bad)
    assert [path.name for path in folder.iterdir()] == ["0.tar"]


def test_a_shard_is_inspected_and_cached_like_a_folder(tmp_path: Path, video: bytes) -> None:
    place = _shard(tmp_path / "0.tar", [("a.mp4", video), ("a.txt", b"x"), ("b.mp4", video), ("b.txt", b"y")])
    config = DataConfig.parse({"path": tmp_path, "frames": 4, "width": 32, "height": 32})
    cache = Cache(tmp_path / "cache")
    result = inspect(config, cache)
    assert [sample.clip.id for sample in result.samples] == ["0.tar/a.mp4", "0.tar/b.mp4"]
    assert "the same file as 0.tar/a.mp4" in " ".join(note.reason for note in result.notes)
    hashes = {sample.sha256 for sample in result.samples}
    other = bytearray(place.read_bytes())
    listing = _read(tmp_path)
    second = listing.clips[1].video
    assert isinstance(second, FileSlice)
    other[second.offset + second.num_bytes - 1] ^= 0xFF
    place.write_bytes(bytes(other))
    again = inspect(config, cache)
    assert hashes == {sha256_of(listing.clips[0].video)}
    assert {sample.sha256 for sample in again.samples if sample.clip.id == "0.tar/a.mp4"} == hashes
    assert sha256_of(second) not in hashes


def test_images_in_shards_and_folders_are_clips_of_one_frame(tmp_path: Path) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :, 1] = 200
    members = []
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP"), (".bmp", "BMP")):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, kind)
        members += [(f"a%03d{suffix[1:]}{suffix}", buffer.getvalue()), (f"a%03d{suffix[1:]}.txt", b"green")]
    _shard(tmp_path / "shards/0.tar", members)
    for name, data in members:
        (tmp_path / "loose").mkdir(exist_ok=True)
        (tmp_path / "loose" / name).write_bytes(data)
    for folder in ("shards", "loose"):
        clips = _read(tmp_path / folder).clips
        assert len(clips) == 4
        for clip in clips:
            frames = read_window(clip.video, Size(1, 24, 32), 8)
            assert frames.shape == (1, 24, 32, 3)
            assert np.abs(frames.astype(int) - [0, 200, 0]).max() <= 4, clip.id


def test_members_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    place = tmp_path / "0.tar"
    with tarfile.open(place, "w") as archive:
        for name, data in (
            ("two.mp4", b"v"), ("two.left.mp4", b"v"), ("two.txt", b"x"), ("mute.mp4", b"v"), ("out/../../e.mp4", b"v"),
            ("e.txt", b"x"), ("/abs.mp4", b"v"), ("abs.txt", b"x"), ("bad.mp4", b"v"), ("bad.txt", b"\xe4"),
            ("keys.mp4", b"v"), ("keys.json", b'{"title": "x"}'), ("same.mp4", b"v"), ("same.mp4", b"w"),
            ("same.txt", b"x"), ("list.mp4", b"v"), ("list.json", b'["p", "q"]'), ("huge.mp4", b"v"),
            ("huge.txt", b"x" * (1 << 20) + b"x"), ("rep.mp4", b"v"), ("rep.json", b'{"caption": "x", "caption": "y"}'),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    listing = _read(tmp_path)
    assert [clip.id for clip in listing.clips] == ["0.tar/list.mp4"]
    expected = {
        "two.mp4": "shares its caption with 1 other", "two.left.mp4": "shares its caption", "mute.mp4": "no caption",
        "../e.mp4": "leads out", "abs.mp4": "leads out", "bad.mp4": "not UTF-8", "keys.mp4": "holds none of caption",
        "same.mp4": "two members of this name", "huge.mp4": "larger than", "rep.mp4": "appears twice",
        "link.mp4": "not a plain member",
    }  # fmt: skip
    reasons = _reasons(listing)
    assert reasons.keys() == {f"0.tar/{name}" for name in expected}
    for name, part in expected.items():
        assert part in reasons[f"0.tar/{name}"], (name, reasons[f"0.tar/{name}"])


def test_damaged_shards_are_named_and_what_is_sound_is_used(tmp_path: Path) -> None:
    members = [(f"{k}.{suffix}", data) for k in range(4) for suffix, data in (("txt", b"cap"), ("mp4", b"v" * 700))]
    whole = _shard(tmp_path / "whole.tar", members).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: 2 * (1024 + 1536) + 1024 + 512 + 100])  # inside the third video
    broken = bytearray(whole)
    broken[2 * (1024 + 1536)] ^= 0xFF  # a letter of the third key's header
    (tmp_path / "broken.tar").write_bytes(broken)
    (tmp_path / "zip.tar").write_bytes(b"\x1f\x8b" + b"x" * 600)
    (tmp_path / "empty.tar").write_bytes(b"")
    listing = _read(tmp_path)
    used: dict[str, int] = {}
    for clip in listing.clips:
        used[clip.id.split("/")[0]] = used.get(clip.id.split("/")[0], 0) + 1
    assert used == {"whole.tar": 4, "cut.tar": 2, "broken.tar": 2}
    reasons = _reasons(listing)
    assert reasons.keys() == {"cut.tar", "cut.tar/2.mp4", "broken.tar", "zip.tar", "empty.tar"}
    assert "cut off" in reasons["cut.tar/2.mp4"]
    for name in ("cut.tar", "broken.tar", "zip.tar", "empty.tar"):
        assert "compressed, damaged or cut short" in reasons[name]


def test_a_header_that_asks_for_all_memory_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    good = _shard(tmp_path / "good.tar", [("a.mp4", b"v"), ("a.txt", b"x")]).read_bytes()
    (tmp_path / "bomb.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + good)
    listing = _read(tmp_path)
    assert [clip.id for clip in listing.clips] == ["good.tar/a.mp4"]
    assert "a header of" in _reasons(listing)["bomb.tar"]


def test_nothing_in_shards_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no .tar shards"):
        _read(tmp_path, format="webdataset")
    _shard(tmp_path / "0.tar", [("a.txt", b"x")])
    with pytest.raises(UsageError, match="no videos in the 1 shards"):
        _read(tmp_path)
    with pytest.raises(UsageError, match="names no splits"):
        _shard(tmp_path / "1.tar", [("a.mp4", b"x"), ("a.txt", b"x")])
        _read(tmp_path, split="train")


def test_the_manifest_says_where_in_the_shard(tmp_path: Path) -> None:
    place = _shard(tmp_path / "0.tar", [("a.mp4", b"video"), ("a.txt", b"x")])
    write_clip_manifest(_read(tmp_path).clips, tmp_path / "train.manifest.jsonl")
    line = json.loads((tmp_path / "train.manifest.jsonl").read_text())
    data = place.read_bytes()
    assert line["path"] == str(place.resolve())
    assert data[line["offset"] : line["offset"] + line["num_bytes"]] == b"video"


def test_no_bytes_break_the_reader(tmp_path: Path) -> None:
    whole = _shard(
        tmp_path / "0.tar", [(f"{k}.{s}", b"cap" * 30) for k in range(3) for s in ("mp4", "txt")]
    ).read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 20)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        (tmp_path / "0.tar").write_bytes(bytes(data[: draw.randint(1, len(data))]))
        try:
            listing = _read(tmp_path)
        except UsageError:
            continue
        assert all(isinstance(clip.video, FileSlice) and clip.video.offset < len(data) for clip in listing.clips)
