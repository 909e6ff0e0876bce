"""MSR-VTT: the real annotation files whole, and its forms on small made ones."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reelwright.data.config import DataConfig
from reelwright.data.sources import Listing, read_listing
from reelwright.types import UsageError


def _read(path: Path, **values: Any) -> Listing:
    return read_listing(DataConfig.parse({"path": path, **values}))


def _annotation(count: int = 4) -> dict[str, Any]:
    splits = ["train", "train", "validate", "test"]
    return {
        "info": {"year": "2016"},
        "videos": [
            {"video_id": f"video{k}", "id": k, "split": splits[k], "category": 1, "start time": 9.5, "end time": 12.0}
            for k in range(count)
        ],
        "sentences": [
            {"sen_id": 2 * k + s, "video_id": f"video{k}", "caption": f"sentence {s} of {k}"}
            for s in range(2)
            for k in range(count)
        ],
    }


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    for k in range(4):
        folder = tmp_path / ("TestVideo" if k == 3 else "TrainValVideo")
        folder.mkdir(exist_ok=True)
        (folder / f"video{k}.mp4").touch()
    return tmp_path


@pytest.fixture(scope="module")
def ten_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the names of MSR-VTT's videos, which are not to be had here."""
    folder = tmp_path_factory.mktemp("msrvtt")
    for k in range(10_000):
        (folder / f"video{k}.mp4").touch()
    return folder


PUBLISHED = {
    None: (10_000, 200_000),
    "train": (6_513, 130_260),
    "validate": (497, 9_940),
    "train_val": (7_010, 140_200),
    "test": (2_990, 59_800),
    "9k": (9_000, 180_000),
    "1k": (1_000, 20_000),
    "7k": (7_010, 140_200),
    "1k-miech": (1_000, 20_000),
}


@pytest.mark.parametrize("split", [None, *(pytest.param(name, marks=pytest.mark.full) for name in PUBLISHED if name)])
def test_the_published_counts(ten_thousand: Path, shared: Callable[[str], Path], split: str | None) -> None:
    listing = _read(ten_thousand, captions=shared("annotations/msr-vtt"), split=split)
    assert listing.format == "msrvtt"
    assert (len(listing.clips), sum(len(clip.captions) for clip in listing.clips)) == PUBLISHED[split]
    assert not listing.dropped and not listing.notes
    assert all(len(clip.captions) == 20 and clip.start_seconds is None for clip in listing.clips)


@pytest.mark.full
def test_the_9k_and_1k_splits_share_nothing(ten_thousand: Path, shared: Callable[[str], Path]) -> None:
    folder = shared("annotations/msr-vtt")
    ids = {
        split: {clip.id for clip in _read(ten_thousand, captions=folder, split=split).clips} for split in ("9k", "1k")
    }
    assert not ids["9k"] & ids["1k"] and len(ids["9k"] | ids["1k"]) == 10_000


def test_the_other_real_files(ten_thousand: Path, shared: Callable[[str], Path]) -> None:
    folder = shared("annotations/msr-vtt")
    grouped = _read(ten_thousand, captions=folder / "msrvtt_caption_test.json", partial=True)
    official = _read(ten_thousand, captions=folder / "test_videodatainfo.json.zip", partial=True)
    captions = {clip.id: sorted(clip.captions) for clip in official.clips}
    assert len(captions) == 2_990
    assert {clip.id: sorted(clip.captions) for clip in grouped.clips} == captions
    retrieval = _read(ten_thousand, captions=folder / "MSRVTT_JSFUSION_test.csv", partial=True)
    assert len(retrieval.clips) == 1_000 and all(len(clip.captions) == 1 for clip in retrieval.clips)
    by_list = _read(ten_thousand, captions=folder / "train_val_annotation.zip", only=folder / "train_list_full.txt")
    assert len(by_list.clips) == 6_513


