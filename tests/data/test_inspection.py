"""Every clip is used or dropped with its reason; the split leaks nothing; nothing is done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_videos import numbered, write_video

from reelwright.data import probing
from reelwright.data.cache import Cache
from reelwright.data.config import DataConfig
from reelwright.data.decode import VideoInfo
from reelwright.data.duplicates import NEAR_BITS
from reelwright.data.inspection import Inspection, TokenLimit, inspect
from reelwright.data.looks import Looks
from reelwright.data.probing import Seen
from reelwright.data.sandbox import Decoders, Unfinished
from reelwright.data.sources import Dropped
from reelwright.data.split import held_out_sources, true_sources
from reelwright.types import Clip, Size, UsageError, UserError


def _noise(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)


def _collection(folder: Path, count: int = 10, frames: int = 30) -> Path:
    for k in range(count):
        write_video(folder / f"c{k}.mp4", _noise(frames, k))
    (folder / "captions.json").write_text(json.dumps({f"c{k}.mp4": f"clip {k}" for k in range(count)}))
    return folder


@pytest.fixture(scope="module", autouse=True)
def decoders() -> Iterator[Decoders]:
    """One pool for all tests of the module; `_inspect` uses it."""
    global _decoders
    with Decoders(2) as _decoders:
        yield _decoders


def _inspect(folder: Path, cache: Cache | None = None, **values: Any) -> Inspection:
    settings = {"path": folder, "frames": 4, "height": 16, "width": 16, "max_dropped": 0.5, **values}
    return inspect(DataConfig.parse(settings), cache, decoders=_decoders)


def test_used_and_dropped_add_up(tmp_path: Path) -> None:
    folder = _collection(tmp_path)
    write_video(folder / "short.mp4", numbered(3))
    (folder / "text.mp4").write_text("no video " * 30)
    (folder / "c0.mp4").write_bytes((folder / "c0.mp4").read_bytes()[:2000])
    captions = json.loads((folder / "captions.json").read_text())
    captions |= {"short.mp4": "s", "text.mp4": "t", "gone.mp4": "g", "c1.mp4": ["ok", "one two three"], "c2.mp4": " "}
    (folder / "captions.json").write_text(json.dumps(captions))
    seen: list[tuple[int, int, str]] = []
    result = inspect(
        DataConfig.parse({"path": folder, "frames": 4, "height": 16, "width": 16}),
        progress=lambda *values: seen.append(values),
        decoders=_decoders,
        tokens=TokenLimit(lambda captions: [len(caption.split()) for caption in captions], 2, "the tester"),
    )
    reasons = {item.id: item.reason for item in result.dropped}
    assert reasons == {
        "c0.mp4": reasons["c0.mp4"],
        "c2.mp4": "its caption is empty",
        "gone.mp4": f"named in captions.json, but no such video in {folder}",
        "short.mp4": "too short: 1 frames at 8 fps, the smallest bucket needs 4",
        "text.mp4": "not a video: it looks like a text file",
    }
    assert "no moov" in reasons["c0.mp4"]
    assert result.counts()["used"] == 8
    assert result.counts()["clips"] == 13
    assert [sample.index for sample in result.samples] == list(range(8))
    assert result.samples[0].clip.captions == ("ok", "one two three"), "what is too long is cut, not left out"
    assert ("c1.mp4", "a caption of 3 tokens; the tester reads 2: its end is not seen") in [
        (note.id, note.reason) for note in result.notes
    ]
    assert result.captions == {"given": 9, "distinct": 9, "missing": 0, "empty": 1, "too_long": 1}
    assert [clip.id for clip, _ in result.decoded] == ["short.mp4"]
    assert seen[-1] == (11, 11, "text.mp4")
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
    assert "captions: 10 given, 10 distinct, 1 missing, 0 empty" in table
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


def test_a_clip_added_never_holds_out_what_was_trained_on() -> None:
    """Neither one that ties sources together, nor one more of a source's bytes, whatever they are called."""

    def seen(source: str, content: int) -> Seen:
        info = VideoInfo(np.arange(9) / 8, 64, 64, 0, False, "h264", 0, 0.0)
        return Seen(Clip(source, Path(source), ("a",), source), f"sha {content}", info)

    def sides(clips: list[Seen]) -> dict[str, bool]:
        sources, _ = true_sources(clips, by_looks=False)
        held_out = held_out_sources(sources, 0.4)
        return {clip.clip.id: source in held_out for clip, source in zip(clips, sources, strict=True)}

    clips = [seen(f"m{k}", k % 40) for k in range(60)]
    before = sides(clips)
    assert 5 < sum(before.values()) < 55
    for k in range(60):
        clips.append(seen(f"{'az'[k % 2]}{k}", k % 40))
        after = sides(clips)
        assert sum(after.values()) > 1, "with none left, the edge of `held_out_sources` would hold"
        assert [clip for clip, held_out in before.items() if after[clip] > held_out] == []
        before = after


