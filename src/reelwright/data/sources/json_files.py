"""captions.json and metadata.json: one object, {"a/video1.mp4": "caption" | ["caption", ...]}.

The first names its videos as files, the second by stem; both are read alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reelwright.data.config import DataConfig
from reelwright.data.sources.entries import Entry, Repeated, load_json
from reelwright.data.sources.videos import Videos, is_media
from reelwright.types import UsageError


def find_captions_json(folder: Path, videos: Videos) -> tuple[Path, ...]:
    return _existing(folder / "captions.json")


def find_metadata_json(folder: Path, videos: Videos) -> tuple[Path, ...]:
    return _existing(folder / "metadata.json")


def read_json_object(places: Sequence[Path], videos: Videos, config: DataConfig) -> Iterator[Entry]:
    """An entry a name, also of one that is there twice. UsageError where a file is no JSON object."""
    for place in places:
        value = load_json(place)
        if isinstance(value, dict):
            value = list(value.items())
        elif not isinstance(value, Repeated):
            raise UsageError(
                f'{place}: holds a {type(value).__name__}, captions are an object {{"video.mp4": "caption"}}'
            )
        for name, captions in value:
            yield Entry(name, captions, place)


def kind_of_json(value: Any) -> str:
    """The format of a JSON file's value."""
    if isinstance(value, dict) and isinstance(value.get("videos"), list) and isinstance(value.get("sentences"), list):
        return "msrvtt"
    if isinstance(value, list) and not isinstance(value, Repeated) and value and isinstance(value[0], dict | Repeated):
        return "table"
    names = [name for name, _ in value] if isinstance(value, Repeated) else value if isinstance(value, dict) else ()
    return "captions_json" if any(is_media(name) for name in names if isinstance(name, str)) else "metadata_json"


def _existing(file: Path) -> tuple[Path, ...]:
    return (file,) if file.is_file() else ()
