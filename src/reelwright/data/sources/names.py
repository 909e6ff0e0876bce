"""Lists of video names: JSON, one name a line, or a column of a .csv."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from reelwright.config import nearest
from reelwright.data.sources.entries import decode_text
from reelwright.data.sources.videos import Videos
from reelwright.types import UsageError

NAME_COLUMNS = ("video_id", "videoid", "video", "file_name", "filename", "name", "id")
MAX_LIST_BYTES = 1 << 28


def read_names(path: Path, field: str) -> list[str]:
    """The names of a list. UsageError, which names `field`, where there is none to read."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{field} = {path}: not a regular file")
        if path.stat().st_size > MAX_LIST_BYTES:
            raise UsageError(f"{field} = {path}: larger than {MAX_LIST_BYTES} bytes; it is no list of names")
        text = decode_text(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{field} = {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{field} = {path}: {error}") from None
    if path.suffix.lower() == ".csv":
        return _column_of_names(text, path, field)
    if path.suffix.lower() == ".txt":
        return [name for line in text.splitlines() if (name := line.strip())]
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{field} = {path}: not a JSON list of names: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f'{field} = {path}: a JSON list of names is expected, as ["a.mp4", "b.mp4"]')
    return names


def read_only(given: Path | list[str], videos: Videos, partial: bool) -> set[str]:
    """Ids of the videos asked for. UsageError for a name that is not clear, or, unless `partial`, not there."""
    names = read_names(given, "data.only") if isinstance(given, Path) else given
    if not names:
        raise UsageError("data.only is empty: name at least one clip, or set it to null for all")
    ids: set[str] = set()
    for name in names:
        found = videos.find(name)
        if len(found) != 1:
            if partial and not found:
                continue
            similar = nearest(name, videos.ids)
            hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
            why = f"could mean {', '.join(found[:3])}" if found else f"no such video in {videos.root}{hint}"
            raise UsageError(f"data.only: '{name}': {why}")
        ids.add(found[0])
    if not ids:
        raise UsageError(f"data.only: none of its {len(names)} names is a video in {videos.root}")
    return ids


def _column_of_names(text: str, path: Path, field: str) -> list[str]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    for name in NAME_COLUMNS:
        if name in header:
            column = header.index(name)
            return [row[column].strip() for row in rows[1:] if len(row) > column and row[column].strip()]
    if header and all(len(row) == 1 for row in rows):  # no header: a name a line
        return [row[0].strip() for row in rows]
    raise UsageError(f"{field} = {path}: no column of names; it needs one of {', '.join(NAME_COLUMNS)}")