class _Counted(Decoders):
    """A pool that notes which files it is asked for."""

    def __init__(self) -> None:
        super().__init__(2)
        self.asked: list[str] = []

    def submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(f"{function.__name__} {args[0].name}")
        return super().submit(function, *args, **kwargs)


def test_an_unchanged_collection_is_not_decoded_again(tmp_path: Path) -> None:
    folder = _collection(tmp_path / "clips", 4)
    (folder / "c0.mp4").write_text("no video " * 30)
    time.sleep(0.12)
    settings = DataConfig.parse({"path": folder, "frames": 4, "height": 16, "width": 16, "max_dropped": 0.5})
    with _Counted() as pool:

        def look(config: DataConfig = settings, cache: str | None = "cache") -> Inspection:
            return inspect(config, Cache(tmp_path / cache) if cache else None, decoders=pool)

        first = look()
        assert pool.asked == [f"probe c{k}.mp4" for k in range(4)]
        second = look()
        assert len(pool.asked) == 4
        assert second.to_json() == first.to_json() == look(cache=None).to_json()
        del pool.asked[:]
        (folder / "c2.mp4").write_bytes((folder / "c3.mp4").read_bytes() + b"\0\0\0\x08free")
        (folder / "captions.json").write_text((folder / "captions.json").read_text().replace("clip 1", "other"))
        third = look()
        assert pool.asked == ["probe c2.mp4"]
        assert third.samples[0].clip.captions == ("other",)
        assert third.samples[0].sha256 == first.samples[0].sha256
        assert third.samples[1].sha256 != first.samples[1].sha256

        del pool.asked[:]
        cuts = settings.model_copy(update={"scene_cuts": 27.0})
        fourth = look(cuts)
        assert pool.asked == ["find_cuts c1.mp4", "find_cuts c2.mp4", "find_cuts c3.mp4"]
        assert look(cuts).to_json() == fourth.to_json() and len(pool.asked) == 3
        look(settings.model_copy(update={"scene_cuts": 30.0}))
        assert len(pool.asked) == 6, "another threshold finds other cuts"


def test_what_only_a_limit_ended_is_tried_again(tmp_path: Path) -> None:
    """A file that took too long under one setting, or on a busy machine, is not bad for ever."""
    folder = _collection(tmp_path / "clips", 2)
    config = DataConfig.parse({"path": folder, "frames": 4, "height": 16, "width": 16, "limits": {"seconds": 0.001}})

    class Slow(Decoders):
        def submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            future: Future[Any] = Future()
            future.set_exception(Unfinished("took longer than 0.001 s"))
            return future

    with Slow(1) as pool:
        assert inspect(config, Cache(tmp_path / "cache"), decoders=pool).counts()["dropped"] == 2
    assert inspect(config, Cache(tmp_path / "cache"), decoders=_decoders).counts()["dropped"] == 0


