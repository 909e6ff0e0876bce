"""Every clip is used or dropped with its reason; the split leaks nothing; nothing is done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_videos import numbered, write_video

from reelwright.data import inspection as inspection_module
from reelwright.data.cache import Cache
from reelwright.data.config import DataConfig
from reelwright.data.inspection import Inspection, held_out_sources, inspect
from reelwright.types import Size, UserError


def _noise(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)


def _collection(folder: Path, count: int = 10, frames: int = 30) -> Path:
    for k in range(count):
        write_video(folder / f"c{k}.mp4", _noise(frames, k))
    (folder / "captions.json").write_text(json.dumps({f"c{k}.mp4": f"clip {k}" for k in range(count)}))
    return folder


def _inspect(folder: Path, cache: Cache | None = None, check: Any = None, **values: Any) -> Inspection:
    settings = {"path": folder, "frames": 4, "height": 16, "width": 16, "max_dropped": 0.5, **values}
    return inspect(DataConfig.parse(settings), cache, check)


def test_used_and_dropped_add_up(tmp_path: Path) -> None:
    folder = _collection(tmp_path)
    write_video(folder / "short.mp4", numbered(3))
    (folder / "text.mp4").write_text("no video " * 30)
    (folder / "c0.mp4").write_bytes((folder / "c0.mp4").read_bytes()[:2000])
    captions = json.loads((folder / "captions.json").read_text())
    captions |= {"short.mp4": "s", "text.mp4": "t", "gone.mp4": "g", "c1.mp4": ["ok", "refused"], "c2.mp4": "refused"}
    (folder / "captions.json").write_text(json.dumps(captions))
    seen: list[tuple[int, int, str]] = []
    result = inspect(
        DataConfig.parse({"path": folder, "frames": 4, "height": 16, "width": 16}),
        check_caption=lambda caption: "too long: 90 of 77 tokens" if caption == "refused" else None,
        progress=lambda *values: seen.append(values),
    )
    reasons = {item.id: item.reason for item in result.dropped}
    assert reasons == {
        "c0.mp4": reasons["c0.mp4"],
        "c2.mp4": "no caption fits the text encoder: too long: 90 of 77 tokens",
        "gone.mp4": f"named in captions.json, but no such video in {folder}",
        "short.mp4": "too short: 1 frames at 8 fps, the smallest bucket needs 4",
        "text.mp4": "not a video: it looks like a text file",
    }
    assert "no moov" in reasons["c0.mp4"]
    assert result.counts()["used"] == 8
    assert result.counts()["clips"] == 13
    assert [sample.index for sample in result.samples] == list(range(8))
    assert result.samples[0].clip.captions == ("ok",)
    assert [(note.id, note.reason) for note in result.notes][0] == (
        "c1.mp4",
        "1 of its captions left out: too long: 90 of 77 tokens",
    )
    assert seen[-1] == (12, 12, "text.mp4")
    with pytest.raises(
        UserError, match=r"5 of 13 clips are dropped \(38%\), more than data.max_dropped = 0.1(.|\n)*c0.mp4"
    ):
        result.enforce_max_dropped(DataConfig.parse({"path": folder}))
    result.enforce_max_dropped(DataConfig.parse({"path": folder, "max_dropped": 0.4}))


def test_nothing_left_to_train_on_is_refused(tmp_path: Path) -> None:
    folder = _collection(tmp_path, 2, frames=4)
    result = _inspect(folder, max_dropped=1.0)
    with pytest.raises(UserError, match="no clip is left to train on(.|\n)*too short"):
        result.enforce_max_dropped(DataConfig.parse({"path": folder, "max_dropped": 1.0}))


def test_what_an_owner_may_not_expect_is_noted(tmp_path: Path) -> None:
    folder = _collection(tmp_path, 2)
    (folder / "c1.mp4").write_bytes((folder / "c0.mp4").read_bytes())
    result = _inspect(folder, buckets=[[8, 16, 16], [64, 96, 96], [4, 96, 96]], fps=60)
    notes = "\n".join(f"{note.id} {note.reason}" for note in result.notes)
    assert "c1.mp4 the same file as c0.mp4" in notes
    assert "c0.mp4 too short for the 64-frame bucket, used with 8 frames" in notes
    assert "has 30 fps, below data.fps = 60: frames are repeated" in notes
    assert "is enlarged" in "\n".join(n.reason for n in _inspect(folder, height=96, width=96).notes)


def test_table_and_json_say_everything(tmp_path: Path) -> None:
    folder = _collection(tmp_path)
    (folder / "bad.mp4").write_bytes(b"")
    result = _inspect(folder, windows=2, window="uniform", validation=0.2, buckets=[[4, 16, 16], [6, 16, 24]])
    held = 2 * len(held_out_sources([f"c{k}.mp4" for k in range(10)], 0.2))
    assert 0 < held < 20
    table, plain = "\n".join(result.table()), json.loads(json.dumps(result.to_json()))
    assert f"10 used, 1 dropped; 20 samples, {20 - held} to train on, {held} held out" in table
    assert "6x16x24" in table
    assert "bad.mp4: has no caption" in table
    assert plain["counts"] == result.counts()
    assert plain["buckets"] == [{"size": [6, 16, 24], "train": 20 - held, "validation": held}]
    assert len(plain["samples"]) == 20
    sample = plain["samples"][1]
    assert (sample["clip"], sample["window"], sample["captions"]) == ("c0.mp4", 1, ["clip 0"])
    assert sample["start_seconds"] == pytest.approx(29 / 30 - 5 / 8)
    assert sample["video"]["frames"] == 30
    assert Path(sample["path"]).is_file()


def test_no_source_on_both_sides(tmp_path: Path) -> None:
    for film in range(9):
        for part in range(2):
            write_video(tmp_path / f"film{film}_{part}.mp4", _noise(20, 10 * film + part))
    # the same bytes under two films' names tie the films together
    (tmp_path / "film0_0.mp4").write_bytes((tmp_path / "film1_1.mp4").read_bytes())
    (tmp_path / "captions.json").write_text(json.dumps({p.name: p.stem for p in tmp_path.glob("*.mp4")}))
    for validation in (0.1, 0.3, 0.5):
        result = _inspect(tmp_path, validation=validation, source_pattern=r"^(film\d+)_")
        sides: dict[str, set[str]] = {}
        for sample in result.samples:
            film = sample.clip.id.split("_")[0]
            sides.setdefault("film01" if film in ("film0", "film1") else film, set()).add(sample.split)
        assert all(len(side) == 1 for side in sides.values())
        held = sum(side == {"validation"} for side in sides.values())
        assert held >= 1
        assert result.counts()["sources"] == 8


def test_the_split_is_stable_and_of_the_right_size() -> None:
    names = [f"source {k}" for k in range(200)]
    held = held_out_sources(names, 0.1)
    assert 8 <= len(held) <= 34, "200 draws at 10 %"
    assert held == held_out_sources(reversed(names), 0.1)
    assert held_out_sources([*names, *(f"new {k}" for k in range(50))], 0.1) & set(names) == held
    assert held_out_sources(names[50:], 0.1) == held & set(names[50:])
    assert held < held_out_sources(names, 0.3)
    assert held_out_sources(names, 0.0) == set()
    assert len(held_out_sources(names[:8], 0.01)) == 1
    assert len(held_out_sources(names[:4], 0.1)) == 0
    assert len(held_out_sources(names[:2], 0.999)) == 1
    assert held_out_sources(names[:1], 0.9) == set()


def test_an_unchanged_collection_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _collection(tmp_path / "clips", 4)
    (folder / "c0.mp4").write_text("no video " * 30)
    time.sleep(0.12)
    probed: list[str] = []
    real = inspection_module.probe
    monkeypatch.setattr(inspection_module, "probe", lambda path: (probed.append(path.name), real(path))[1])
    first = _inspect(folder, Cache(tmp_path / "cache"))
    assert probed == ["c0.mp4", "c1.mp4", "c2.mp4", "c3.mp4"]
    second = _inspect(folder, Cache(tmp_path / "cache"))
    assert len(probed) == 4
    assert second.to_json() == first.to_json() == _inspect(folder).to_json()
    del probed[:]
    (folder / "c2.mp4").write_bytes((folder / "c3.mp4").read_bytes() + b"\0\0\0\x08free")
    (folder / "captions.json").write_text((folder / "captions.json").read_text().replace("clip 1", "other"))
    third = _inspect(folder, Cache(tmp_path / "cache"))
    assert probed == ["c2.mp4"]
    assert third.samples[0].clip.captions == ("other",)
    assert third.samples[0].sha256 == first.samples[0].sha256
    assert third.samples[1].sha256 != first.samples[1].sha256


def test_the_real_clips_are_all_used(shared: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shared("clips")
    config = DataConfig.parse({"path": folder, "only": folder / "eight.json", "validation": 0})
    result = inspect(config, Cache(tmp_path))
    assert len(result.samples) == 8
    assert not result.dropped
    assert not result.notes
    assert {sample.size for sample in result.samples} == {Size(16, 64, 64)}
    assert {(info.width, info.height) for info in result.infos.values()} == {(640, 360)}
