"""Black, frozen and known pictures, told from at most 16 small ones, however long a video is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from made_videos import Frames, write_video

from reelwright.data.decode import probe
from reelwright.data.looks import MOST_KEPT, SIDE, UNSEEN, Looks, Observer, distance, picture_hash

LOSSY = {"codec": "libx264", "pix_fmt": "yuv420p", "options": {"crf": "28", "preset": "veryfast"}}


def _scene(count: int, height: int = 96, width: int = 128, seed: int = 0) -> Frames:
    """Soft shapes of random frequencies that drift."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : 1j * height, 0 : 1 : 1j * width]
    frames = np.zeros((count, height, width, 3))
    for _ in range(12):
        fx, fy, phase, speed = random.uniform((-3, -3, 0, 0.02), (3, 3, 7, 0.1))
        wave = [np.sin(2 * np.pi * (fx * x + fy * y) + phase + speed * k) for k in range(count)]
        frames += np.stack(wave)[..., None] * random.uniform(5, 18, 3)
    return np.clip(128 + frames, 0, 255).astype(np.uint8)


def _looks(path: Path, frames: Frames, **settings: object) -> Looks:
    return probe(write_video(path, frames, **(LOSSY | settings))).looks  # type: ignore[arg-type]


def test_a_black_video_is_black_and_frozen(tmp_path: Path) -> None:
    looks = _looks(tmp_path / "a.mp4", np.zeros((40, 96, 128, 3), dtype=np.uint8))
    assert (looks.is_black, looks.is_frozen, looks.brightest) == (True, True, 0.0)
    assert looks.hashes == (0, 0, 0)
    lit = np.zeros((40, 96, 128, 3), dtype=np.uint8)
    lit[20:23, 40:48, 60:68] = 255  # a tenth of a second, half a per cent of the picture
    looks = _looks(tmp_path / "b.mp4", lit)
    assert (looks.is_black, looks.is_frozen) == (False, False)


def test_a_still_picture_is_frozen_and_a_small_thing_that_moves_is_not(tmp_path: Path) -> None:
    still = np.repeat(_scene(1, 180, 320), 60, axis=0)
    looks = _looks(tmp_path / "still.mp4", still, options={"crf": "30", "g": "10", "preset": "veryfast"})
    assert looks.is_frozen
    assert not looks.is_black
    moving = still.copy()
    for k in range(60):
        moving[k, 50:56, 20 + k : 26 + k] = 255
    looks = _looks(tmp_path / "moving.mp4", moving)
    assert not looks.is_frozen
    assert looks.change < 1 < 20 < looks.largest_change


def test_one_picture_is_not_frozen(tmp_path: Path) -> None:
    looks = _looks(tmp_path / "a.mp4", _scene(1))
    assert (looks.pictures, looks.is_frozen, looks.change) == (1, False, 0.0)


