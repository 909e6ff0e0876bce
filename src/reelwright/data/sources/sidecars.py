"""Captions in .txt files: video.mp4 with video.txt beside it, or of the same relative name in the captions folder."""

from __future__ import annotations

import os.path
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from reelwright.data.config import DataConfig
from reelwright.data.sources.entries import Dropped, Entry, read_caption_file
from reelwright.data.sources.videos import Videos
from reelwright.types import UsageError


def find_sidecars(folder: Path, videos: Videos) -> tuple[Path, ...]:
    return (folder,) if any(Path(_sidecar(str(folder), id)).exists() for id in videos.ids) else ()


def read_sidecars(places: Sequence[Path], videos: Videos, config: DataConfig) -> Iterator[Entry | Dropped]:
    """A sidecar is one caption, whatever its line breaks."""
    (folder,) = places
    base, place = str(folder), videos.root / "its .txt file"
    taken: dict[str, str] = {}
    for id in videos.ids:
        file = _sidecar(base, id)
        if not os.path.lexists(file):
            continue
        name = posixpath.basename(file)
        if file in taken:
            yield Dropped(id, f"shares {name} with {taken[file]}")
            continue
        taken[file] = id
        try:
            yield Entry(id, read_caption_file(Path(file)), place)
        except (OSError, ValueError) as error:
            yield Dropped(id, f"{name} cannot be read: {error}")
    if not taken:
        raise UsageError(f"{folder}: no .txt file of any video's name")


def _sidecar(folder: str, id: str) -> str:
    return f"{folder}/{posixpath.splitext(id)[0]}.txt"
