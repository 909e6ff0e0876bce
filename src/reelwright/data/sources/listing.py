"""Which format a collection has, and its entries and videos brought together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reelwright.data.config import ColumnsConfig, DataConfig
from reelwright.data.sources.entries import EMPTY, Dropped, Entry, clean_caption, load_json
from reelwright.data.sources.json_files import find_captions_json, find_metadata_json, kind_of_json, read_json_object
from reelwright.data.sources.msrvtt import find_msrvtt, read_msrvtt
from reelwright.data.sources.names import read_only
from reelwright.data.sources.shards import find_shards, read_shards, videos_of_shards
from reelwright.data.sources.sidecars import find_sidecars, read_sidecars
from reelwright.data.sources.tables import TABLE_SUFFIXES, find_table, find_videofolder, read_tables
from reelwright.data.sources.videos import Videos, has_videos, videos_of_folder
from reelwright.types import Clip, UsageError


@dataclass(frozen=True)
class Listing:
    """Every video and every caption of a collection ends in exactly one of `clips` and `dropped`.

    What was not asked for (`data.only`, `data.split`) is in neither; with `data.partial` a video without caption and a
    caption without video are counted in `notes`.
    """

    clips: tuple[Clip, ...]  # sorted by id
    dropped: tuple[Dropped, ...]
    format: str  # the format that was read, "auto" settled
    notes: tuple[Dropped, ...] = ()  # clips that are used although something about them had to be set aside
    missing: int = 0  # videos (of films in parts, the parts) without any caption, `null` and an empty list among them
    empty: int = 0  # with a caption that holds blanks at most


@dataclass(frozen=True)
class Format:
    """A way captions come with videos."""

    find: Callable[[Path, Videos], tuple[Path, ...]]  # its files in a folder; none: the folder is not of this format
    read: Callable[[Sequence[Path], Videos, DataConfig], Iterable[Entry | Dropped]]
    looked_for: str
    adds_up: bool  # a video named twice has both captions; otherwise two different ones contradict each other
    splits: bool = False  # it may name splits
    columns: bool = False  # it has columns


FORMATS: dict[str, Format] = {
    "captions_json": Format(find_captions_json, read_json_object, "captions.json", adds_up=False),
    "metadata_json": Format(find_metadata_json, read_json_object, "metadata.json", adds_up=False),
    "txt": Format(find_sidecars, read_sidecars, "a .txt of each video's name", adds_up=False),
    "videofolder": Format(
        find_videofolder, read_tables, "metadata.jsonl, .csv or .parquet", adds_up=True, splits=True, columns=True
    ),
    "msrvtt": Format(find_msrvtt, read_msrvtt, "MSR-VTT's *videodatainfo.json", adds_up=True, splits=True),
    "webdataset": Format(find_shards, read_shards, ".tar shards", adds_up=False),
    "table": Format(
        find_table, read_tables, "a .csv, .tsv, .jsonl or .parquet file", adds_up=True, splits=True, columns=True
    ),
}
SAME_SPLITS = {"val": "validation", "validate": "validation", "valid": "validation", "dev": "validation"}


def read_listing(config: DataConfig) -> Listing:
    """List the collection. UsageError where nothing can be read: a missing folder, no captions, an unclear format."""
    if not config.path.is_dir():
        raise UsageError(f"data.path = {config.path}: no such folder; give the folder that holds the clips")
    videos, name, places = _open(config)
    format = FORMATS[name]
    _refuse_idle_settings(config, name)
    only = None if config.only is None else read_only(config.only, videos, config.partial)
    gathered = _Gathered(videos, format, config, only)
    for item in format.read(places, videos, config):
        gathered.add(item)
    if not gathered.seen:
        raise UsageError(f"{places[0]}: holds no captions")
    gathered.check_split(name)
    clips, dropped, notes = gathered.settle(places[0])
    return Listing(
        clips, tuple(sorted(dropped, key=lambda item: item.id)), name, notes, gathered.missing, gathered.empty
    )


def _open(config: DataConfig) -> tuple[Videos, str, tuple[Path, ...]]:
    """The videos, the format's name, and the files it is read from."""
    place = config.captions if config.captions is not None else config.path
    if not place.exists():
        raise UsageError(f"data.captions = {place}: no such file or folder")
    if not place.is_file() and not place.is_dir():
        raise UsageError(f"data.captions = {place}: neither a regular file nor a folder")
    in_shards = config.format == "webdataset" or place.suffix.lower() == ".tar"
    if in_shards or config.format == "auto" and config.videos is None and _only_shards(place):
        places = (place,) if place.is_file() else find_shards(place)
        return videos_of_shards(config.path, places, config.media), "webdataset", places
    videos = videos_of_folder(config)
    if place.is_file():
        if config.format == "txt":
            raise UsageError(f"data.captions = {place}: format txt reads a folder of .txt files, this is a file")
        return videos, config.format if config.format != "auto" else _format_of_file(place), (place,)
    name, places = _find(place, videos, config)
    return videos, name, places


