"""WebDataset: tar shards whose members share a key up to the first dot, `0001.mp4` with `0001.txt` or `0001.json`.

A video whose name has more dots may have a text of its own: `0001.left.mp4` is captioned by `0001.left.txt`, else by
`0001.txt` if no other video is.
Nothing is unpacked: a video is a slice of its shard (`FileSlice`), and only the headers and the captions are read.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reelwright.data.config import DataConfig, Media
from reelwright.data.sources.entries import MAX_TEXT_BYTES, Dropped, Entry, Repeated, decode_text, parse_json
from reelwright.data.sources.videos import Videos, is_media
from reelwright.types import FileSlice, UsageError

CAPTION_KEYS = ("caption", "captions", "text", "prompt")  # of a .json member, the first one counts
MAX_HEADER_BYTES = 1 << 20  # of a tar header with its extensions


@dataclass
class _Sample:
    videos: dict[str, str] = field(default_factory=dict)  # what stands between key and suffix ("left."), by id
    texts: dict[str, FileSlice] = field(default_factory=dict)  # by all that follows the key: "txt", "left.json"


@dataclass
class _Shards:
    """What the headers of all shards show."""

    files: dict[str, FileSlice] = field(default_factory=dict)  # videos by id
    refused: dict[str, str] = field(default_factory=dict)
    samples: dict[tuple[Path, str], _Sample] = field(default_factory=dict)  # by shard and key
    damaged: dict[str, str] = field(default_factory=dict)  # shards


class ShardVideos(Videos):
    """The videos of tar shards; an id is the shard's path and the member's name."""

    def __init__(self, root: Path, shards: _Shards, media: Media) -> None:
        super().__init__(root, shards.files, shards.refused, media)
        self.shards = shards


def find_shards(folder: Path, videos: Videos | None = None) -> tuple[Path, ...]:
    """The .tar files in a folder and below it."""
    found = []
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(base, name) for name in names if name.lower().endswith(".tar") and not name.startswith(".")]
    return tuple(sorted(path for path in found if path.is_file()))


def videos_of_shards(root: Path, places: Sequence[Path], media: Media) -> ShardVideos:
    """The headers of all shards, read one by one. UsageError where there is no shard or no video in any."""
    if not places:
        raise UsageError(f"{root}: no .tar shards in it or below")
    shards = _Shards()
    for place in places:
        try:
            name = place.relative_to(root).as_posix()
        except ValueError:
            name = place.name
        _read_headers(place, name, shards)
    videos = ShardVideos(root, shards, media)
    if not videos.ids:
        why = "; ".join(f"{name} {fault}" for name, fault in shards.damaged.items())
        raise UsageError(f"{places[0]}: no videos in the {len(places)} shards{': ' + why if why else ''}")
    return videos


def read_shards(places: Sequence[Path], videos: Videos, config: DataConfig) -> Iterator[Entry | Dropped]:
    """The captions of the videos; of .txt and .json the first is taken where both are there."""
    assert isinstance(videos, ShardVideos)
    for name, fault in videos.shards.damaged.items():
        yield Dropped(name, fault)
    for (place, _), sample in videos.shards.samples.items():
        shared = []
        for id, infix in sample.videos.items():
            if id not in videos:
                continue
            text = sample.texts.get(f"{infix}txt", sample.texts.get(f"{infix}json"))
            if text is None or not infix:
                shared.append(id)
            else:
                yield _entry(id, text, place, videos)
        text = sample.texts.get("txt", sample.texts.get("json"))
        if text is not None and len(shared) == 1:
            yield _entry(shared[0], text, place, videos)
        elif text is not None:
            for id in shared:
                yield Dropped(id, f"shares its caption with {len(shared) - 1} other videos of its key")


def _entry(id: str, text: FileSlice, place: Path, videos: Videos) -> Entry | Dropped:
    try:
        return Entry(id, _captions(text), videos.root / place.name)
    except (OSError, ValueError) as error:
        return Dropped(id, f"its {text.suffix} cannot be read: {error}")


def _captions(text: FileSlice) -> Any:
    if text.num_bytes > MAX_TEXT_BYTES:
        raise ValueError(f"it is larger than {MAX_TEXT_BYTES} bytes; a caption is a short text")
    with text.open() as file:
        data = file.read()
    if text.suffix.lower() == ".txt":
        return decode_text(data)
    value = parse_json(data)
    if isinstance(value, Repeated):
        raise ValueError("a name appears twice in its object")
    if isinstance(value, dict):
        for key in CAPTION_KEYS:
            if key in value:
                return value[key]
        raise ValueError(f"it holds none of {', '.join(CAPTION_KEYS)}")
    return value


def _read_headers(place: Path, name: str, shards: _Shards) -> None:
    size = place.stat().st_size
    ids: set[str] = set()
    try:
        with place.open("rb") as file:
            headers: Any = _Headers(file)
            with tarfile.open(fileobj=headers, mode="r:") as opened:
                archive: Any = opened
                while (member := archive.next()) is not None:
                    archive.members = []  # tarfile would keep every header it read
                    base = posixpath.basename(member.name)
                    if not member.isdir() and base and not base.startswith("."):
                        _take(member, place, name, size, ids, shards)
                file.seek(archive.offset)  # tarfile takes a damaged header for the end
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no end mark at byte {archive.offset}")
    except (tarfile.TarError, OSError, RecursionError, ValueError) as error:
        shards.damaged[name] = f"a shard that is compressed, damaged or cut short ({error}); what stands before is used"


def _take(member: tarfile.TarInfo, place: Path, shard: str, size: int, ids: set[str], shards: _Shards) -> None:
    plain = posixpath.normpath(member.name)
    folder, base = posixpath.split(plain)
    key, _, suffix = base.partition(".")
    suffix = suffix.lower()
    is_text = suffix.rpartition(".")[2] in ("txt", "json")
    if not is_text and not is_media(base):
        return
    id = f"{shard}/{plain.lstrip('/')}"
    fault = _fault(member, size)
    if id in ids:
        fault = "its shard holds two members of this name"
    ids.add(id)
    part = FileSlice(place, member.offset_data, member.size, plain)
    if not is_text:
        if fault:
            shards.refused[id] = fault
        shards.files[id] = part
    sample = shards.samples.setdefault((place, posixpath.join(folder, key)), _Sample())
    if not is_text:
        sample.videos[id] = suffix[: suffix.rfind(".") + 1]
    elif fault is None:
        sample.texts[suffix] = part


def _fault(member: tarfile.TarInfo, size: int) -> str | None:
    """Why a member cannot be used."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leads out of the shard"
    if not member.isreg() or member.sparse is not None:
        return "not a plain member of its shard but a link or a sparse file"
    if member.offset_data + member.size > size:
        return "cut off: its shard ends before it does"
    return None


class _Headers:
    """A file as tarfile reads one, which refuses what no header is: its sizes come from the archive itself."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {count} bytes")
        return self._file.read(count)
