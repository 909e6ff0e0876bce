"""The video and image files of a collection, found by path, name or stem."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from reelwright.data.config import DataConfig, Media
from reelwright.data.sources.entries import Entry, is_unicode
from reelwright.types import UsageError, VideoFile

VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".gif", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv",
    ".3gp",
)  # fmt: skip
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # clips of one frame


class Videos:
    """Media by id: the path relative to the root, with forward slashes."""

    def __init__(self, root: Path, found: Mapping[str, VideoFile], refused: Mapping[str, str], media: Media) -> None:
        """`refused` says of ids, in `found` or not, why they cannot be used. UsageError: nothing is left to list."""
        videos = {id for id in found if not _is_image(id)}
        images = found.keys() - videos
        taken = {"auto": videos or images, "videos": videos, "images": images, "all": videos | images}[media]
        self.root = root
        self.refused = {id: reason for id, reason in refused.items() if id in taken or id not in found}
        self.ids = sorted(taken | self.refused.keys())
        self._files = found
        self._left_out = found.keys() - taken
        self._known = set(self.ids)
        self._root = str(root.resolve())
        self._names: dict[str, list[str]] = defaultdict(list)
        for id in self.ids:
            name = posixpath.basename(id)
            for other in {name, posixpath.splitext(name)[0], posixpath.splitext(id)[0]} - {id}:
                self._names[other].append(id)

    def __contains__(self, id: str) -> bool:
        return id in self._known

    def file(self, id: str) -> VideoFile:
        return self._files[id]

    def find(self, name: str) -> list[str]:
        """Ids a name may mean: none, one, or several where it is unclear."""
        plain = posixpath.normpath(name)
        if plain not in self._known and "\\" in plain:
            plain = posixpath.normpath(name.replace("\\", "/"))
        return [plain] if plain in self._known else self._names.get(plain, [])

    def locate(self, entry: Entry, folder: str) -> tuple[str | None, str]:
        """(id, "") of the video an entry means, or (None, why there is none).

        `folder` is the absolute path of the folder the entry's file lies in: names are relative to it first. A name
        that leads out of the videos folder is refused, whatever lies there.
        """
        name = entry.name
        if folder != self._root or name.startswith("/"):
            path = posixpath.normpath(posixpath.join(folder, name))
            if path.startswith(self._root + "/") and path[len(self._root) + 1 :] in self._known:
                return path[len(self._root) + 1 :], ""
        if "/" in name or "\\" in name or name == "..":
            plain = name.replace("\\", "/")
            if plain.startswith("/") or ".." in plain.split("/"):
                return None, f"named in {entry.place.name}, but leads out of the videos folder"
        ids = self.find(name)
        if len(ids) == 1:
            return ids[0], ""
        if ids:
            return None, f"named in {entry.place.name}, but could mean {', '.join(ids[:3])}"
        if name in self._left_out:
            kind = "an image" if _is_image(name) else "a video"
            return None, f"{kind}, left out by data.media: set data.media = all to use videos and images"
        return None, f"named in {entry.place.name}, but no such video in {self.root}"


def videos_of_folder(config: DataConfig) -> Videos:
    """Everything under the videos folder. UsageError where there is nothing."""
    root = _videos_folder(config)
    found: dict[str, VideoFile] = {}
    refused: dict[str, str] = {}
    for id, fault in _scan(root):
        if fault is not None:
            refused[id] = fault
        if fault is None or not fault.startswith("a folder"):
            found[id] = root / id
    videos = Videos(root, found, refused, config.media)
    if not videos.ids:
        kinds = {"videos": VIDEO_SUFFIXES, "images": IMAGE_SUFFIXES}.get(config.media, VIDEO_SUFFIXES + IMAGE_SUFFIXES)
        what = "image" if config.media == "images" else "video"
        raise UsageError(f"{root}: no {what} files ({', '.join(s[1:] for s in kinds)}) in it or below")
    return videos


def is_media(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES


def has_videos(folder: Path) -> bool:
    """Whether a video lies directly in a folder."""
    return any(p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith(".") for p in folder.iterdir())


def _is_image(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _videos_folder(config: DataConfig) -> Path:
    if config.videos is not None:
        if not config.videos.is_dir():
            raise UsageError(f"data.videos = {config.videos}: no such folder; give the folder that holds the videos")
        return config.videos
    inner = config.path / "videos"
    return inner if inner.is_dir() and not has_videos(config.path) else config.path


def _scan(root: Path) -> Iterable[tuple[str, str | None]]:
    """(id, why it cannot be used or None) of every media file below a folder; links are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            stat = (root / prefix).stat()
            if (stat.st_dev, stat.st_ino) in seen:  # a link that leads back up, or a second one to the same folder
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(root / prefix) as entries:
                listed = [(entry.name, *_kind(entry)) for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            if not prefix:
                raise UsageError(f"{root}: cannot be read ({error.strerror})") from None
            yield prefix, f"a folder that cannot be read: {error.strerror}"
            continue
        for name, is_folder, fault in sorted(listed):
            id = f"{prefix}/{name}" if prefix else name
            if is_folder:
                folders.append(id)
            elif is_media(name):
                yield id, fault if is_unicode(id) else "its file name is not valid UTF-8; rename it"


def _kind(entry: os.DirEntry[str]) -> tuple[bool, str | None]:
    """(whether it is a folder, why it is no usable file)."""
    try:
        if entry.is_dir():
            return True, None
        if entry.is_file():
            return False, None
    except OSError:  # a link that leads to itself
        pass
    return False, "a broken link" if entry.is_symlink() else "not a regular file"
