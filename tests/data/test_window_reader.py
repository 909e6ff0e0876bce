"""Windows read ahead: in order, each the right pictures, bounded, and the bad ones named once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_videos import numbered, numbers_of, write_video

from reelwright.data import windows
from reelwright.data.augmentation import Facts, Flip, VariantPlan, Window, apply, plan_variant
from reelwright.data.cache import Cache
from reelwright.data.config import DataConfig
from reelwright.data.decode import read_spread, read_window
from reelwright.data.inspection import Inspection, Sample, inspect
from reelwright.data.sandbox import Decoders
from reelwright.data.windows import Piece, WindowReader, submit_window
from reelwright.types import Size

CLIPS = 7
SIZE = Size(4, 16, 16)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def inspection(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    folder = tmp_path_factory.mktemp("clips")
    for k in range(CLIPS):
        write_video(folder / f"{k}.mp4", numbered(20)[k:])  # clip k begins with picture k
    (folder / "captions.json").write_text(json.dumps({f"{k}.mp4": f"clip {k}" for k in range(CLIPS)}))
    return inspect(DataConfig(path=folder, frames=4, fps=30, width=16, height=16))


def piece(sample: Sample, **window: Any) -> Piece:
    plain = Window(sample.size, 30.0, sample.start_seconds)
    return Piece(sample, f"key {sample.index}", VariantPlan(replace(plain, **window), sample.size))


def test_windows_come_in_order_each_its_own(inspection: Inspection, decoders: Decoders) -> None:
    reader = WindowReader(inspection, decoders)
    order = [3, 0, 6, 1, 5, 2, 4, 0, 3]
    read = list(reader.read([piece(inspection.samples[k]) for k in order]))
    assert [item.sample.index for item, _ in read] == order
    for item, frames in read:
        assert frames.shape == (4, 16, 16, 3) and frames.dtype == np.uint8
        first = int(item.sample.clip.id.removesuffix(".mp4"))
        assert numbers_of(frames) == [first, first + 1, first + 2, first + 3]
    assert reader.dropped == []


def test_a_window_is_read_as_its_plan_says(inspection: Inspection, decoders: Decoders) -> None:
    sample = inspection.samples[1]
    info, video = inspection.info(sample), sample.clip.video
    plans = [{"fps": 10.0}, {"start_seconds": 0.2}, {"start_seconds": 0.0, "end_seconds": 0.5}]
    pieces = [piece(sample, **plan) for plan in plans]
    slower, later, spread = (frames for _, frames in WindowReader(inspection, decoders).read(pieces))
    assert np.array_equal(slower, read_window(video, SIZE, 10.0, 0.0, info))
    assert np.array_equal(later, read_window(video, SIZE, 30.0, 0.2, info))
    assert np.array_equal(spread, read_spread(video, SIZE, info, 0.0, 0.5))
    assert numbers_of(spread) == [1, 6, 10, 15]
    assert np.array_equal(submit_window(decoders, video, pieces[2].plan.window, info).result(), spread)


def test_variants_are_changed_after_reading_and_kept_apart(inspection: Inspection, decoders: Decoders) -> None:
    sample = inspection.samples[2]
    facts = Facts(sample.sha256, ("a ball",), Window(SIZE, 30.0, 0.0), 0.0, 0.5, 64, 48)
    flips = [Flip(probability=1.0, guard=())]
    pieces = [Piece(sample, f"key {v}", plan_variant(flips, facts, v)) for v in (0, 1)]
    reader = WindowReader(inspection, decoders)
    plain = reader.read(pieces[:1], keep=True)
    kept = next(plain)[1]
    again, flipped = (frames for _, frames in reader.read(pieces))
    assert again is kept or np.array_equal(again, kept)
    assert np.array_equal(flipped, apply(pieces[1].plan, kept))


def test_kept_windows_are_not_decoded_again_and_bounded(
    inspection: Inspection, decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = SIZE.frames * SIZE.height * SIZE.width * 3
    monkeypatch.setattr(windows, "KEPT_BYTES", 3 * one)
    reader = WindowReader(inspection, decoders)
    pieces = [piece(sample) for sample in inspection.samples]
    first = [frames for _, frames in reader.read(pieces, keep=True)]
    submitted: list[Any] = []
    submit = decoders.submit
    monkeypatch.setattr(decoders, "submit", lambda *job: submitted.append(job) or submit(*job))
    second = [frames for _, frames in reader.read(pieces)]
    assert len(submitted) == CLIPS - 3
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    submitted.clear()
    list(reader.read(pieces))  # what was kept has been handed out
    assert len(submitted) == CLIPS


@pytest.mark.parametrize("most", [0, 2, 1000])
def test_what_is_read_ahead_is_bounded(
    inspection: Inspection, decoders: Decoders, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    one = SIZE.frames * SIZE.height * SIZE.width * 3
    monkeypatch.setattr(windows, "AHEAD_BYTES", most * one)
    taken, submitted, ahead = 0, 0, []
    submit = decoders.submit

    def counted(*job: Any) -> Any:
        nonlocal submitted
        submitted += 1
        ahead.append(submitted - taken)
        return submit(*job)

    monkeypatch.setattr(decoders, "submit", counted)
    for _ in WindowReader(inspection, decoders).read([piece(inspection.samples[k % CLIPS]) for k in range(20)]):
        taken += 1
    assert taken == 20
    assert max(ahead) == min(max(1, most), 2 * decoders.workers + 1)


def test_reading_can_be_left_off(inspection: Inspection, decoders: Decoders) -> None:
    reader = WindowReader(inspection, decoders)
    reading = reader.read([piece(sample) for sample in inspection.samples] * 20)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert len(list(reader.read([piece(inspection.samples[0])]))) == 1


def test_a_clip_that_no_longer_decodes_is_named_once(decoders: Decoders, tmp_path: Path) -> None:
    for k in range(3):
        write_video(tmp_path / f"{k}.mp4", numbered(20))
    (tmp_path / "captions.json").write_text(json.dumps({f"{k}.mp4": "a clip" for k in range(3)}))
    inspection = inspect(DataConfig(path=tmp_path, frames=4, fps=30, width=16, height=16, window="uniform", windows=3))
    (tmp_path / "1.mp4").write_bytes(b"damaged since")
    reader = WindowReader(inspection, decoders)
    read = [item.sample.clip.id for item, _ in reader.read([piece(sample) for sample in inspection.samples])]
    assert read == ["0.mp4"] * 3 + ["2.mp4"] * 3
    assert [item.id for item in reader.dropped] == ["1.mp4"]
    reader.drop(inspection.samples[0], "its latents are NaN")
    reader.drop(inspection.samples[1], "another reason")
    assert [(item.id, item.reason) for item in reader.dropped][1:] == [("0.mp4", "its latents are NaN")]


def test_a_file_replaced_since_it_was_inspected_is_not_handed_out(decoders: Decoders, tmp_path: Path) -> None:
    """Its pictures would be stored under the key of the bytes that were there before."""
    for k in range(3):
        write_video(tmp_path / f"{k}.mp4", numbered(20)[k:])
    (tmp_path / "captions.json").write_text(json.dumps({f"{k}.mp4": "a clip" for k in range(3)}))
    cache = Cache(tmp_path / "cache")
    inspection = inspect(DataConfig(path=tmp_path, frames=4, fps=30, width=16, height=16), cache, decoders=decoders)
    write_video(tmp_path / "1.mp4", 255 - numbered(20))
    reader = WindowReader(inspection, decoders, cache.files)
    pieces = [piece(sample) for sample in inspection.samples]
    assert [item.sample.clip.id for item, _ in reader.read(pieces, keep=True)] == ["0.mp4", "2.mp4"]
    assert [(item.id, item.reason) for item in reader.dropped] == [("1.mp4", "changed while it was read")]
    (tmp_path / "2.mp4").unlink()
    assert [item.sample.clip.id for item, _ in reader.read(pieces)] == ["0.mp4"]
    assert reader.dropped[1].reason == "cannot be read: No such file or directory"
