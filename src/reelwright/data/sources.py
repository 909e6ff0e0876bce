"""Captioned-video listings: one function a format, every loss named.

    captions_json   {"a/video1.mp4": "caption" | ["caption", ...]}     names as files (an extensionless name works too)
    metadata_json   {"video_001": "caption" | [...]}                   names as stems
    txt             video.mp4 with video.txt beside it, or of the same relative name in the captions folder

A name is looked up as a path relative to the videos folder first, then as a bare file name, then as a stem; it has to
mean one file. White space and control characters in captions become single spaces. Hidden files (`.name`) are no
clips: desktop systems litter them.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from reelwright.config import nearest
from reelwright.data.config import DataConfig
from reelwright.types import Clip, UsageError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".gif")
MAX_CAPTION_CHARACTERS = 10_000
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class Dropped:
    """A clip, or a caption's name, that is not used, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """Every video and every caption of a collection ends in exactly one of `clips` and `dropped`."""

    clips: tuple[Clip, ...]  # sorted by id
    dropped: tuple[Dropped, ...]
    format: str  # the format that was read, "auto" settled
    notes: tuple[Dropped, ...] = ()  # clips that are used although something about them had to be set aside


def read_listing(config: DataConfig) -> Listing:
    """List the collection. UsageError where nothing can be read: a missing folder, no captions, an unclear format."""
    if not config.path.is_dir():
        raise UsageError(f"data.path = {config.path}: no such folder; give the folder that holds the clips")
    videos = _Videos(_videos_folder(config))
    format, place = _find_captions(config, videos)
    captions = _read_sidecars(place, videos) if format == "txt" else _read_json(place, videos)
    only = None if config.only is None else _only(config.only, videos)

    clips: list[Clip] = []
    dropped = [item for item in captions.dropped if only is None or item.id in only]
    refused = {item.id for item in dropped}
    for id in videos.ids if only is None else sorted(only & set(videos.ids)):
        if id in refused:
            continue
        reason = videos.refused.get(id)
        if reason is None and id not in captions.of:
            reason = f"has no caption in {place}"
        if reason is not None:
            dropped.append(Dropped(id, reason))
            continue
        source = _source(id, config.source_pattern)
        if source is None:
            dropped.append(Dropped(id, f"data.source_pattern {config.source_pattern!r} does not match its name"))
            continue
        clips.append(Clip(id, videos.root / id, captions.of[id], source))
    used = {clip.id for clip in clips}
    notes = tuple(note for note in captions.notes if note.id in used)
    return Listing(tuple(clips), tuple(sorted(dropped, key=lambda item: item.id)), format, notes)


