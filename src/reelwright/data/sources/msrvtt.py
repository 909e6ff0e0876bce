"""MSR-VTT (Xu et al., CVPR 2016) in the forms it is handed around in.

`videodatainfo` files hold `videos` (each with a split) and `sentences`, 20 a video and not grouped; the official ones
come zipped. Other copies are lists of {"video": "video0.mp4", "caption": [...]}. "start time" and "end time" say where
a clip was cut from its YouTube film, and are not used: video0.mp4 is the clip.

Splits: train (6,513 videos), validation (497), train_val (7,010), test (2,990) as the annotation says; 9k and 1k (Yu et
al., JSFUSION, ECCV 2018), 7k and 1k-miech (Miech et al., 2018) by the lists that lie beside it.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reelwright.data.config import DataConfig
from reelwright.data.sources.entries import MAX_JSON_BYTES, Dropped, Entry, load_json, parse_json
from reelwright.data.sources.names import read_names
from reelwright.data.sources.videos import Videos
from reelwright.types import UsageError

SPLIT_LISTS = {
    "9k": ("MSRVTT_train.9k.csv", "train_list_jsfusion.txt"),
    "7k": ("MSRVTT_train.7k.csv",),
    "1k": ("MSRVTT_JSFUSION_test.csv", "val_list_jsfusion.txt"),
    "1k-miech": ("test_list_miech.txt",),
}
_GROUPED_NAME = re.compile(r"(msr-?vtt.*|train_?(9k|7k)|test_?1k)\.json", re.IGNORECASE)
_SPLIT_IN_NAME = (("9k", "9k"), ("7k", "7k"), ("1k", "1k"), ("train", "train"), ("val", "validation"), ("test", "test"))


def find_msrvtt(folder: Path, videos: Videos) -> tuple[Path, ...]:
    """The videodatainfo files, zipped or not; where there is none, the files of grouped captions."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    whole = [path for path in files if _is_whole(path.name.lower())]
    return tuple(whole or [path for path in files if _GROUPED_NAME.fullmatch(path.name)])


def read_msrvtt(places: Sequence[Path], videos: Videos, config: DataConfig) -> Iterator[Entry | Dropped]:
    """One entry a video. A sentence that several files repeat under its number counts once."""
    lists = _split_lists(places)
    splits: dict[str, set[str]] = {}
    sentences: dict[str, dict[Any, Any]] = {}
    said_in: dict[str, Path] = {}
    for place in places:
        for item in _items(place):
            if isinstance(item, Dropped):
                yield item
                continue
            name, split, captions = item
            said_in.setdefault(name, place)
            splits.setdefault(name, set()).update(split)
            sentences.setdefault(name, {}).update(captions)
    for name, captions in sentences.items():
        named = splits[name]
        named |= {"train_val"} if named & {"train", "validate", "validation", "val"} else set()
        stem = name.rpartition(".")[0] or name
        named |= {split for split, names in lists.items() if name in names or stem in names}
        yield Entry(name, list(captions.values()), said_in[name], splits=tuple(sorted(named)))


Item = tuple[str, set[str], dict[Any, Any]]  # a video's name, its splits, captions by what numbers them


def _items(place: Path) -> Iterator[Item | Dropped]:
    for name, value in _values(place):
        if isinstance(value, dict) and isinstance(value.get("videos"), list):
            yield from _ungrouped(value, name)
        elif isinstance(value, list):
            yield from _grouped(value, place, name)
        else:
            raise UsageError(f'{place}: not an MSR-VTT annotation ("videos" and "sentences", or a list of captions)')


def _ungrouped(value: dict[str, Any], name: str) -> Iterator[Item | Dropped]:
    sentences = value.get("sentences")
    for number, video in enumerate(value["videos"]):
        if not isinstance(video, dict) or not isinstance(video.get("video_id"), str):
            yield Dropped(f"{name} video {number}", "it has no video_id")
            continue
        split = video.get("split")
        yield video["video_id"], {split} if isinstance(split, str) else set(), {}
    for number, sentence in enumerate(sentences if isinstance(sentences, list) else ()):
        if not isinstance(sentence, dict) or not isinstance(sentence.get("video_id"), str):
            yield Dropped(f"{name} sentence {number}", "it has no video_id")
            continue
        caption, key = sentence.get("caption"), sentence.get("sen_id", f"{name} {number}")
        key = (str(key), caption) if isinstance(caption, str) else (str(key), f"{name} {number}")
        yield sentence["video_id"], set(), {key: caption}


def _grouped(value: list[Any], place: Path, name: str) -> Iterator[Item | Dropped]:
    split = next((split for part, split in _SPLIT_IN_NAME if part in place.stem.lower()), None)
    for number, row in enumerate(value):
        video = row.get("video", row.get("video_id")) if isinstance(row, dict) else None
        if not isinstance(video, str):
            yield Dropped(f"{name} row {number}", 'it has no "video"')
            continue
        captions = row.get("caption", row.get("captions"))
        captions = captions if isinstance(captions, list) else [captions]
        keyed = {f"{name} {number} {k}": caption for k, caption in enumerate(captions)}
        yield video, {split} if split else set(), keyed


def _values(place: Path) -> Iterator[tuple[str, Any]]:
    """(name, JSON value) of a file, or of each annotation in a zip archive."""
    if place.suffix.lower() != ".zip":
        yield place.name, load_json(place)
        return
    try:
        with zipfile.ZipFile(place) as archive:
            members = [info for info in archive.infolist() if info.filename.lower().endswith(".json")]
            if not members:
                raise UsageError(f"{place}: holds no .json file")
            for info in members:
                with archive.open(info) as file:
                    data = file.read(MAX_JSON_BYTES + 1)
                if len(data) > MAX_JSON_BYTES:
                    raise UsageError(f"{place}: {info.filename} unpacks to more than {MAX_JSON_BYTES} bytes")
                yield f"{place.name}/{info.filename}", parse_json(data)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, OSError) as error:
        raise UsageError(f"{place}: not a zip archive that can be read: {error}") from None
    except ValueError as error:
        raise UsageError(f"{place}: {error}") from None


def _split_lists(places: Sequence[Path]) -> dict[str, set[str]]:
    folders = {place.parent for place in places}
    found: dict[str, set[str]] = {}
    for split, names in SPLIT_LISTS.items():
        file = next((f for name in names for folder in folders if (f := folder / name).is_file()), None)
        if file is not None:
            found[split] = set(read_names(file, f"data.split = {split}"))
    return found


def _is_whole(name: str) -> bool:
    marks = ("videodatainfo", "annotation", "msrvtt_data")
    return name.endswith((".json", ".zip")) and any(mark in name for mark in marks)