@pytest.mark.parametrize("name", ["train_val_videodatainfo.json", "MSRVTT_data.json"])
def test_videos_and_sentences(collection: Path, name: str) -> None:
    (collection / name).write_text(json.dumps(_annotation()))
    listing = _read(collection)
    assert listing.format == "msrvtt"
    assert [(clip.id, clip.captions) for clip in listing.clips] == [
        ("TestVideo/video3.mp4", ("sentence 0 of 3", "sentence 1 of 3")),
        *((f"TrainValVideo/video{k}.mp4", (f"sentence 0 of {k}", f"sentence 1 of {k}")) for k in range(3)),
    ]
    assert [clip.id for clip in _read(collection, split="val").clips] == ["TrainValVideo/video2.mp4"]
    assert len(_read(collection, split="train_val").clips) == 3
    with pytest.raises(UsageError, match="data.split = 9k: no such split.*it has test, train, train_val, validation"):
        _read(collection, split="9k")
    (collection / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo3\n")
    assert len(_read(collection, split="9k").clips) == 2


def test_what_is_there_zipped_and_unzipped_counts_once(collection: Path) -> None:
    text = json.dumps(_annotation())
    (collection / "train_val_videodatainfo.json").write_text(text)
    with zipfile.ZipFile(collection / "train_val_annotation.zip", "w") as archive:
        archive.writestr("readme.txt", "MSR-VTT 10K")
        archive.writestr("train_val_videodatainfo.json", text)
    listing = _read(collection)
    assert [len(clip.captions) for clip in listing.clips] == [2, 2, 2, 2]


def test_lists_of_captions(collection: Path) -> None:
    (collection / "train_9k.json").write_text(json.dumps([{"video": "video0.mp4", "caption": ["x", "y", "x"]}]))
    (collection / "test_1k.json").write_text(json.dumps([{"video": "video3.mp4", "caption": "z"}, {"caption": "w"}]))
    listing = _read(collection)
    assert {clip.id: clip.captions for clip in listing.clips} == {
        "TrainValVideo/video0.mp4": ("x", "y", "x"),
        "TestVideo/video3.mp4": ("z",),
    }
    assert 'it has no "video"' in {item.id: item.reason for item in listing.dropped}["test_1k.json row 1"]
    assert [clip.captions for clip in _read(collection, split="1k").clips] == [("z",)]


def test_faults_are_named(collection: Path) -> None:
    value = _annotation()
    value["sentences"][0] = {"sen_id": 0, "video_id": "video0", "caption": None}
    value["sentences"][1] = "nonsense"
    value["videos"].append({"video_id": "video9", "split": "train"})
    value["videos"].append(7)
    value["sentences"].append({"sen_id": 99, "video_id": "video8", "caption": "not among the videos"})
    (collection / "train_val_videodatainfo.json").write_text(json.dumps(value))
    listing = _read(collection)
    reasons = {item.id: item.reason for item in listing.dropped}
    assert reasons.keys() == {
        "train_val_videodatainfo.json video 5", "train_val_videodatainfo.json sentence 1", "video9", "video8",
    }  # fmt: skip
    assert [len(clip.captions) for clip in listing.clips] == [2, 1, 1, 2]
    assert "not text but null" in listing.notes[0].reason


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.zip", b"PK nothing", "not a zip archive"),
        ("train_val_videodatainfo.json", b"{}", "not an MSR-VTT annotation"),
        ("train_val_videodatainfo.json", b"{", "not valid JSON"),
    ],
)
def test_unreadable_annotations_are_one_message(collection: Path, name: str, data: bytes, message: str) -> None:
    (collection / name).write_bytes(data)
    with pytest.raises(UsageError, match=message):
        _read(collection, captions=collection / name, format="msrvtt")


def test_zips_without_json_or_cut_short(collection: Path) -> None:
    place = collection / "train_val_annotation.zip"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(UsageError, match="holds no .json file"):
        _read(collection)
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a_videodatainfo.json", json.dumps(_annotation()))
    whole = place.read_bytes()
    for at in range(0, len(whole), 41):
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(UsageError):
            _read(collection, partial=True)