class _Videos:
    """The video files under a folder, found by path, name or stem."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.refused: dict[str, str] = {}
        self.ids: list[str] = sorted(self._scan())
        if not self.ids:
            raise UsageError(f"{root}: no video files ({', '.join(s[1:] for s in VIDEO_SUFFIXES)}) in it or below")
        self._known = set(self.ids)
        self._names: dict[str, list[str]] = defaultdict(list)
        for id in self.ids:
            path = PurePosixPath(id)
            for name in {path.name, path.stem, str(path.with_suffix(""))} - {id}:
                self._names[name].append(id)

    def _scan(self) -> Iterable[str]:
        seen: set[tuple[int, int]] = set()
        for folder, folders, files in os.walk(self.root, followlinks=True):
            stat = Path(folder).stat()
            if (stat.st_dev, stat.st_ino) in seen:  # a link that leads back up
                folders.clear()
                continue
            seen.add((stat.st_dev, stat.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                path = Path(folder, name)
                if name.startswith(".") or path.suffix.lower() not in VIDEO_SUFFIXES:
                    continue
                id = path.relative_to(self.root).as_posix()
                if not path.is_file():
                    self.refused[id] = "a broken link" if path.is_symlink() else "not a regular file"
                elif not _is_unicode(id):
                    self.refused[id] = "its file name is not valid UTF-8; rename it"
                yield id

    def find(self, name: str) -> list[str]:
        """Ids a name may mean: none, one, or several where it is unclear."""
        plain = str(PurePosixPath(name))
        return [plain] if plain in self._known else self._names.get(plain, [])


class _Captions:
    """Captions by clip id, gathered from one place."""

    def __init__(self) -> None:
        self.of: dict[str, tuple[str, ...]] = {}
        self.dropped: list[Dropped] = []
        self.notes: list[Dropped] = []

    def add(self, id: str, values: Any) -> None:
        """Take one caption or a list of them; names what cannot be used."""
        good: list[str] = []
        faults: list[str] = []
        for value in values if isinstance(values, list) else [values]:
            caption, fault = clean_caption(value)
            if fault is not None:
                faults.append(fault)
            elif caption not in good:
                good.append(caption)
        if not good:
            self.dropped.append(Dropped(id, "; ".join(dict.fromkeys(faults)) or "its list of captions is empty"))
            return
        self.of[id] = tuple(good)
        if faults:
            self.notes.append(
                Dropped(id, f"{len(faults)} of its captions left out: {'; '.join(dict.fromkeys(faults))}")
            )


def clean_caption(value: Any) -> tuple[str, str | None]:
    """(caption with single spaces, None), or ("", why it cannot be used)."""
    if not isinstance(value, str):
        return "", f"its caption is not text but {json.dumps(value)[:40]}"
    caption = _BLANKS.sub(" ", value).strip(" \ufeff")
    if not caption:
        return "", "its caption is empty"
    if len(caption) > MAX_CAPTION_CHARACTERS:
        return "", f"its caption has {len(caption)} characters, more than {MAX_CAPTION_CHARACTERS}"
    if not _is_unicode(caption):
        return "", "its caption is not valid Unicode (half a surrogate pair)"
    return caption, None


def _videos_folder(config: DataConfig) -> Path:
    if config.videos is not None:
        if not config.videos.is_dir():
            raise UsageError(f"data.videos = {config.videos}: no such folder; give the folder that holds the videos")
        return config.videos
    inner = config.path / "videos"
    beside = any(p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith(".") for p in config.path.iterdir())
    return inner if inner.is_dir() and not beside else config.path


def _find_captions(config: DataConfig, videos: _Videos) -> tuple[str, Path]:
    """The format and the file or folder it is read from."""
    place = config.captions if config.captions is not None else config.path
    if not place.exists():
        raise UsageError(f"data.captions = {place}: no such file or folder")
    if place.is_file():
        if config.format == "txt":
            raise UsageError(f"data.captions = {place}: format txt reads a folder of .txt files, this is a file")
        if config.format == "auto" and place.suffix.lower() != ".json":
            raise UsageError(f"data.captions = {place}: neither a .json file nor a folder of .txt files")
        return (config.format if config.format != "auto" else _kind_of_json(place)), place
    files = {"captions_json": place / "captions.json", "metadata_json": place / "metadata.json"}
    # Captions that stand in the collection's own folder belong to the videos wherever these are below it.
    texts = place if config.captions is not None else videos.root
    if config.format == "txt":
        return "txt", texts
    if config.format != "auto":
        file = files[config.format]
        if not file.is_file():
            raise UsageError(f"data.format = {config.format}: there is no {file}; name the file as data.captions")
        return config.format, file
    found = {name: file for name, file in files.items() if file.is_file()}
    if any(_sidecar(texts, id).is_file() for id in videos.ids):
        found["txt"] = texts
    if not found:
        raise UsageError(
            f"{place}: no captions found (looked for captions.json, metadata.json, and a .txt of each video's name); "
            "set data.captions to the file or folder that holds them"
        )
    if len(found) > 1:
        raise UsageError(f"{place}: captions in several formats; set data.format to one of {', '.join(found)}")
    return next(iter(found.items()))


def _kind_of_json(place: Path) -> str:
    """Both JSON formats are read alike; which name is given back depends on whether its names are files."""
    pairs = _load_json(place)
    with_suffix = any(PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES for name, _ in pairs)
    return "captions_json" if with_suffix else "metadata_json"


def _read_json(place: Path, videos: _Videos) -> _Captions:
    captions = _Captions()
    values: dict[str, list[Any]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    for name, value in _load_json(place):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
            captions.dropped.append(Dropped(name, f"named in {place.name}, but leads out of the videos folder"))
            continue
        ids = videos.find(name)
        if len(ids) != 1:
            why = f"could mean {', '.join(ids[:3])}" if ids else f"no such video in {videos.root}"
            captions.dropped.append(Dropped(name, f"named in {place.name}, but {why}"))
            continue
        values[ids[0]].append(value)
        names[ids[0]].append(name)
    for id, given in values.items():
        if any(value != given[0] for value in given[1:]):
            said = "twice" if len(given) == 2 else f"{len(given)} times"
            captions.dropped.append(
                Dropped(id, f"captioned {said} in {place.name}, differently ({', '.join(names[id])})")
            )
        else:
            captions.add(id, given[0])
    if not captions.of and not captions.dropped:
        raise UsageError(f"{place}: holds no captions")
    return captions


def _read_sidecars(folder: Path, videos: _Videos) -> _Captions:
    """A sidecar is one caption, whatever its line breaks."""
    captions = _Captions()
    taken: dict[Path, str] = {}
    for id in videos.ids:
        file = _sidecar(folder, id)
        if not file.is_file():
            continue
        if file in taken:
            captions.dropped.append(Dropped(id, f"shares {file.name} with {taken[file]}"))
            continue
        taken[file] = id
        try:
            captions.add(id, _decode_text(file.read_bytes()))
        except (OSError, ValueError) as error:
            captions.dropped.append(Dropped(id, f"{file.name} cannot be read: {error}"))
    if not taken:
        raise UsageError(f"{folder}: no .txt file of any video's name")
    return captions


def _sidecar(folder: Path, id: str) -> Path:
    return folder / PurePosixPath(id).with_suffix(".txt")


def _load_json(place: Path) -> list[tuple[str, Any]]:
    """The pairs of a JSON object, names that appear twice included."""
    try:
        text = _decode_text(place.read_bytes())
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except OSError as error:
        raise UsageError(f"{place}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise UsageError(f"{place}: nested too deeply to be captions") from None
    except ValueError as error:
        raise UsageError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(pairs, _Pairs):
        raise UsageError(f'{place}: holds a {type(pairs).__name__}, captions are an object {{"video.mp4": "caption"}}')
    return list(pairs)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs: a dict would silently keep the last of two equal names."""