def _only_shards(place: Path) -> bool:
    return place.is_dir() and bool(find_shards(place)) and not has_videos(place)


def _find(place: Path, videos: Videos, config: DataConfig) -> tuple[str, tuple[Path, ...]]:
    """The one format whose files are in a folder."""
    # Captions that stand in the collection's own folder belong to the videos wherever these are below it.
    texts = place if config.captions is not None else videos.root

    def look(name: str) -> tuple[Path, ...]:
        return FORMATS[name].find(texts if name == "txt" else place, videos)

    if config.format == "txt":
        return "txt", (texts,)
    if config.format != "auto":
        if not (places := look(config.format)):
            what = FORMATS[config.format].looked_for
            raise UsageError(f"data.format = {config.format}: there is no {place / what}; name it as data.captions")
        return config.format, places
    found = {name: places for name in FORMATS if name not in ("webdataset", "table") and (places := look(name))}
    if not found and (places := look("table")):
        found["table"] = places
    if not found:
        looked_for = ", ".join(format.looked_for for format in FORMATS.values())
        raise UsageError(
            f"{place}: no captions found (looked for {looked_for}); "
            "set data.captions to the file or folder that holds them"
        )
    if len(found) > 1:
        raise UsageError(f"{place}: captions in several formats; set data.format to one of {', '.join(found)}")
    return next(iter(found.items()))


def _format_of_file(place: Path) -> str:
    suffix = place.suffix.lower()
    if suffix == ".json":
        return kind_of_json(load_json(place))
    if suffix == ".zip":
        return "msrvtt"
    if suffix in TABLE_SUFFIXES:
        return "videofolder" if place.stem == "metadata" else "table"
    known = ", ".join((".json", ".zip", ".tar", *TABLE_SUFFIXES))
    raise UsageError(f"data.captions = {place}: neither a file of captions ({known}) nor a folder of .txt files")


def _refuse_idle_settings(config: DataConfig, name: str) -> None:
    if config.columns != ColumnsConfig() and not FORMATS[name].columns:
        raise UsageError(f"data.columns has no effect on format {name}: remove it, or set data.format to table")
    if config.split is not None and not FORMATS[name].splits:
        raise UsageError(f"data.split = {config.split}: format {name} names no splits; remove it, or use data.only")


def _split_name(name: str) -> str:
    name = name.strip().lower()
    return SAME_SPLITS.get(name, name)


Part = tuple[float, float]  # start and end in seconds, to the millisecond; 0 and infinity where there is none


