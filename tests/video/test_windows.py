"""Windows over a video: nothing lost, nothing doubled, no seam, and no more in memory than a window."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelwright.types import Size, UserError
from reelwright.video.windows import Pictures, Windows, through_windows


def counted(count: int, height: int = 3, width: int = 5) -> Pictures:
    """Frame k is flat with the value k."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, height, width, 3)).copy()


def laid_out(num_frames: int, length: int, hop: int) -> Windows:
    last = max(0, num_frames - length)
    return Windows(Size(length, 4, 8), (*range(0, last, hop), last), num_frames)


@given(st.integers(1, 60), st.integers(1, 16), st.integers(1, 16))
def test_what_changes_nothing_gives_every_frame_once_and_in_order(num_frames: int, length: int, hop: int) -> None:
    video = counted(num_frames)
    windows = laid_out(num_frames, length, min(hop, length))
    seen: list[tuple[int, int]] = []

    def change(frames: Pictures, first: int) -> Pictures:
        assert frames.shape == (length, 4, 8, 3)
        seen.append((first, int(frames[0, 0, 0, 0])))
        return frames

    assert np.array_equal(np.stack(list(through_windows(video, windows, change))), video)
    assert seen == [(start, start) for start in windows.starts]


def test_the_rim_is_padded_with_what_stands_there() -> None:
    video = np.random.default_rng(0).integers(0, 256, (3, 3, 5, 3), dtype=np.uint8)

    def change(frames: Pictures, first: int) -> Pictures:
        assert np.array_equal(frames[:3, :3, :5], video)
        assert np.array_equal(frames[3], frames[2])
        assert np.array_equal(frames[:, 3], frames[:, 2])
        assert np.array_equal(frames[:, :, 7], frames[:, :, 4])
        return frames

    assert len(list(through_windows(video, Windows(Size(4, 4, 8), (0,), 3), change))) == 3


def test_windows_that_disagree_meet_in_an_even_slope() -> None:
    """Window n answers with the flat value 20 n: between two of them the video climbs by the same step a frame."""
    windows = laid_out(32, 16, 8)  # starts 0, 8, 16

    def change(frames: Pictures, first: int) -> Pictures:
        return np.full_like(frames, 20 * first // 8)

    flat = [int(picture[0, 0, 0]) for picture in through_windows(counted(32), windows, change)]
    assert flat[:8] == [0] * 8 and flat[-8:] == [40] * 8
    assert max(np.abs(np.diff(flat))) <= 3  # 20 over 8 frames, rounded
    assert flat == sorted(flat)


def test_no_more_than_a_window_is_read_ahead() -> None:
    read = 0

    def pictures() -> Iterator[Pictures]:
        nonlocal read
        for picture in counted(200):
            read += 1
            yield picture

    windows = laid_out(200, 16, 8)
    for written, _ in enumerate(through_windows(pictures(), windows, lambda frames, _: frames)):
        assert read - written <= 16


def test_a_video_that_ends_before_its_time_is_told() -> None:
    with pytest.raises(UserError, match="ends after 20 frames; it had 32 before"):
        list(through_windows(counted(20), laid_out(32, 16, 8), lambda frames, _: frames))