def _decode_text(data: bytes) -> str:
    """UTF-8, with or without BOM, or UTF-16 with one. ValueError says where it is not."""
    marked_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    if not marked_utf16 and b"\x00" in data:
        raise ValueError("not UTF-8 text: it holds zero bytes; save it as UTF-8")
    try:
        return data.decode("utf-16" if marked_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        name = "UTF-16" if marked_utf16 else "UTF-8"
        raise ValueError(f"not {name} text (at byte {error.start}); save it as UTF-8") from None


def _only(given: Path | list[str], videos: _Videos) -> set[str]:
    """Ids of the clips asked for. UsageError for a name that is not there or not clear."""
    if isinstance(given, Path):
        try:
            names = json.loads(_decode_text(given.read_bytes()))
        except OSError as error:
            raise UsageError(f"data.only = {given}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"data.only = {given}: not a JSON list of names: {error}") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError(f'data.only = {given}: a JSON list of names is expected, as ["a.mp4", "b.mp4"]')
    else:
        names = given
    if not names:
        raise UsageError("data.only is empty: name at least one clip, or set it to null for all")
    ids: set[str] = set()
    for name in names:
        found = videos.find(name)
        if len(found) != 1:
            similar = nearest(name, videos.ids)
            hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
            why = f"could mean {', '.join(found[:3])}" if found else f"no such video in {videos.root}{hint}"
            raise UsageError(f"data.only: '{name}': {why}")
        ids.add(found[0])
    return ids


def _source(id: str, pattern: str | None) -> str | None:
    if pattern is None:
        return id
    match = re.search(pattern, id)
    return match.group(1) if match and match.group(1) else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
