"""Listings: every format, every bad input named with its reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reelwright.data.config import DataConfig
from reelwright.data.sources import Listing, read_listing, write_clip_manifest
from reelwright.types import UsageError, UserError


def _videos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")
    return folder


def _read(path: Path, **values: Any) -> Listing:
    return read_listing(DataConfig.parse({"path": path, **values}))


def _captions(listing: Listing) -> dict[str, tuple[str, ...]]:
    return {clip.id: clip.captions for clip in listing.clips}


def _reasons(listing: Listing) -> dict[str, str]:
    assert len({item.id for item in listing.dropped}) == len(listing.dropped), "a clip is dropped once"
    return {item.id: item.reason for item in listing.dropped}


def test_captions_json_with_one_or_many_captions(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.AVI", "sub/c.mov", "d.webm")
    given = {"a.mp4": " one\n caption ", "b.AVI": ["first", "second", "first"], "c.mov": "deep", "d": "no extension"}
    (tmp_path / "captions.json").write_text(json.dumps(given))
    listing = _read(tmp_path)
    assert listing.format == "captions_json"
    assert _captions(listing) == {
        "a.mp4": ("one caption",),
        "b.AVI": ("first", "second", "first"),  # what is said twice is drawn twice as often
        "d.webm": ("no extension",),
        "sub/c.mov": ("deep",),
    }
    assert not listing.dropped
    assert all(clip.source == clip.id and clip.video == tmp_path / clip.id for clip in listing.clips)


def test_metadata_json_by_stem(tmp_path: Path) -> None:
    _videos(tmp_path, "video_001.mp4", "video_002.mkv", "v.1.5.gif")
    given = {"video_001": "green circle", "video_002": "blue square", "v.1.5": "dots in the name"}
    (tmp_path / "metadata.json").write_text(json.dumps(given))
    listing = _read(tmp_path)
    assert listing.format == "metadata_json"
    assert _captions(listing) == {
        "video_001.mp4": ("green circle",),
        "video_002.mkv": ("blue square",),
        "v.1.5.gif": ("dots in the name",),
    }


def test_sidecars(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "sub/b.m4v", "c.mp4")
    (tmp_path / "a.txt").write_text("two\nlines\n")
    (tmp_path / "sub/b.txt").write_bytes("\ufeffmarked".encode())
    (tmp_path / "README.txt").write_text("not a sidecar")
    listing = _read(tmp_path)
    assert listing.format == "txt"
    assert _captions(listing) == {"a.mp4": ("two lines",), "sub/b.m4v": ("marked",)}
    assert "no caption" in _reasons(listing)["c.mp4"]


def test_videos_and_captions_in_different_folders(tmp_path: Path) -> None:
    videos, texts = _videos(tmp_path / "v", "a.mp4", "s/b.mp4"), tmp_path / "t"
    (texts / "s").mkdir(parents=True)
    (texts / "a.txt").write_text("of a")
    (texts / "s/b.txt").write_text("of b")
    assert _captions(_read(tmp_path, videos=videos, captions=texts)) == {"a.mp4": ("of a",), "s/b.mp4": ("of b",)}
    (texts / "any.json").write_text('{"a.mp4": "x", "s/b.mp4": "y"}')
    listing = _read(tmp_path, videos=videos, captions=texts / "any.json")
    assert (listing.format, _captions(listing)) == ("captions_json", {"a.mp4": ("x",), "s/b.mp4": ("y",)})


def test_a_videos_folder_inside_needs_no_setting(tmp_path: Path) -> None:
    _videos(tmp_path / "videos", "a.mp4")
    (tmp_path / "captions.json").write_text('{"a.mp4": "x"}')
    assert _captions(_read(tmp_path)) == {"a.mp4": ("x",)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_say_what_they_are(tmp_path: Path, encoding: str) -> None:
    _videos(tmp_path, "a.mp4")
    (tmp_path / "captions.json").write_bytes('{"a.mp4": "Ein Mädchen läuft 走"}'.encode(encoding))
    assert _captions(_read(tmp_path)) == {"a.mp4": ("Ein Mädchen läuft 走",)}


def test_bad_captions_are_dropped_with_their_reason(tmp_path: Path) -> None:
    _videos(tmp_path, *(f"{name}.mp4" for name in "abcdefghij"))
    text = json.dumps(
        {
            "a.mp4": "  \n ",
            "b.mp4": [],
            "c.mp4": 7,
            "d.mp4": "x" * 10_001,
            "e.mp4": ["good", "", None],
            "f.mp4": "\ud800 broken",
            "absent.mp4": "nobody",
            "../a.mp4": "outside",
            "/etc/a.mp4": "outside",
            "..\\a.mp4": "outside",
            "i.mp4": "fine\u0000\u0007 text",
        }
    )
    text = text[:-1] + ', "g.mp4": "one", "g.mp4": "two", "h.mp4": "same", "h.mp4": "same"}'
    (tmp_path / "captions.json").write_text(text)
    listing = _read(tmp_path)
    assert _captions(listing) == {"e.mp4": ("good",), "h.mp4": ("same",), "i.mp4": ("fine text",)}
    reasons = _reasons(listing)
    expected = {
        "a.mp4": "is empty",
        "b.mp4": "list of captions is empty",
        "c.mp4": "not text but 7",
        "d.mp4": "10001 characters",
        "f.mp4": "Unicode",
        "g.mp4": "twice",
        "j.mp4": "no caption",
        "absent.mp4": "no such video",
        "../a.mp4": "leads out",
        "/etc/a.mp4": "leads out",
        "..\\a.mp4": "leads out",
    }
    assert reasons.keys() == expected.keys()
    for id, part in expected.items():
        assert part in reasons[id], (id, reasons[id])
    assert [(note.id, "2 of its captions left out" in note.reason) for note in listing.notes] == [("e.mp4", True)]


def test_bad_sidecars_are_dropped_with_their_reason(tmp_path: Path) -> None:
    _videos(tmp_path, "good.mp4", "good.mov", "latin.mp4", "wide.mp4", "empty.mp4")
    (tmp_path / "good.txt").write_text("fine")
    (tmp_path / "latin.txt").write_bytes("M\u00e4dchen".encode("latin-1"))
    (tmp_path / "wide.txt").write_bytes("wide".encode("utf-16-le"))
    (tmp_path / "empty.txt").write_bytes(b"")
    reasons = _reasons(_read(tmp_path))
    assert reasons.keys() == {"good.mp4", "latin.mp4", "wide.mp4", "empty.mp4"}
    assert "shares good.txt with good.mov" in reasons["good.mp4"]
    assert "not UTF-8 text (at byte 1)" in reasons["latin.mp4"]
    assert "zero bytes" in reasons["wide.mp4"]
    assert "empty" in reasons["empty.mp4"]


def test_a_name_that_could_mean_two_files(tmp_path: Path) -> None:
    _videos(tmp_path, "1/a.mp4", "2/a.mp4", "b.mp4", "b.avi")
    (tmp_path / "captions.json").write_text('{"a.mp4": "x", "1/a.mp4": "y", "b": "z"}')
    listing = _read(tmp_path)
    reasons = _reasons(listing)
    assert _captions(listing) == {"1/a.mp4": ("y",)}
    assert "could mean 1/a.mp4, 2/a.mp4" in reasons["a.mp4"]
    assert "could mean b.avi, b.mp4" in reasons["b"]
    assert {"2/a.mp4", "b.mp4", "b.avi"} <= reasons.keys()


def test_links_pipes_and_litter(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "._a.mp4", ".hidden/b.mp4", "sub/c.mp4")
    (tmp_path / "sub/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "captions.json").write_text('{"a.mp4": "x", "c.mp4": "y", "gone.mp4": "z", "pipe.mp4": "p"}')
    listing = _read(tmp_path)
    assert _captions(listing) == {"a.mp4": ("x",), "sub/c.mp4": ("y",)}
    assert _reasons(listing) == {"gone.mp4": "a broken link", "pipe.mp4": "not a regular file"}


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _videos(tmp_path, "a.mp4", "sub/b.mp4")
    (tmp_path / "captions.json").write_text('{"a.mp4": "x"}')
    scandir = os.scandir

    def refusing(path: Path) -> Any:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = _read(tmp_path)
    assert list(_captions(listing)) == ["a.mp4"]
    assert _reasons(listing) == {"sub": "a folder that cannot be read: Permission denied"}


@pytest.mark.parametrize("name", ["captions.json", "metadata.csv", "clips.csv", "0.tar"])
def test_no_pipe_is_waited_for(tmp_path: Path, name: str) -> None:
    _videos(tmp_path / "videos", "a.mp4")
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match="no captions found"):
        _read(tmp_path)
    with pytest.raises(UsageError, match="neither a regular file nor a folder"):
        _read(tmp_path, captions=tmp_path / name)


def test_sidecars_that_are_no_captions(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(b"x" * (1 << 20) + b"x")
    (tmp_path / "c.txt").symlink_to(tmp_path / "c.txt")
    (tmp_path / "d.txt").write_text("fine")
    listing = _read(tmp_path)
    assert _captions(listing) == {"d.mp4": ("fine",)}
    reasons = _reasons(listing)
    assert "not a regular file" in reasons["a.mp4"] and "not a regular file" in reasons["c.mp4"]
    assert "larger than 1048576 bytes" in reasons["b.mp4"]


def test_images_are_clips_where_there_is_no_video(tmp_path: Path) -> None:
    _videos(tmp_path, "a.png", "b.JPG")
    (tmp_path / "captions.json").write_text('{"a.png": "x", "b": "y"}')
    assert _captions(_read(tmp_path)) == {"a.png": ("x",), "b.JPG": ("y",)}
    _videos(tmp_path, "c.mp4")
    listing = _read(tmp_path)
    assert not listing.clips
    assert "an image, left out by data.media: set data.media = all" in _reasons(listing)["a.png"]
    assert "no caption" in _reasons(listing)["c.mp4"]
    assert list(_captions(_read(tmp_path, media="all"))) == ["a.png", "b.JPG"]
    assert list(_captions(_read(tmp_path, media="images"))) == ["a.png", "b.JPG"]
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.JPG").unlink()
    with pytest.raises(UsageError, match="no image files"):
        _read(tmp_path, media="images")


def test_names_are_relative_to_the_file_that_says_them_first(tmp_path: Path) -> None:
    root = _videos(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")
    given = {"videos/a.mp4": "x", str(root.resolve() / "b.mp4"): "y", "videos/../videos/c.mp4": "z"}
    (tmp_path / "captions.json").write_text(json.dumps(given))
    expected = {"a.mp4": ("x",), "b.mp4": ("y",), "c.mp4": ("z",)}
    assert _captions(_read(tmp_path)) == expected
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path, target_is_directory=True)
    assert _captions(_read(link)) == expected


def test_partial_collections_are_counted_not_dropped(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "captions.json").write_text('{"a.mp4": "x", "u.mp4": "y", "v.mp4": "z", "w.mp4": ""}')
    assert set(_reasons(_read(tmp_path))) == {"b.mp4", "u.mp4", "v.mp4", "w.mp4"}
    listing = _read(tmp_path, partial=True)
    assert list(_captions(listing)) == ["a.mp4"] and not listing.dropped
    said = " ".join(note.reason for note in listing.notes)
    assert "3 names of captions mean no usable video: u.mp4, v.mp4, w.mp4" in said
    assert "1 videos have no caption there: b.mp4" in said


def test_lists_of_names(tmp_path: Path) -> None:
    _videos(tmp_path, "video1.mp4", "video2.mp4", "video3.mp4")
    (tmp_path / "captions.json").write_text('{"video1": "x", "video2": "y", "video3": "z"}')
    for name, text in (
        ("a.txt", "video1\n\nvideo3\n"),
        ("b.csv", "key,video_id\nret0,video1\nret1,video3\n"),
        ("c.csv", "video1\nvideo3\n"),
        ("d.json", '["video1", "video3"]'),
    ):
        (tmp_path / name).write_text(text)
        assert list(_captions(_read(tmp_path, only=tmp_path / name, format="captions_json"))) == [
            "video1.mp4",
            "video3.mp4",
        ]
    (tmp_path / "e.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UsageError, match="no column of names"):
        _read(tmp_path, only=tmp_path / "e.csv")
    (tmp_path / "f.txt").write_text("video1\nvideo9\n")
    with pytest.raises(UsageError, match="'video9': no such video"):
        _read(tmp_path, only=tmp_path / "f.txt")
    assert list(_captions(_read(tmp_path, only=tmp_path / "f.txt", partial=True))) == ["video1.mp4"]


def test_settings_without_effect_are_errors(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4")
    (tmp_path / "captions.json").write_text('{"a.mp4": "x"}')
    with pytest.raises(UsageError, match="data.columns has no effect on format captions_json"):
        _read(tmp_path, columns={"video": "file"})
    with pytest.raises(UsageError, match="format captions_json names no splits"):
        _read(tmp_path, split="train")


def test_a_manifest_is_a_collection(tmp_path: Path) -> None:
    videos = _videos(tmp_path / "videos", "a.mp4", "s/b@2.mp4")
    (tmp_path / "clips.csv").write_text("video,caption,start,end\na.mp4,x,1,2.5\na.mp4,y,3,4\ns/b@2.mp4,ü,,\n")
    listing = _read(tmp_path)
    count = write_clip_manifest(listing.clips, tmp_path / "cache/train.manifest.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "cache/train.manifest.jsonl").read_text("utf-8").splitlines()]
    assert count == len(lines) == 3
    assert lines[0] == {
        "video": "a.mp4",
        "captions": ["x"],
        "start_seconds": 1.0,
        "end_seconds": 2.5,
        "split": "train",
        "source": "a.mp4",
        "path": str((videos / "a.mp4").resolve()),
    }
    again = _read(tmp_path, captions=tmp_path / "cache/train.manifest.jsonl")
    assert again.clips == listing.clips and not again.dropped
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["train.manifest.jsonl"]


def test_a_manifest_that_says_the_same_is_left_alone(tmp_path: Path) -> None:
    _videos(tmp_path / "videos", "a.mp4", "b.mp4")
    (tmp_path / "clips.csv").write_text("video,caption\na.mp4,x\nb.mp4,y\n")
    clips, path = _read(tmp_path).clips, tmp_path / "cache/train.manifest.jsonl"
    write_clip_manifest(clips, path)
    before = path.stat(), path.parent.stat()
    assert write_clip_manifest(clips, path) == 2
    assert (path.stat().st_ino, path.parent.stat().st_mtime_ns) == (before[0].st_ino, before[1].st_mtime_ns)
    assert write_clip_manifest(clips[:1], path) == 1
    assert len(path.read_text().splitlines()) == 1


def test_several_processes_write_one_manifest(tmp_path: Path) -> None:
    _videos(tmp_path / "videos", "a.mp4", "b.mp4")
    (tmp_path / "clips.csv").write_text("video,caption\na.mp4,x\nb.mp4,y\n")
    clips, path = _read(tmp_path).clips, tmp_path / "cache/train.manifest.jsonl"
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            failed = 1
            try:
                for turn in range(60):
                    write_clip_manifest(clips[: 1 + turn % 2], path)
                failed = 0
            finally:
                os._exit(failed)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    assert [found.name for found in path.parent.iterdir()] == ["train.manifest.jsonl"]
    assert len(path.read_text().splitlines()) in (1, 2)


def test_a_manifest_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _videos(tmp_path / "videos", "a.mp4")
    (tmp_path / "clips.csv").write_text("video,caption\na.mp4,x\n")
    clips, path = _read(tmp_path).clips, tmp_path / "cache/train.manifest.jsonl"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"train.manifest.jsonl: cannot be written: No space left on device"):
        write_clip_manifest(clips, path)
    assert not list(path.parent.iterdir())


def test_only_some_clips(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "captions.json").write_text('{"a.mp4": "x", "b.mp4": "y", "gone.mp4": "z"}')
    (tmp_path / "list.json").write_text('["b.mp4", "c"]')
    listing = _read(tmp_path, only=tmp_path / "list.json")
    assert list(_captions(listing)) == ["b.mp4"]
    assert list(_reasons(listing)) == ["c.mp4"]
    assert list(_captions(_read(tmp_path, only=["a.mp4"]))) == ["a.mp4"]
    for given, message in (
        (["a.mp", "b.mp4"], "'a.mp': no such video.*did you mean a.mp4"),
        ([], "data.only is empty"),
        (tmp_path / "none.json", "cannot be read"),
        (tmp_path / "captions.json", "a JSON list of names is expected"),
    ):
        with pytest.raises(UsageError, match=message):
            _read(tmp_path, only=given)


def test_sources_by_pattern(tmp_path: Path) -> None:
    _videos(tmp_path, "film_1.mp4", "film_2.mp4", "other.mp4")
    (tmp_path / "captions.json").write_text('{"film_1": "x", "film_2": "y", "other": "z"}')
    listing = _read(tmp_path, source_pattern=r"^(.+)_\d+\.mp4$")
    assert [clip.source for clip in listing.clips] == ["film", "film"]
    assert "does not match" in _reasons(listing)["other.mp4"]


def test_nothing_to_read_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.path = .*none: no such folder"):
        _read(tmp_path / "none")
    with pytest.raises(UsageError, match="no video files"):
        _read(tmp_path)
    _videos(tmp_path, "a.mp4")
    with pytest.raises(UsageError, match=r"no captions found \(looked for captions.json"):
        _read(tmp_path)
    with pytest.raises(UsageError, match="data.videos = .*no such folder"):
        _read(tmp_path, videos=tmp_path / "none")
    with pytest.raises(UsageError, match="data.captions = .*no such file"):
        _read(tmp_path, captions=tmp_path / "none.json")
    with pytest.raises(UsageError, match="there is no .*metadata.json"):
        _read(tmp_path, format="metadata_json")
    with pytest.raises(UsageError, match="no .txt file of any video's name"):
        _read(tmp_path, format="txt")
    (tmp_path / "captions.json").write_text('{"a.mp4": "x"}')
    (tmp_path / "metadata.json").write_text('{"a": "x"}')
    with pytest.raises(UsageError, match="several formats; set data.format to one of captions_json, metadata_json"):
        _read(tmp_path)
    assert _read(tmp_path, format="metadata_json").format == "metadata_json"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not valid JSON"),
        (b'["a.mp4"]', "holds a list"),
        (b'{"a.mp4": "M\xe4dchen"}', r"not UTF-8 text \(at byte 12\)"),
        ('{"a.mp4": "x"}'.encode("utf-16-le"), "zero bytes"),
        (b"[" * 200_000, "nested too deeply"),
        (b"{}", "holds no captions"),
    ],
)
def test_unreadable_json_is_one_message(tmp_path: Path, data: bytes, message: str) -> None:
    _videos(tmp_path, "a.mp4")
    (tmp_path / "captions.json").write_bytes(data)
    with pytest.raises(UsageError, match=message):
        _read(tmp_path)


def test_the_real_clips(shared: Callable[[str], Path]) -> None:
    folder = shared("clips")
    assert len(_read(folder).clips) == 50
    eight = _read(folder, only=folder / "eight.json")
    assert [clip.id for clip in eight.clips] == sorted(json.loads((folder / "eight.json").read_text()))
    assert not eight.dropped
