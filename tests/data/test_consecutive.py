"""A video read from end to end in portions is the video: every frame once, as it is shown, opened once."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hostile_files import endless_gif
from made_videos import write_video

from reelwright.data import consecutive
from reelwright.data.consecutive import Container, describe, portions, read_portion
from reelwright.data.decode import BadVideo, probe, read_window
from reelwright.data.limits import LimitsConfig
from reelwright.data.sandbox import Decoders
from reelwright.types import Size

EIGHTH = Fraction(1, 8)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Slopes that move, so that no two are alike: uint8 `f h w c`."""
    f, y, x = np.mgrid[0:count, 0:48, 0:64]
    return np.stack([4 * x + 7 * f + seed, 5 * y + 3 * f, 2 * (x + y) + 11 * f], axis=-1).astype(np.uint8)


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    consecutive._left_open.clear()
    yield
    consecutive._left_open.clear()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """20 frames at 8 fps."""
    return write_video(tmp_path / "a.mp4", pictures(20), time_base=EIGHTH)


def whole(path: Path) -> np.ndarray:
    """All of it by the reader of windows: the frames nearest to the times of a rate that is its own."""
    info = probe(path)
    return read_window(path, Size(info.num_frames, info.height, info.width), info.fps, info=info)


def read(path: Path, count: int) -> np.ndarray:
    info = probe(path)
    turned = info.rotation, info.mirrored
    starts = range(0, info.num_frames, count)
    sizes = [Size(min(count, info.num_frames - n), info.height, info.width) for n in starts]
    return np.concatenate([read_portion(path, s, n, *turned) for n, s in zip(starts, sizes, strict=True)])


@pytest.mark.parametrize("count", [1, 7, 20])
def test_portions_are_the_video_and_open_it_once(video: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, opens = whole(video), []
    opened = consecutive.opened
    monkeypatch.setattr(consecutive, "opened", lambda path: opens.append(path) or opened(path))
    assert np.array_equal(read(video, count), expected) and opens == [video]


def test_in_any_order_and_from_a_child_they_are_the_same(video: Path, tmp_path: Path) -> None:
    other = write_video(tmp_path / "b.mp4", pictures(20, seed=90), time_base=EIGHTH)
    expected = {video: whole(video), other: whole(other)}
    size = Size(4, 48, 64)
    with Decoders(1) as decoders:
        for path, first in ((video, 8), (video, 12), (other, 16), (video, 16), (video, 0), (other, 4), (video, 4)):
            frames = decoders.call(read_portion, path, size, first, 0, False)
            assert np.array_equal(frames, expected[path][first : first + 4]), (path, first)
            assert np.array_equal(read_portion(path, size, first, 0, False), frames)


def test_turned_and_wide_pixels_are_as_shown(tmp_path: Path) -> None:
    frames = pictures(6)
    path = write_video(tmp_path / "wide.mp4", frames, time_base=EIGHTH, pixel_aspect=Fraction(2, 1))
    assert read(path, 4).shape == (6, 48, 128, 3) and np.array_equal(read(path, 4), whole(path))
    upright = probe(write_video(tmp_path / "plain.mp4", frames, time_base=EIGHTH))
    turned = read_portion(tmp_path / "plain.mp4", Size(6, upright.width, upright.height), 0, 90, True)
    expected = np.rot90(whole(tmp_path / "plain.mp4"), k=-1, axes=(1, 2))[:, :, ::-1]
    assert np.array_equal(turned, expected)


def test_a_video_that_ends_too_early_is_told(video: Path) -> None:
    with pytest.raises(BadVideo, match="ends after 20 frames, where more were found before"):
        read_portion(video, Size(8, 48, 64), 16, 0, False)
    assert not consecutive._left_open
    with pytest.raises(BadVideo, match="ends after 20 frames"):
        read_portion(video, Size(1, 48, 64), 20, 0, False)


def test_portions_cover_a_video_within_their_bytes() -> None:
    for size in (Size(1, 8, 8), Size(1000, 1080, 1920), Size(3, 4320, 7680)):
        parts = portions(size)
        assert [first for first, _ in parts] == [sum(p.frames for _, p in parts[:n]) for n in range(len(parts))]
        assert sum(part.frames for _, part in parts) == size.frames
        assert all(p.frames == 1 or p.frames * p.height * p.width * 3 <= consecutive.PORTION_BYTES for _, p in parts)


def test_what_the_container_says(video: Path) -> None:
    with Decoders(1) as decoders:
        container = Container.from_text(decoders.call(describe, video))
    assert container == Container.from_text(describe(video)) == Container(Fraction(8), False, "")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"rate": [1, 0], "sound": 0, "description": ""}', '{"rate": 8, "sound": false}',
             '{"rate": ["x", 1], "sound": false, "description": ""}', '{"sound": true, "description": ""}'],
)  # fmt: skip
def test_nonsense_of_a_child_is_no_container(text: str) -> None:
    with pytest.raises(BadVideo, match="nonsense"):
        Container.from_text(text)


def test_a_bomb_reaches_its_limit_and_the_parent_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 pictures of 2000 x 2000 in 4 MB."""
    monkeypatch.setattr("reelwright.data.sandbox.SECONDS_PER_MB", 0.1)
    bomb = endless_gif(tmp_path / "bomb.gif", 200_000, 2000)
    with Decoders(1, LimitsConfig(memory_mb=256, seconds=0.5)) as decoders:
        with pytest.raises(BadVideo, match=r"data\.limits\."):
            decoders.call(read_portion, bomb, Size(1, 2000, 2000), 199_999, 0, False)
        small = write_video(tmp_path / "a.mp4", pictures(2), time_base=EIGHTH)
        assert decoders.call(read_portion, small, Size(2, 48, 64), 0, 0, False).shape == (2, 48, 64, 3)