class _Gathered:
    """Captions by video and part, and everything that cannot be used."""

    def __init__(self, videos: Videos, format: Format, config: DataConfig, only: set[str] | None) -> None:
        self._videos, self._format, self._config, self._only = videos, format, config, only
        self._split = None if config.split is None else _split_name(config.split)
        self._parts: dict[str, dict[Part, list[Entry]]] = {}
        self._elsewhere: set[str] = set()  # videos of other splits
        self._splits: set[str] = set()
        self._missing: dict[str, str] = {}
        self._dropped: dict[str, str] = {}
        self._folders: dict[Path, str] = {}
        self.seen = False
        self.missing = self.empty = 0  # as in `Listing`, once settled

    def add(self, item: Entry | Dropped) -> None:
        self.seen = True
        if isinstance(item, Dropped):
            if self._only is None or item.id in self._only or item.id not in self._videos:
                self._dropped.setdefault(item.id, item.reason)
            return
        folder = self._folders.get(item.place)
        if folder is None:
            folder = self._folders[item.place] = str(item.place.parent.resolve())
        id, fault = self._videos.locate(item, folder)
        if self._split is not None:
            splits = {_split_name(split) for split in item.splits}
            self._splits |= splits
            if self._split not in splits:
                self._elsewhere.add(id or item.name)
                return
        if id is None:
            if self._only is None or item.name in self._only:
                self._missing[item.name] = fault
        elif self._only is None or id in self._only:
            start = 0.0 if item.start_seconds is None else round(item.start_seconds, 3)
            end = float("inf") if item.end_seconds is None else round(item.end_seconds, 3)
            self._parts.setdefault(id, {}).setdefault((start, end), []).append(item)

    def check_split(self, name: str) -> None:
        """UsageError where the split that is asked for is not there."""
        if self._split is None or self._split in self._splits:
            return
        known = f"it has {', '.join(sorted(self._splits))}" if self._splits else "it names no splits"
        raise UsageError(f"data.split = {self._config.split}: no such split in this {name} collection; {known}")

    def settle(self, place: Path) -> tuple[tuple[Clip, ...], list[Dropped], tuple[Dropped, ...]]:
        """(clips, dropped, notes), each caption checked."""
        clips: list[Clip] = []
        notes: list[Dropped] = []
        uncaptioned: dict[str, str] = {}
        dropped = dict(self._dropped)
        for id in self._videos.ids if self._only is None else sorted(self._only & set(self._videos.ids)):
            if id in dropped or id in self._elsewhere and id not in self._parts:
                continue
            if id in self._videos.refused:
                dropped[id] = self._videos.refused[id]
            elif id not in self._parts:
                uncaptioned[id] = f"has no caption in {place}"
                self.missing += 1
            elif (source := _source(id, self._config.source_pattern)) is None:
                dropped[id] = f"data.source_pattern {self._config.source_pattern!r} does not match its name"
            else:
                for part, entries in sorted(self._parts[id].items()):
                    name = _part_name(id, part)
                    captions, fault, note = self._captions(entries)
                    if fault:
                        dropped[name] = fault
                        continue
                    start, end = part if part != (0.0, float("inf")) else (None, None)
                    end = None if end == float("inf") else end
                    clips.append(Clip(name, self._videos.file(id), captions, source, start, end))
                    notes += [Dropped(name, note)] if note else []
        if self._config.partial:
            notes += _counted(self._missing, f"{len(self._missing)} names of captions mean no usable video", place)
        else:
            dropped |= {name: why for name, why in self._missing.items() if name not in dropped}
        if self._config.partial or self._split is not None:
            notes += _counted(uncaptioned, f"{len(uncaptioned)} videos have no caption there", place)
        else:
            dropped |= uncaptioned
        clips.sort(key=lambda clip: clip.id)
        return tuple(clips), [Dropped(id, why) for id, why in dropped.items()], tuple(notes)

    def _captions(self, entries: list[Entry]) -> tuple[tuple[str, ...], str, str]:
        """(captions, why there is none, what was left out). One that is given twice is drawn twice as often."""
        given = [entry.captions for entry in entries]
        if not self._format.adds_up and len(given) > 1:
            if any(value != given[0] for value in given[1:]):
                said = "twice" if len(given) == 2 else f"{len(given)} times"
                names = ", ".join(entry.name for entry in entries)
                return (), f"captioned {said} in {entries[0].place.name}, differently ({names})", ""
            given = given[:1]
        good: list[str] = []
        faults: list[str] = []
        values = list(_each(given))
        for value in values:
            caption, fault = clean_caption(value)
            if fault is None:
                good.append(caption)
            else:
                faults.append(fault)
        self.missing += all(value is None for value in values)
        self.empty += EMPTY in faults
        why = "; ".join(dict.fromkeys(faults))
        if not good:
            return (), why or "its list of captions is empty", ""
        return tuple(good), "", f"{len(faults)} of its captions left out: {why}" if faults else ""


def _each(given: list[object]) -> Iterator[object]:
    for value in given:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _counted(what: dict[str, str], said: str, place: Path) -> list[Dropped]:
    if not what:
        return []
    first = ", ".join(list(what)[:3])
    return [Dropped(str(place), f"{said}: {first}{' ...' if len(what) > 3 else ''}")]


def _part_name(id: str, part: Part) -> str:
    """A part's id: the video's with its times, `film.mp4@12.5-17` (an open end is left empty)."""
    if part == (0.0, float("inf")):
        return id
    start, end = (f"{seconds:.3f}".rstrip("0").rstrip(".") for seconds in part)
    return f"{id}@{start}-{'' if end == 'inf' else end}"


def _source(id: str, pattern: str | None) -> str | None:
    if pattern is None:
        return id
    match = re.search(pattern, id)
    return match.group(1) if match and match.group(1) else None
