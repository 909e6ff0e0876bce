"""Tables of captions: every format, known and named columns, times, and rows that cannot be used."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelwright.data.config import DataConfig
from reelwright.data.sources import Listing, read_listing
from reelwright.data.sources.seconds import parse_list, parse_seconds, parse_span, parse_spans
from reelwright.types import UsageError


def _videos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def _read(path: Path, **values: Any) -> Listing:
    return read_listing(DataConfig.parse({"path": path, **values}))


def _captions(listing: Listing) -> dict[str, tuple[str, ...]]:
    return {clip.id: clip.captions for clip in listing.clips}


def _reasons(listing: Listing) -> dict[str, str]:
    assert len({item.id for item in listing.dropped}) == len(listing.dropped)
    return {item.id: item.reason for item in listing.dropped}


ROWS = [{"file_name": "a.mp4", "text": 'one, "quoted"'}, {"file_name": "s/b.mp4", "text": "two\nlines"}]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    suffix = path.suffix
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".parquet":
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("metadata.jsonl", "videofolder"),
        ("metadata.csv", "videofolder"),
        ("metadata.parquet", "videofolder"),
        ("clips.csv", "table"),
        ("clips.tsv", "table"),
        ("clips.jsonl", "table"),
        ("clips.parquet", "table"),
        ("clips.json", "table"),
    ],
)
def test_every_kind_of_table(tmp_path: Path, name: str, format: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    _videos(tmp_path, "a.mp4", "s/b.mp4", "c.mp4")
    _write(tmp_path / name, ROWS)
    captions = tmp_path / name if name.endswith(".json") else None
    listing = _read(tmp_path, captions=captions)
    assert listing.format == format
    assert _captions(listing) == {"a.mp4": ('one, "quoted"',), "s/b.mp4": ("two lines",)}
    assert "no caption" in _reasons(listing)["c.mp4"]
    assert _captions(_read(tmp_path, captions=captions, format=format)) == _captions(listing)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _videos(tmp_path, "a.mp4")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'reelwright\[parquet\]'"):
        _read(tmp_path)


def test_damaged_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    _videos(tmp_path, "a.mp4")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(UsageError, match="not a Parquet file that can be read"):
        _read(tmp_path)


def test_videofolder_with_a_folder_a_split(tmp_path: Path) -> None:
    _videos(tmp_path, "train/a.mp4", "train/b.mp4", "test/a.mp4")
    _write(
        tmp_path / "train/metadata.jsonl",
        [{"file_name": "a.mp4", "prompt": "x"}, {"file_name": "b.mp4", "prompt": "y"}],
    )
    _write(tmp_path / "test/metadata.csv", [{"file_name": "a.mp4", "text": "z"}])
    assert _captions(_read(tmp_path)) == {"test/a.mp4": ("z",), "train/a.mp4": ("x",), "train/b.mp4": ("y",)}
    assert _captions(_read(tmp_path, split="test")) == {"test/a.mp4": ("z",)}
    assert not _read(tmp_path, split="test").dropped
    with pytest.raises(UsageError, match="data.split = val: no such split.*it has test, train"):
        _read(tmp_path, split="val")


def test_many_rows_are_many_captions(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4")
    _write(tmp_path / "t.csv", [{"video": "a.mp4", "caption": text} for text in ("x", "y", "", "x")])
    listing = _read(tmp_path)
    assert _captions(listing) == {"a.mp4": ("x", "y", "x")}
    assert [(note.id, note.reason) for note in listing.notes] == [
        ("a.mp4", "1 of its captions left out: its caption is empty")
    ]
    _write(tmp_path / "u.jsonl", [{"video": "a.mp4", "caption": ["x", "y"]}, {"video": "b.mp4", "caption": "z"}])
    assert _captions(_read(tmp_path, captions=tmp_path / "u.jsonl")) == {"a.mp4": ("x", "y"), "b.mp4": ("z",)}


def test_named_columns(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4")
    row = {"clip file": "a.mp4", "short": "s", "long": "l", "from": "0:01", "to": "2.5", "part": "val"}
    _write(tmp_path / "t.csv", [row, {**row, "part": "train", "short": "other"}])
    with pytest.raises(UsageError, match="no column of videos known among 'clip file', 'short'"):
        _read(tmp_path)
    columns: dict[str, Any] = {"video": "clip file", "caption": ["short", "long"], "start": "from", "end": "to"}
    assert _captions(_read(tmp_path, columns=columns)) == {"a.mp4@1-2.5": ("s", "l", "other", "l")}
    columns["split"] = "part"
    assert _captions(_read(tmp_path, columns=columns, split="validation")) == {"a.mp4@1-2.5": ("s", "l")}
    with pytest.raises(UsageError, match="no column 'longer'; it has 'clip file'"):
        _read(tmp_path, columns={**columns, "caption": "longer"})


def test_columns_that_could_both_be_meant(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4")
    _write(tmp_path / "t.csv", [{"video": "a.mp4", "caption": "x", "text": "y"}])
    with pytest.raises(UsageError, match="caption and text could be the captions"):
        _read(tmp_path)
    assert _captions(_read(tmp_path, columns={"caption": "text"})) == {"a.mp4": ("y",)}
    (tmp_path / "t.csv").write_text("video,caption,caption\na.mp4,x,y\n")
    with pytest.raises(UsageError, match="caption and caption could be|more than one column 'caption'"):
        _read(tmp_path)


def test_several_tables_need_a_choice(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4")
    _write(tmp_path / "t.csv", [{"video": "a.mp4", "caption": "x"}])
    _write(tmp_path / "u.tsv", [{"video": "a.mp4", "caption": "y"}])
    with pytest.raises(UsageError, match=r"several tables \(t.csv, u.tsv\); set data.captions"):
        _read(tmp_path)
    assert _captions(_read(tmp_path, captions=tmp_path / "u.tsv")) == {"a.mp4": ("y",)}


def test_panda_70m(tmp_path: Path) -> None:
    """Lists as Python writes them, a part a clip; all parts of a film are one source."""
    _videos(tmp_path, "--abc_1.mp4", "film.mp4", "short.mp4")
    rows = [
        {
            "videoID": name,
            "url": f"https://www.youtube.com/watch?v={name}",
            "timestamp": repr(times),
            "caption": repr(captions),
            "matching_score": repr([0.4] * len(captions)),
            "desirable_filtering": repr(["desirable"] * len(captions)),
            "shot_boundary_detection": repr([[["0:00:00.000", "0:00:05.200"]]] * len(captions)),
        }
        for name, times, captions in (
            ("--abc_1", [["0:00:00.000", "0:00:05.200"], ["0:01:10.500", "1:00:00.000"]], ["it's one", 'a "second"']),
            ("film", [["0:00:09.000", "0:00:05.000"], ["0:00:01.000", "0:00:02.000"]], ["backwards", "good"]),
            ("short", [["0:00:00.000", "0:00:05.200"]], ["x", "y"]),
        )
    ]
    _write(tmp_path / "panda70m_training_2m.csv", rows)
    listing = _read(tmp_path)
    assert [(clip.id, clip.captions, clip.start_seconds, clip.end_seconds, clip.source) for clip in listing.clips] == [
        ("--abc_1.mp4@0-5.2", ("it's one",), 0.0, 5.2, "--abc_1.mp4"),
        ("--abc_1.mp4@70.5-3600", ('a "second"',), 70.5, 3600.0, "--abc_1.mp4"),
        ("film.mp4@1-2", ("good",), 1.0, 2.0, "film.mp4"),
    ]
    reasons = _reasons(listing)
    assert "1 timestamps but 2 captions" in reasons["panda70m_training_2m.csv line 4"]
    assert "ends at 5 s, not after its start at 9 s" in reasons["panda70m_training_2m.csv line 3 part 1"]
    assert "no caption" in reasons["short.mp4"]
    # a downloader's table: one part a row
    _write(
        tmp_path / "one.csv", [{"videoID": "film", "timestamp": "['0:00:01', '0:00:03']", "caption": "[wind] howls"}]
    )
    assert _captions(_read(tmp_path, captions=tmp_path / "one.csv")) == {"film.mp4@1-3": ("[wind] howls",)}


def test_openvid_and_its_columns(tmp_path: Path) -> None:
    _videos(tmp_path, "x_0_0to104.mp4")
    row = {
        "video": "x_0_0to104.mp4", "caption": "a cat", "aesthetic score": 5.1, "motion score": 2, "frame": 104,
        "temporal consistency score": 1, "camera motion": "pan", "fps": 24, "seconds": 4.3,
    }  # fmt: skip
    _write(tmp_path / "OpenVid-1M.csv", [row])
    assert _captions(_read(tmp_path)) == {"x_0_0to104.mp4": ("a cat",)}


def test_parts_by_start_and_end(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4")
    (tmp_path / "t.csv").write_text(
        "video,caption,start,end\na.mp4,whole,,\na.mp4,open,3,\na.mp4,part,0:01,0:02.5\n"
        "a.mp4,x,-1,2\na.mp4,x,nan,2\na.mp4,x,5,5\na.mp4,x,soon,9\na.mp4,x,1e999,\n"
    )
    listing = _read(tmp_path)
    assert [(clip.id, clip.start_seconds, clip.end_seconds) for clip in listing.clips] == [
        ("a.mp4", None, None),
        ("a.mp4@1-2.5", 1.0, 2.5),
        ("a.mp4@3-", 3.0, None),
    ]
    assert all(clip.source == "a.mp4" and clip.video == tmp_path / "a.mp4" for clip in listing.clips)
    assert list(_reasons(listing)) == [f"t.csv line {line}" for line in (5, 6, 7, 8, 9)]
    # naming the column of videos turns the guess off
    assert list(_captions(_read(tmp_path, columns={"video": "video", "caption": "caption"}))) == ["a.mp4"]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    (tmp_path / "t.csv").write_bytes(
        b"\xef\xbb\xbfvideo,caption\r\na.mp4,M\xc3\xa4dchen\r\nb.mp4,M\xe4dchen\r\n\r\nc.mp4,x,y\r\n,nobody\r\n"
        b'd.mp4,"quoted"badly\r\n../a.mp4,out\r\n/etc/passwd,out\r\ngone.mp4,x\r\n'
    )
    listing = _read(tmp_path)
    assert _captions(listing) == {"a.mp4": ("Mädchen",)}
    expected = {
        "b.mp4": "not valid Unicode",
        "t.csv line 5": "it has 3 cells, the header has 2",
        "c.mp4": "no caption",
        "t.csv line 6": "names no video",
        "t.csv line 7": "not valid CSV",
        "d.mp4": "no caption",
        "../a.mp4": "leads out",
        "/etc/passwd": "leads out",
        "gone.mp4": "no such video",
    }
    reasons = _reasons(listing)
    assert reasons.keys() == expected.keys()
    for id, part in expected.items():
        assert part in reasons[id], (id, reasons[id])


def test_json_lines_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4", "17.mp4")
    lines = [
        b'\xef\xbb\xbf{"video": "a.mp4", "caption": "x"}', b'{"video": "b.mp4", "video": "a.mp4", "caption": "x"}',
        b"{", b"[1]", b'{"video": "b.mp4", "caption": "\xff"}', b"[" * 100_000, b'{"video": 17, "caption": "number"}',
        b'{"caption": "x"}', b'{"video": "b.mp4"}', b'{"video": {"bytes": "AA", "path": "b.mp4"}, "caption": "x"}',
        b'{"video": {"bytes": null, "path": "a.mp4"}, "caption": "y"}', b'{"video": true, "caption": "x"}',
    ]  # fmt: skip
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    listing = _read(tmp_path)
    assert _captions(listing) == {"17.mp4": ("number",), "a.mp4": ("x", "y")}
    reasons = _reasons(listing)
    expected = {
        2: "appears twice", 3: "not valid JSON", 4: "not an object", 5: "not UTF-8", 6: "nested too deeply",
        8: "names no video", 9: "it has no 'caption'", 10: "holds the video itself", 12: "names no video",
    }  # fmt: skip
    assert {id for id in reasons if id != "b.mp4"} == {f"t.jsonl line {number}" for number in expected}
    for number, part in expected.items():
        assert part in reasons[f"t.jsonl line {number}"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"", "no header line"),
        ("t.csv", b'video,caption\na.mp4,"never closed\nb.mp4,x\n', "line 2: a quote that is opened there is never"),
        ("t.csv", "video,caption\na.mp4,x\n".encode("utf-16-le"), "zero bytes"),
        ("t.csv", b"\xff\xfev\x00", "has no header line|not UTF-16|no column of videos"),
        ("t.csv", b"video,caption\n", "holds no captions"),
        ("t.jsonl", '{"video": "a.mp4"}'.encode("utf-16"), "UTF-16 text"),
        ("t.jsonl", b"", "no column of videos"),
        ("t.jsonl", b"x" * (17 << 20), "line 1 is longer than"),
        ("t.json", b'[{"a": 1}, 2]', "no column of videos"),
    ],
)
def test_unreadable_tables_are_one_message(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    _videos(tmp_path, "a.mp4")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message):
        _read(tmp_path, captions=tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encodings_and_delimiters(tmp_path: Path, encoding: str, delimiter: str) -> None:
    _videos(tmp_path, "a.mp4")
    (tmp_path / "t.csv").write_bytes(f"video{delimiter}caption\na.mp4{delimiter}läuft 走\n".encode(encoding))
    assert _captions(_read(tmp_path)) == {"a.mp4": ("läuft 走",)}


def test_a_long_cell_leaves_the_csv_module_as_it_was(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4")
    limit = csv.field_size_limit()
    _write(tmp_path / "t.csv", [{"video": "a.mp4", "caption": "x" * 200_000}, {"video": "b.mp4", "caption": "y"}])
    listing = _read(tmp_path)
    assert _captions(listing) == {"b.mp4": ("y",)}
    assert "200000 characters" in _reasons(listing)["a.mp4"]
    assert csv.field_size_limit() == limit


def test_vgen_lists(tmp_path: Path) -> None:
    _videos(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.txt").write_bytes(b"a.mp4|||one ||| two\nb.mp4 no bars\n\n")
    listing = _read(tmp_path, captions=tmp_path / "list.txt")
    assert _captions(listing) == {"a.mp4": ("one ||| two",)}
    assert "not of the form name|||caption" in _reasons(listing)["list.txt line 2"]


@pytest.mark.parametrize(
    ("file", "column", "clips"),
    [
        ("webvid_sample.csv", "videoid", 20),
        ("miradata_v0_100_samples.csv", "video_id", 100),
        ("cogkit_metadata.jsonl", "file_name", 5),
        ("vgen_vid_list.txt", "video", 5),
    ],
)
def test_the_real_annotations(
    tmp_path: Path, shared: Callable[[str], Path], file: str, column: str, clips: int
) -> None:
    place = shared("annotations/other") / file
    if place.suffix == ".csv":
        with place.open(newline="") as rows:
            names = {f"{row[column]}.mp4" for row in csv.DictReader(rows) if row[column]}
    elif place.suffix == ".jsonl":
        names = {json.loads(line)[column] for line in place.read_text().splitlines()}
    else:
        names = {line.split("|||")[0] for line in place.read_text().splitlines()}
    listing = _read(_videos(tmp_path, *names), captions=place)
    assert len(listing.clips) == clips
    assert {clip.source for clip in listing.clips} == names
    assert all(len(caption) > 10 for clip in listing.clips for caption in clip.captions)
    if file.startswith("miradata"):  # its last line holds a number and no video
        assert [reason for reason in _reasons(listing).values() if "names no video" not in reason] == []
        first = next(clip for clip in listing.clips if clip.source == "AJp_ANXoGoM.mp4")
        assert (first.start_seconds, first.end_seconds) == (5442.0, 5562.0)
    else:
        assert not listing.dropped


def test_seconds() -> None:
    for value, seconds in ((3, 3.0), ("2.5", 2.5), ("1:02.5", 62.5), ("1:00:00.250", 3600.25), (" 0:07 ", 7.0)):
        assert parse_seconds(value) == seconds
    for value in (-1, "nan", float("inf"), None, True, "", "1:2:3:4", 10**400, "9" * 5000 + ":1", [1]):
        with pytest.raises(ValueError, match="is no time"):
            parse_seconds(value)
    assert parse_span(["0:01", 2]) == (1.0, 2.0)
    assert parse_spans("['0:01', '0:02']") == [["0:01", "0:02"]]
    assert parse_spans('[["0:01", "0:02"], [3, 4]]') == [["0:01", "0:02"], [3, 4]]


@given(
    st.one_of(st.text(), st.text("[]'\"\\,0123:. (){}", max_size=60), st.none(), st.floats(), st.lists(st.integers()))
)
def test_no_cell_breaks_the_parsers(value: Any) -> None:
    for parse in (parse_seconds, parse_list, parse_spans, parse_span):
        with contextlib.suppress(ValueError):
            parse(value)


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "[" + "-" * 100_000 + "1]", "[__import__('os')]"])
def test_no_list_is_run_or_too_deep(text: str) -> None:
    with pytest.raises(ValueError, match="not a list that can be read"):
        parse_list(text)
