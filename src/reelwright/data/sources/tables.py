"""Captions in tables: Hugging Face's videofolder (metadata.*), and any other table whose columns are known or named.

The columns of WebVid, Panda-70M, MiraData, MSR-VTT's 1k list and our own manifests are known; other tables, OpenVid's
among them, are read by the usual names of columns, or by `data.columns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reelwright.data.config import ColumnsConfig, DataConfig
from reelwright.data.sources.entries import Dropped, Entry
from reelwright.data.sources.rows import open_table
from reelwright.data.sources.seconds import parse_list, parse_seconds, parse_span, parse_spans
from reelwright.data.sources.videos import Videos
from reelwright.types import UsageError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class Columns(NamedTuple):
    """Names of the columns that are read; the times and the split are optional."""

    video: str
    captions: tuple[str, ...]
    start: str | None = None
    end: str | None = None
    timestamp: str | None = None
    split: str | None = None

    def used(self) -> list[str]:
        return [name for name in (self.video, *self.captions, *self[2:]) if isinstance(name, str)]


KNOWN_TABLES = {
    "Reelwright manifest": Columns("video", ("captions",), "start_seconds", "end_seconds", None, "split"),
    "Panda-70M": Columns("videoID", ("caption",), timestamp="timestamp"),
    "MiraData": Columns("video_id", ("dense_caption",), "start_timestep", "end_timestep"),
    "WebVid": Columns("videoid", ("name",)),
    "MSR-VTT 1k": Columns("video_id", ("sentence",)),
}
VIDEO_COLUMNS = (
    "file_name", "video_file_name", "video", "video_path", "path", "file", "filename", "videoid", "video_id", "clip",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt", "description", "sentence")
TIME_COLUMNS = (("start_seconds", "end_seconds"), ("start", "end"))


def find_videofolder(folder: Path, videos: Videos) -> tuple[Path, ...]:
    """metadata.* in a folder, in the videos folder, or in folders directly below (a split each)."""
    folders = dict.fromkeys([folder, videos.root, *sorted(p for p in folder.iterdir() if p.is_dir())])
    return tuple(file for each in folders for name in METADATA_FILES if (file := each / name).is_file())


def find_table(folder: Path, videos: Videos) -> tuple[Path, ...]:
    """The one table in a folder. UsageError where there are several."""
    suffixes = tuple(suffix for suffix in TABLE_SUFFIXES if suffix != ".txt")
    files = sorted(
        path for path in folder.iterdir()
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith(".")
    )  # fmt: skip
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:5])
        raise UsageError(f"{folder}: several tables ({names}); set data.captions to the one that holds the captions")
    return tuple(files)


def read_tables(places: Sequence[Path], videos: Videos, config: DataConfig) -> Iterator[Entry | Dropped]:
    """An entry a row, or a part a row names. UsageError where the columns are not clear."""
    for place in places:
        table = open_table(place)
        columns = resolve_columns(table.columns, config.columns, place)
        if place.suffix.lower() == ".parquet":
            table = open_table(place, columns.used())
        folder_split = (place.parent.name,) if place.name in METADATA_FILES and columns.split is None else ()
        for row in table.rows:
            if isinstance(row, Dropped):
                yield row
                continue
            where, cells = row
            try:
                splits = folder_split if columns.split is None else (str(cells.get(columns.split)),)
                yield from _entries(where, cells, columns, place, splits)
            except ValueError as error:
                yield Dropped(where, str(error))


def resolve_columns(header: Sequence[str], given: ColumnsConfig, place: Path) -> Columns:
    """Which columns of a table are read: those named, else those of a known table, else those of a usual name.

    Where the column of videos is named, no times are read but those that are named too. UsageError where the table
    lacks a column, has it twice, or leaves open which one is meant.
    """
    columns = _chosen(_known(header) or _usual(header, place, given), given)
    for name in columns.used():
        if header.count(name) != 1:
            what = "no column" if name not in header else "more than one column"
            raise UsageError(f"{place}: {what} {name!r}; it has {', '.join(map(repr, header))}; set data.columns")
    return columns


def _known(header: Sequence[str]) -> Columns | None:
    for columns in KNOWN_TABLES.values():
        # A table that also has another column of captions is somebody's own.
        if set(columns.used()) <= set(header) and set(_captions(header)) <= set(columns.captions):
            return columns
    return None


def _usual(header: Sequence[str], place: Path, given: ColumnsConfig) -> Columns:
    """The usual names of what is not given."""
    shown = ", ".join(map(repr, header[:20])) or "none"
    videos = [name for usual in VIDEO_COLUMNS for name in header if name.lower() == usual]
    if given.video is None and not videos:
        raise UsageError(f"{place}: no column of videos known among {shown}; set data.columns.video")
    captions = _captions(header)
    if given.caption is None and len(captions) != 1:
        said = f"{' and '.join(captions)} could be" if captions else f"none of {shown} is known to be"
        raise UsageError(f"{place}: {said} the captions; set data.columns.caption to one, or to a list of them")
    times = next((pair for pair in TIME_COLUMNS if set(pair) <= set(header)), (None, None))
    split = "split" if "split" in header else None
    return Columns(given.video or videos[0], (captions[0],) if captions else (), *times, None, split)


def _chosen(columns: Columns, given: ColumnsConfig) -> Columns:
    """The columns found, with those that are named in their place."""
    if given.caption is not None:
        columns = columns._replace(
            captions=(given.caption,) if isinstance(given.caption, str) else tuple(given.caption)
        )
    times = (given.start, given.end, given.timestamp)
    if given.video is not None or any(times):
        columns = columns._replace(start=given.start, end=given.end, timestamp=given.timestamp)
    return columns._replace(video=given.video or columns.video, split=given.split or columns.split)


def _captions(header: Sequence[str]) -> list[str]:
    return [name for name in header if name.lower() in CAPTION_COLUMNS]


def _entries(
    where: str, cells: dict[str, Any], columns: Columns, place: Path, splits: tuple[str, ...]
) -> Iterator[Entry | Dropped]:
    """ValueError says what is wrong with a whole row."""
    name = _name(cells.get(columns.video), columns.video)
    captions: list[Any] = []
    for column in columns.captions:
        if column not in cells:
            raise ValueError(f"it has no {column!r}")
        value = cells[column]
        captions += value if isinstance(value, list) else _listed(value)
    if columns.timestamp is not None:
        spans = parse_spans(cells.get(columns.timestamp))
        if len(captions) != len(spans):
            raise ValueError(f"{len(spans)} timestamps but {len(captions)} captions")
        for number, (span, caption) in enumerate(zip(spans, captions, strict=True), start=1):
            try:
                yield Entry(name, caption, place, *parse_span(span), splits)
            except ValueError as error:
                yield Dropped(f"{where} part {number}", str(error))
        return
    start = _seconds(cells, columns.start)
    end = _seconds(cells, columns.end)
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"it ends at {end:g} s, not after its start at {start or 0.0:g} s")
    yield Entry(name, captions, place, start, end, splits)


def _seconds(cells: dict[str, Any], column: str | None) -> float | None:
    value = None if column is None else cells.get(column)
    return None if value is None or value == "" else parse_seconds(value)


def _listed(value: Any) -> list[Any]:
    """The captions of one cell: several where it is the text of a list of texts (`[music] a man sings` is none)."""
    text = value.strip() if isinstance(value, str) else ""
    if text[:1] == "[" and text[1:].lstrip()[:1] in ("'", '"') and text[-1:] == "]":
        try:
            return parse_list(text)
        except ValueError:
            pass
    return [value]


def _name(value: Any, column: str) -> str:
    """The video's name in a cell: text, a number (WebVid's ids), or the struct of Hugging Face's Video."""
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            raise ValueError(f"{column!r} holds the video itself; write the videos out as files")
        value = value.get("path")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"it names no video ({column!r} is {value!r:.40})")
    return value.strip()
