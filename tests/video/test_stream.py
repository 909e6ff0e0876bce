"""Pictures written one at a time: the same file as all at once, true times, a true size."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from reelwright.types import UsageError, UserError
from reelwright.video.stream import even_rate, true_size
from reelwright.video.write import read_frames, read_recipe, sidecar_path, streamed_video, write_video


def clip(num_frames: int = 9, height: int = 64, width: int = 64) -> np.ndarray:
    f, y, x = np.mgrid[0:num_frames, 0:height, 0:width].astype(float)
    waves = [np.sin((x + 3 * f) / 12), np.cos((y - 2 * f) / 15), np.sin((x + y + f) / 20)]
    return np.stack([127 + 100 * wave for wave in waves], axis=-1).round().astype(np.uint8)


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.time or 0) for frame in container.decode(video=0)]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_one_by_one_is_the_same_file_as_all_at_once(tmp_path: Path, suffix: str) -> None:
    frames = clip(9, 63, 65)
    write_video(tmp_path / f"a{suffix}", frames, 24, {"prompt": "a"})
    with streamed_video(tmp_path / f"b{suffix}", 63, 65, Fraction(24), {"prompt": "a"}) as add:
        for picture in frames:
            add(picture)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert read_recipe(tmp_path / f"b{suffix}") == {"prompt": "a"}
    assert read_frames(tmp_path / f"b{suffix}")[0].shape == frames.shape


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_uneven_times_are_kept(tmp_path: Path, suffix: str) -> None:
    seconds = [0.0, 0.04, 0.2, 0.24, 1.0, 1.001, 1.5]
    with streamed_video(tmp_path / f"x{suffix}", 64, 64, Fraction(4), steady=False) as add:
        for picture, time in zip(clip(7), seconds, strict=True):
            add(picture, time)
    assert times_of(tmp_path / f"x{suffix}") == pytest.approx(seconds, abs=1e-3)


def test_times_that_do_not_rise_are_made_to(tmp_path: Path) -> None:
    with streamed_video(tmp_path / "x.mp4", 64, 64, Fraction(4), steady=False) as add:
        for picture, time in zip(clip(4), [0, 0.5, 0.5, 0.5], strict=True):
            add(picture, time)
    assert np.all(np.diff(times_of(tmp_path / "x.mp4")) > 0)


def test_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), streamed_video(tmp_path / "x.mp4", 64, 64, Fraction(8), {"seed": 1}) as add:
        add(clip(1)[0])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(UsageError, match=r"one of \.mp4, \.webm"),
        streamed_video(tmp_path / "x.gif", 8, 8, Fraction(8)),
    ):
        pass
    assert not sidecar_path(tmp_path / "x.gif").exists()


@pytest.mark.parametrize(
    ("description", "size"),
    [
        ("", (64, 66)),
        ("padded from 65x63", (63, 65)),
        ("padded from 66x63", (63, 66)),
        ("padded from 12x63", (63, 66)),  # nobody pads by 54 columns
        ("padded from everything", (64, 66)),
        ("a holiday", (64, 66)),
    ],
)
def test_the_true_size(description: str, size: tuple[int, int]) -> None:
    assert true_size(64, 66, description) == size


@pytest.mark.parametrize("nominal", [Fraction(30000, 1001), None, Fraction(1000)])
def test_an_even_rate_is_known_through_rounded_timestamps(nominal: Fraction | None) -> None:
    seconds = (np.arange(300) * 1001 / 30000).round(3)
    rate, steady = even_rate(seconds, nominal)
    assert steady and float(rate) == pytest.approx(30000 / 1001, abs=1e-3)
    if nominal == Fraction(30000, 1001):
        assert rate == nominal


def test_a_gif_at_eight_frames_a_second_is_even() -> None:
    assert even_rate((np.arange(16) / 8).round(2), Fraction(100, 13)) == (Fraction(8), True)


def test_an_uneven_rate_is_told() -> None:
    assert even_rate(np.array([0, 0.1, 0.5, 0.6]), Fraction(5)) == (Fraction(5), False)
    with pytest.raises(UserError, match="same timestamp"):
        even_rate(np.zeros(3), Fraction(5))