@pytest.mark.parametrize("other", ["another video", "no video"])
def test_a_file_that_changes_while_it_is_looked_at_is_not_remembered(tmp_path: Path, other: str) -> None:
    """Neither as good nor as bad: what was decoded may be of other bytes than were hashed."""
    folder = _collection(tmp_path, 2)
    changing = folder / "c1.mp4"
    before, after = changing.read_bytes(), other.encode() * 10
    if other == "another video":
        after = write_video(tmp_path / "aside.mp4", _noise(12, 9)).read_bytes()
        (tmp_path / "aside.mp4").unlink()

    class Late(Decoders):
        """A pool that comes to a file after it was replaced."""

        def submit(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            if args[0] == changing:
                changing.write_bytes(after)
            return super().submit(function, *args, **kwargs)

    with Late(1) as late:
        config = DataConfig.parse({"path": folder, "frames": 4, "height": 16, "width": 16})
        lost = inspect(config, Cache(tmp_path / "cache"), decoders=late)
    assert lost.dropped == (Dropped("c1.mp4", "changed while it was read"),)
    changing.write_bytes(before)
    again = _inspect(folder, Cache(tmp_path / "cache"))
    assert not again.dropped and again.samples[1].sha256 in again.infos
    assert again.info(again.samples[1]).num_frames == 30


def test_captions_that_are_none_are_counted(tmp_path: Path) -> None:
    folder = _collection(tmp_path, 7)
    captions = {"c0.mp4": "a", "c1.mp4": "", "c2.mp4": [], "c3.mp4": None, "c4.mp4": ["b", " "], "c5.mp4": [None]}
    (folder / "captions.json").write_text(json.dumps(captions))
    for partial in (False, True):
        counted = _inspect(folder, partial=partial, max_dropped=1).captions
        assert counted == {"given": 2, "distinct": 2, "missing": 4, "empty": 2}


def test_an_error_nobody_foresaw_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a version of a library that calls things otherwise: once that is mended, all clips are back."""
    folder = _collection(tmp_path / "clips", 2)
    (tmp_path / "other" / "scenedetect").mkdir(parents=True)
    (tmp_path / "other" / "scenedetect" / "__init__.py").write_text(
        "FrameTimecode = None\nclass ContentDetector:\n    def __init__(self, threshold):\n        pass\n"
    )
    cache = Cache(tmp_path / "cache")
    config = DataConfig.parse({"path": folder, "frames": 4, "height": 16, "width": 16, "scene_cuts": 200})
    with monkeypatch.context() as patch, Decoders(1) as broken:
        patch.setenv("PYTHONPATH", str(tmp_path / "other"))
        lost = inspect(config, cache, decoders=broken).dropped
    assert len(lost) == 2 and "failed unexpectedly: TypeError" in lost[0].reason
    assert len(inspect(config, Cache(tmp_path / "cache"), decoders=_decoders).samples) == 2
    monkeypatch.setattr(probing, "version", lambda name: "another")
    assert _decoded_again(config, Cache(tmp_path / "cache")) == ["find_cuts c0.mp4", "find_cuts c1.mp4"]


def _decoded_again(config: DataConfig, cache: Cache) -> list[str]:
    with _Counted() as counted:
        inspect(config, cache, decoders=counted)
    return counted.asked


def test_the_part_of_a_clip_that_is_used(tmp_path: Path) -> None:
    """Scenes and spread windows come out of the settings with their times."""
    first, second = _noise(1, 1), _noise(1, 2)
    write_video(tmp_path / "a.mp4", np.concatenate([np.repeat(first, 20, 0) // 4, np.repeat(second, 40, 0) // 4 + 190]))
    (tmp_path / "captions.json").write_text('{"a.mp4": "two scenes"}')
    found = _inspect(tmp_path, scene_cuts=27, validation=0, fps=10, frames=8)
    (cuts,) = found.cuts.values()
    assert cuts == pytest.approx((20 / 30,))
    assert found.samples[0].start_seconds == pytest.approx(20 / 30), "the first scene is too short"
    assert found.to_json()["samples"][0]["cuts"] == list(cuts)
    (short,) = _inspect(tmp_path, scene_cuts=27, frames=16, fps=10).dropped
    assert short.reason == "too short: its longest scene has 14 frames at 10 fps, the smallest bucket needs 16"
    (spread,) = _inspect(tmp_path, window="spread", frames=8).samples
    assert (spread.start_seconds, spread.end_seconds) == (0.0, pytest.approx(2.0))


def test_black_and_frozen_clips_are_flagged(tmp_path: Path) -> None:
    folder = _collection(tmp_path, 8)
    write_video(folder / "c0.mp4", np.zeros((30, 48, 64, 3), np.uint8))
    write_video(folder / "c1.mp4", np.repeat(_noise(1, 5), 30, axis=0))
    notes = {note.id: note.reason for note in _inspect(folder).notes}
    assert notes == {"c0.mp4": "black from first to last frame", "c1.mp4": "the same picture from first to last frame"}
    strict = _inspect(folder, flagged="drop")
    assert {item.id: item.reason for item in strict.dropped} == {
        name: f"{reason} (data.flagged = drop)" for name, reason in notes.items()
    }
    assert [clip.id for clip, _ in strict.decoded] == ["c0.mp4", "c1.mp4"]
    assert len(strict.samples) == 6


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    """A copy that was scaled and compressed has other bytes, and is the same film all the same."""
    folder = _collection(tmp_path, 9)
    films = [_film(k) for k in range(6)]
    for k, film in enumerate(films):
        write_video(folder / f"c{k}.mp4", film)
    lossy = {"codec": "libx264", "pix_fmt": "yuv420p", "options": {"crf": "30"}}
    write_video(folder / "c8.mp4", films[3][:, ::2, ::2], **lossy)
    result = _inspect(folder, validation=0.3)
    notes = [(note.id, note.reason) for note in result.notes if "looks the same" in note.reason]
    assert [name for name, _ in notes] == ["c8.mp4"]
    assert notes[0][1].startswith("looks the same as c3.mp4 (")
    assert notes[0][1].endswith("of 64 bits differ); they stay on one side of the split")
    sides = {sample.clip.id: sample.split for sample in result.samples}
    sources = {sample.clip.id: sample.clip.source for sample in result.samples}
    assert sides["c3.mp4"] == sides["c8.mp4"] and sources["c8.mp4"] == sources["c3.mp4"]
    assert sources["c3.mp4"] in ("c3.mp4", "c8.mp4")
    assert result.counts()["sources"] == 8
    assert _inspect(folder, near_duplicates=False).counts()["sources"] == 9


def _film(seed: int) -> np.ndarray:
    """30 smooth pictures 96x128 that move: what noise is not."""
    rng = np.random.default_rng(100 + seed)
    coarse = np.kron(rng.integers(0, 256, (9, 12, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    return np.stack([coarse[k // 2 : k // 2 + 96, k : k + 128] for k in range(30)])


def test_auto_buckets_are_settled(tmp_path: Path) -> None:
    folder = _collection(tmp_path, 6)
    write_video(folder / "c0.mp4", np.ascontiguousarray(_noise(30, 0).transpose(0, 2, 1, 3)))
    write_video(folder / "c1.mp4", _noise(9, 1))
    settings: dict[str, Any] = {"buckets": "auto", "height": 32, "width": 32, "bucket_multiple": 8, "frames": 8}
    result = _inspect(folder, **settings)
    assert result.config.buckets == [(8, 24, 40), (8, 40, 24), (2, 24, 40)]
    assert not result.dropped
    assert [row["size"] for row in result.to_json()["buckets"]] == [[2, 24, 40], [8, 24, 40], [8, 40, 24]]
    again = _inspect(folder, **{**settings, "buckets": [list(bucket) for bucket in result.config.buckets]})
    assert again.to_json() == result.to_json(), "a run that keeps the list repeats it"
    with pytest.raises(UsageError, match=r"data.buckets = auto: no height and width near 32x32"):
        inspect(DataConfig.parse({"path": folder, **settings}), decoders=_decoders, fits=lambda _: False)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 9), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=30
    ),
    st.floats(0, 0.9),
)
def test_nothing_that_belongs_together_is_split(clips: list[tuple[int, int, int, int]], fraction: float) -> None:
    """By source, by bytes and by looks, directly or through others; whatever the collection."""
    seen = []
    for number, (source, content, look, flipped) in enumerate(clips):
        hashes = tuple((0x9E3779B97F4A7C15 * (3 * look + k + 1)) % 2**64 ^ flipped for k in range(3))
        looks = Looks(3, 255.0, 9.0, 90.0, hashes)  # type: ignore[arg-type]
        info = VideoInfo(np.arange(9) / 8, 64, 64, 0, False, "h264", 0, 0.0, looks)
        clip = Clip(f"{number:03}", Path(f"{number}.mp4"), ("a",), f"source {source}")
        seen.append(Seen(clip, f"sha {content}", info))
    sources, _ = true_sources(seen)
    held_out = held_out_sources(sources, fraction)
    assert set(sources) <= {clip.clip.source for clip in seen}
    for a, first in enumerate(seen):
        for b, second in enumerate(seen):
            together = first.clip.source == second.clip.source or first.sha256 == second.sha256
            if together or first.info.looks.distance(second.info.looks) <= NEAR_BITS:
                assert sources[a] == sources[b]
                assert (sources[a] in held_out) == (sources[b] in held_out)
    if len(set(sources)) >= 2:
        assert held_out != set(sources), "something is left to train on"


def test_the_real_clips_are_all_used(shared: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shared("clips")
    config = DataConfig.parse({"path": folder, "only": folder / "eight.json", "validation": 0})
    result = inspect(config, Cache(tmp_path), decoders=_decoders)
    assert len(result.samples) == 8
    assert not result.dropped
    assert not result.notes
    assert {sample.size for sample in result.samples} == {Size(16, 64, 64)}
    assert {(info.width, info.height) for info in result.infos.values()} == {(640, 360)}
