import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from reelwright.types import UsageError, UserError
from reelwright.video.write import FORMATS, read_frames, read_recipe, sidecar_path, write_video

RECIPE = {
    "prompt": "ein grüner Kreis, 绿色圆圈, круг 🎬\n" * 2000,
    "seed": 0,
    "steps": 50,
    "model": "sha256:ab",
    "none": None,
}


def smooth_clip(num_frames: int = 16, height: int = 64, width: int = 64) -> np.ndarray:
    """Slow colour waves, uint8 `f h w c`."""
    f, y, x = np.mgrid[0:num_frames, 0:height, 0:width].astype(float)
    waves = [np.sin((x + 3 * f) / 12), np.cos((y - 2 * f) / 15), np.sin((x + y + f) / 20)]
    return np.stack([127 + 100 * wave for wave in waves], axis=-1).round().astype(np.uint8)


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("size", [(64, 64), (63, 61), (64, 61), (8, 8)])
def test_a_smooth_clip_comes_back(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    clip = smooth_clip(16, *size)
    write_video(tmp_path / f"x{suffix}", clip, 8)
    frames, fps = read_frames(tmp_path / f"x{suffix}")
    assert frames.shape == clip.shape and frames.dtype == np.uint8
    assert fps == 8.0
    assert decibels(clip, frames) > 35


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize(("num_frames", "fps"), [(1, 8), (2, 24), (17, 23.976), (5, 0.5), (9, 60)])
def test_frame_count_and_rate_are_exact(tmp_path: Path, suffix: str, num_frames: int, fps: float) -> None:
    path = tmp_path / f"x{suffix}"
    write_video(path, smooth_clip(num_frames, 32, 32), fps)
    frames, read_fps = read_frames(path)
    assert len(frames) == num_frames
    assert read_fps == pytest.approx(fps, rel=1e-6)
    with av.open(str(path)) as container:
        times = [float(frame.time or 0.0) for frame in container.decode(video=0)]
    assert times == pytest.approx([index / fps for index in range(num_frames)], abs=1e-3)


def test_a_gif_keeps_every_frame_and_its_length(tmp_path: Path) -> None:
    clip = smooth_clip(16)
    clip[5:9] = clip[5]  # equal neighbours must not be merged
    write_video(tmp_path / "x.gif", clip, 8)
    frames, fps = read_frames(tmp_path / "x.gif")
    assert frames.shape == clip.shape
    assert fps == 8.0
    assert decibels(clip, frames) > 25  # 256 colours


def test_a_tensor_and_its_array_give_the_same_file(tmp_path: Path) -> None:
    import torch

    clip = smooth_clip(4)
    write_video(tmp_path / "a.mp4", clip, 8)
    write_video(tmp_path / "b.mp4", torch.from_numpy(clip), 8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_frames_and_recipe_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    """Also from another process: nothing of the process, the clock or the machine may enter the file."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from reelwright.video.write import write_video\n"
        "clip = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)\n"
        "write_video(Path(sys.argv[1]), clip, 8, {'prompt': 'a'})"
    )
    clip = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    write_video(tmp_path / f"a{suffix}", clip, 8, {"prompt": "a"})
    subprocess.run([sys.executable, "-c", program, str(tmp_path / f"b{suffix}")], check=True)
    digests = {hashlib.sha256((tmp_path / f"{name}{suffix}").read_bytes()).hexdigest() for name in "ab"}
    assert len(digests) == 1


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_recipe_is_in_the_container(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_video(path, smooth_clip(2, 33, 32), 8, RECIPE)
    assert json.loads(sidecar_path(path).read_text(encoding="utf-8")) == RECIPE
    sidecar_path(path).unlink()
    assert read_recipe(path) == RECIPE
    assert read_frames(path)[0].shape == (2, 33, 32, 3)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_prompt_of_broken_unicode_is_kept(tmp_path: Path, suffix: str) -> None:
    recipe = {"prompt": "half \ud800 letter \0"}
    write_video(tmp_path / f"x{suffix}", smooth_clip(1), 8, recipe)
    sidecar_path(tmp_path / f"x{suffix}").unlink()
    assert read_recipe(tmp_path / f"x{suffix}") == recipe


def test_the_json_beside_serves_where_the_container_lost_it(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", smooth_clip(2), 8, {"seed": 3})
    sidecar = sidecar_path(tmp_path / "x.mp4").read_text()
    write_video(tmp_path / "x.mp4", smooth_clip(2), 8)
    assert not sidecar_path(tmp_path / "x.mp4").exists(), "an older file's recipe must not stay"
    sidecar_path(tmp_path / "x.mp4").write_text(sidecar)
    assert read_recipe(tmp_path / "x.mp4") == {"seed": 3}


def test_no_recipe_is_said_in_plain_words(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", smooth_clip(2), 8)
    with pytest.raises(UserError, match="carries no recipe"):
        read_recipe(tmp_path / "x.mp4")
    (tmp_path / "y.mp4").write_text("this is text")
    with pytest.raises(UserError, match="carries no recipe"):
        read_recipe(tmp_path / "y.mp4")
    (tmp_path / "y.gif").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match="carries no recipe"):
        read_recipe(tmp_path / "y.gif")
    with pytest.raises(UsageError, match="no such file"):
        read_recipe(tmp_path / "z.mp4")


def test_what_is_no_video_is_said_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is text")
    (tmp_path / "empty.mp4").touch()
    write_video(tmp_path / "whole.mp4", smooth_clip(8), 8)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:300])
    for name in ("text", "empty", "cut"):
        with pytest.raises(UserError, match=rf"{name}\.mp4"):
            read_frames(tmp_path / f"{name}.mp4")


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'\.avi'.*\.mp4, \.webm, \.gif"):
        write_video(tmp_path / "x.avi", smooth_clip(1), 8)
    with pytest.raises(UsageError, match="gif holds at most 50"):
        write_video(tmp_path / "x.gif", smooth_clip(1), 60)
    for wrong in (smooth_clip(1)[0], smooth_clip(1).astype(np.float32), smooth_clip(1)[:0], smooth_clip(1)[..., :1]):
        with pytest.raises(ValueError, match="uint8 'f h w 3'"):
            write_video(tmp_path / "x.mp4", wrong, 8)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps"):
            write_video(tmp_path / "x.mp4", smooth_clip(1), fps)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.mp4"
    write_video(path, smooth_clip(4), 8, {"seed": 1})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_video(path, smooth_clip(8), 8, {"seed": 2})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_kill_leaves_no_half_file(tmp_path: Path) -> None:
    """Killed at several moments of writing over and over: what has the name is always a whole video."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from reelwright.video.write import write_video\n"
        "clip = np.random.default_rng(0).integers(0, 256, (12, 128, 128, 3), dtype=np.uint8)\n"
        "print('ready', flush=True)\n"
        "while True: write_video(Path(sys.argv[1]), clip, 8, {'prompt': 'a'})"
    )
    for attempt in range(3):
        path = tmp_path / f"{attempt}.mp4"
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(0.15 + 0.037 * attempt)
            process.send_signal(signal.SIGKILL)
        if path.exists():
            assert read_frames(path)[0].shape == (12, 128, 128, 3)
            assert read_recipe(path) == {"prompt": "a"}
            assert json.loads(sidecar_path(path).read_text()) == {"prompt": "a"}
