"""Sound videos with bytes changed at random: each decodes exactly or is refused with a reason. Nothing else happens."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from hostile_files import mutated
from made_videos import numbered, write_video

from reelwright.data.decode import BadVideo, VideoInfo, probe, read_window
from reelwright.data.limits import LimitsConfig
from reelwright.data.sandbox import Decoders
from reelwright.types import Size

FEW, MANY = 64, 3000
SEED = 20261121
LIMITS = LimitsConfig(memory_mb=512, seconds=10)
LARGEST_SEED_FILE = 110_000  # bytes; larger files mostly decode for longer
EVERY = 8  # of the odd files in the short run


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders(2, LIMITS) as pool:
        yield pool


@pytest.fixture(scope="module")
def fresh() -> Iterator[Decoders]:
    """Another pool, to decode a second time."""
    with Decoders(1, LIMITS) as pool:
        yield pool


@pytest.fixture(scope="module")
def seed_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small sound files of many kinds."""
    folder = tmp_path_factory.mktemp("seeds")
    rng = np.random.default_rng(SEED)
    frames = numbered(12) // 2 + rng.integers(0, 100, (12, 48, 64, 3), dtype=np.uint8)
    yuv = {"pix_fmt": "yuv420p", "options": {}}
    return [
        write_video(folder / "h264.mp4", frames, codec="libx264", **yuv),
        write_video(folder / "lossless.mkv", frames),
        write_video(folder / "mpeg4.avi", frames, codec="mpeg4", **yuv),
        write_video(folder / "vp9.webm", frames, codec="libvpx-vp9", **yuv),
        write_video(folder / "mpeg2.ts", frames, codec="mpeg2video", **yuv),
        write_video(folder / "mjpeg.mov", frames, codec="mjpeg", pix_fmt="yuvj420p", options={}),
        write_video(folder / "animation.gif", frames, codec="gif", pix_fmt="rgb8", options={}),
        write_video(folder / "picture.png", frames[:1], codec="png", pix_fmt="rgb24", options={}),
    ]  # fmt: skip


def check(decoders: Decoders, fresh: Decoders, files: list[Path]) -> tuple[int, int]:
    """(decoded, refused): every file is one or the other; what decodes does so twice, and frame by frame, alike."""
    jobs: list[tuple[Path, Future[VideoInfo]]] = [(path, decoders.submit(probe, path)) for path in files]
    decoded = refused = 0
    for path, job in jobs:
        try:
            info = job.result(timeout=300)
        except BadVideo as bad:
            refused += 1
            assert str(bad) and "unexpectedly" not in str(bad), (path, bad)
            continue
        decoded += 1
        assert info.num_frames >= 1
        # Frames whose times are all different, so that asking for a time names one frame.
        times = np.unique(info.timestamps)
        last = min(3, len(times) - 1)
        fps = 1 / max(float(times[last] - times[0]) / max(last, 1), 1e-3)
        size = Size(1 + last, 16, 16)
        try:
            frames = decoders.call(read_window, path, size, fps, 0.0, info)
            again = fresh.call(read_window, path, size, fps, 0.0, info)
        except BadVideo as bad:
            assert "too short" in str(bad) or "decode" in str(bad) or "pixel" in str(bad), (path, bad)
            continue
        assert frames.shape == (1 + last, 16, 16, 3)
        assert np.array_equal(frames, again), path
        single = fresh.call(read_window, path, Size(1, 16, 16), fps, last / fps, info)
        assert np.array_equal(single[0], frames[last]), path
    assert decoded + refused == len(files)
    return decoded, refused


def mutants(seeds: list[Path], folder: Path, count: int) -> list[Path]:
    rng = random.Random(SEED)
    made = []
    for number in range(count):
        seed = seeds[number % len(seeds)]
        path = folder / f"{number:04d}-{seed.name}"
        path.write_bytes(mutated(seed.read_bytes(), rng))
        made.append(path)
    return made


def test_the_seeds_themselves_decode(decoders: Decoders, fresh: Decoders, seed_files: list[Path]) -> None:
    assert check(decoders, fresh, seed_files) == (len(seed_files), 0)


def test_mutated_videos(decoders: Decoders, fresh: Decoders, seed_files: list[Path], tmp_path: Path) -> None:
    decoded, refused = check(decoders, fresh, mutants(seed_files, tmp_path, FEW))
    assert decoded and refused  # the changes are neither all fatal nor all harmless


def test_mutated_odd_videos(decoders: Decoders, fresh: Decoders, tmp_path: Path, shared: Callable[[str], Path]) -> None:
    check(decoders, fresh, mutants(odd_files(shared)[::EVERY], tmp_path, FEW // 4))


@pytest.mark.full
def test_thousands_of_mutated_videos(
    decoders: Decoders, fresh: Decoders, seed_files: list[Path], tmp_path: Path
) -> None:
    started = time.monotonic()
    decoded, refused = check(decoders, fresh, mutants(seed_files, tmp_path, MANY))
    print(f"{decoded} decoded, {refused} refused in {time.monotonic() - started:.0f} s")


@pytest.mark.full
def test_hundreds_of_mutated_odd_videos(
    decoders: Decoders, fresh: Decoders, tmp_path: Path, shared: Callable[[str], Path]
) -> None:
    started = time.monotonic()
    decoded, refused = check(decoders, fresh, mutants(odd_files(shared), tmp_path, MANY // 6))
    print(f"{decoded} decoded, {refused} refused in {time.monotonic() - started:.0f} s")


def odd_files(shared: Callable[[str], Path]) -> list[Path]:
    paths = sorted(shared("odd-media").iterdir())
    return [path for path in paths if path.suffix != ".csv" and path.stat().st_size <= LARGEST_SEED_FILE]