def _timed(picture: np.ndarray, seconds: float | None) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(picture, format="gray")
    frame.time_base = Fraction(1, 16000)
    frame.pts = None if seconds is None else round(16000 * seconds)
    return frame


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 32, 33, 100, 1000])
def test_at_most_16_pictures_are_kept_evenly_to_the_end(count: int) -> None:
    observer = Observer()
    for k in range(count):
        level = k * 255 // max(1, count - 1)
        picture = np.full((SIDE, SIDE), level, dtype=np.uint8)
        picture[:, : SIDE // 2] //= 2
        observer.see(_timed(picture, k / 16), lambda small: small)
    looks = observer.looks()
    assert looks.pictures == count if count <= MOST_KEPT else MOST_KEPT / 2 < looks.pictures <= MOST_KEPT
    levels = [int(small[0, -1]) for _, small in observer._kept]
    assert levels[0] == 0
    assert levels[-1] >= 255 * (1 - 1 / 8) or count == 1
    assert np.diff(levels).max(initial=0) - np.diff(levels).min(initial=255) <= 1 or count < 3


def test_frames_without_times_and_times_that_start_again_are_taken_as_they_come() -> None:
    for times in ([None] * 500, [k / 25 for k in range(250)] * 2, [3600.0 * (k > 250) + k / 25 for k in range(500)]):
        observer = Observer()
        for k, seconds in enumerate(times):
            picture = np.full((SIDE, SIDE), k // 2, dtype=np.uint8)
            observer.see(_timed(picture, seconds), lambda small: small)
        assert 3 <= observer.looks().pictures <= MOST_KEPT
        assert observer._kept[-1][1][0, 0] >= 200


def test_change_is_the_mean_over_pairs_and_parts() -> None:
    observer = Observer()
    for k, level in enumerate((10, 20, 50)):
        picture = np.zeros((SIDE, SIDE), dtype=np.uint8)
        picture[: SIDE // 4] = level
        observer.see(_timed(picture, k), lambda small: small)
    looks = observer.looks()
    assert looks.change == pytest.approx((10 + 30) / 2 / 4)
    assert (looks.largest_change, looks.brightest) == (40.0, 50.0)


def test_a_copy_is_near_and_another_video_is_far(tmp_path: Path) -> None:
    scene = _scene(24, seed=1)
    original = _looks(tmp_path / "a.mp4", scene)
    worse = _looks(tmp_path / "b.mp4", scene, options={"crf": "40", "preset": "veryfast"})
    smaller = _looks(tmp_path / "c.mp4", scene[:, ::2, ::2])
    brighter = _looks(tmp_path / "d.mp4", (scene * 0.8 + 40).astype(np.uint8))
    slower = _looks(tmp_path / "e.mp4", scene[::2], time_base=Fraction(1, 15))
    assert max(original.distance(copy) for copy in (worse, smaller, brighter, slower)) <= 8
    others = [_looks(tmp_path / f"{seed}.mp4", _scene(24, seed=seed)) for seed in range(2, 6)]
    assert min(original.distance(other) for other in others) >= 16


def test_turned_files_look_as_they_are_shown(tmp_path: Path) -> None:
    scene = _scene(8, 96, 96)
    path = write_video(tmp_path / "a.mp4", np.rot90(scene, axes=(1, 2)), **LOSSY)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    turned = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in turned)
    path.write_bytes(data)
    assert probe(path).rotation == 90
    assert probe(path).looks.distance(_looks(tmp_path / "b.mp4", scene)) <= 6


def test_the_hash_is_that_of_a_cosine_transform() -> None:
    small = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    n = np.arange(SIDE)
    waves = [np.cos(np.pi * u * (2 * n + 1) / (2 * SIDE)) for u in range(8)]
    coefficients = np.array([(small * np.outer(down, across)).sum() for down in waves for across in waves])
    expected = "1" + "".join(str(int(value > np.median(coefficients[1:]))) for value in coefficients[1:])
    assert format(picture_hash(small), "064b") == expected


def test_hashes_know_detail_not_brightness() -> None:
    small = np.random.default_rng(1).integers(60, 120, (SIDE, SIDE), dtype=np.uint8)
    assert picture_hash(small) == picture_hash(small + np.uint8(100))
    assert distance(picture_hash(small), picture_hash(255 - small)) >= 60
    flat = picture_hash(np.full((SIDE, SIDE), 77, dtype=np.uint8))
    assert (flat, distance(flat, flat)) == (0, 64)


def test_distance_counts_bits() -> None:
    assert distance(0b1011, 0b1000) == 2
    a = replace(UNSEEN, hashes=(7, 7, 7))
    assert a.distance(replace(a, hashes=(7, 4, 6))) == 2
    assert UNSEEN.distance(UNSEEN) == 64
    assert not (UNSEEN.is_black or UNSEEN.is_frozen)


def test_plain_form_is_checked(tmp_path: Path) -> None:
    looks = _looks(tmp_path / "a.mp4", _scene(5))
    plain = json.loads(json.dumps(looks.to_plain()))
    assert Looks.from_plain(plain) == looks
    wrong = [("pictures", "3"), ("brightest", 300.0), ("change", True), ("hashes", [1, 2]), ("hashes", [1, 2, 1 << 64])]
    for name, value in wrong:
        with pytest.raises(ValueError):
            Looks.from_plain({**plain, name: value})
    with pytest.raises(TypeError):
        Looks.from_plain({**plain, "other": 1})


def test_real_clips_are_all_different(shared: Callable[[str], Path]) -> None:
    clips = sorted((shared("clips") / "videos").iterdir())[:4]
    looks = [probe(path).looks for path in clips]
    assert not any(each.is_black or each.is_frozen for each in looks)
    assert min(a.distance(b) for i, a in enumerate(looks) for b in looks[:i]) >= 14
