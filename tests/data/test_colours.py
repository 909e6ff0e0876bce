"""Colours by the tags: against BT.601, 709, 2020, 2100 and 2390 worked out here, and against the ffmpeg program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from made_videos import planar, write_video
from numpy.typing import NDArray

from reelwright.data.colours import PEAK_LIGHT, REFERENCE_WHITE, pq_light, pq_signal, to_rgb
from reelwright.data.decode import BadVideo, opened, probe, read_window
from reelwright.types import Size

LOSSLESS = {"codec": "ffv1", "options": {"level": "3"}}
LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # by matrix: Kr, Kb
SIDE = 24  # pixels of a patch
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="compares with the ffmpeg program")


def _patches(seed: int = 0, count: int = 48) -> NDArray[np.float64]:
    """R'G'B' of `count` colours in 0..1, black and white among them, as a picture of SIDE x SIDE patches: h w c."""
    colours = np.random.default_rng(seed).uniform(0, 1, (count, 3))
    colours[0], colours[1] = 0, 1
    return colours.reshape(6, count // 6, 3).repeat(SIDE, axis=0).repeat(SIDE, axis=1)


def _coded(rgb: NDArray[np.float64], matrix: int, limited: bool, bits: int) -> tuple[NDArray, NDArray, NDArray]:
    """Y'CbCr of R'G'B' in 0..1, each h w, as integers (H.273, 8.3)."""
    kr, kb = LUMA[matrix]
    red, green, blue = np.moveaxis(rgb, -1, 0)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr))
    unit = 1 << (bits - 8)
    if limited:
        planes = unit * (16 + 219 * luma), unit * (128 + 224 * cb), unit * (128 + 224 * cr)
    else:
        top = (1 << bits) - 1
        planes = top * luma, 128 * unit + top * cb, 128 * unit + top * cr
    return tuple(np.rint(plane).clip(0, (1 << bits) - 1).astype(np.uint16) for plane in planes)  # type: ignore[return-value]


def _frame(planes: tuple[NDArray, NDArray, NDArray], layout: str) -> av.VideoFrame:
    """A frame of full-size planes; chroma is constant in every patch, so it is picked."""
    down, across = {"yuv420p": (2, 2), "yuv422p": (1, 2), "yuv444p": (1, 1)}[layout.removesuffix("10le")]
    kind = np.uint16 if layout.endswith("10le") else np.uint8
    return planar([planes[0].astype(kind), *(plane[::down, ::across].astype(kind) for plane in planes[1:])], layout)


def _write(
    path: Path, rgb: NDArray[np.float64], layout: str, tags: dict[str, int], as_matrix: int, limited: bool
) -> Path:
    bits = 10 if layout.endswith("10le") else 8
    planes = _coded(rgb, as_matrix, limited, bits)
    return write_video(path, [planes], pix_fmt=layout, picture_of=lambda it: _frame(it, layout), tags=tags, **LOSSLESS)


def _read(path: Path) -> NDArray[np.int64]:
    info = probe(path)
    return read_window(path, Size(1, info.height, info.width), 8, 0.0, info)[0].astype(int)


def _ffmpeg(path: Path, shape: tuple[int, ...], filters: str | None = None) -> NDArray[np.int64]:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(path), *(["-vf", filters] if filters else [])]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    return np.frombuffer(done.stdout, dtype=np.uint8)[: np.prod(shape)].reshape(shape).astype(int)


def _psnr(a: NDArray, b: NDArray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(a - b).mean(), 1e-9)))


def _inner(picture: NDArray) -> NDArray:
    """The middle of every patch, out of reach of interpolated chroma."""
    height, width = picture.shape[:2]
    return picture.reshape(height // SIDE, SIDE, width // SIDE, SIDE, 3)[:, 8:-8, :, 8:-8]


@pytest.mark.parametrize("layout", ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p10le"])
@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
def test_every_matrix_and_range_gives_back_the_colours(tmp_path: Path, layout: str, limited: bool, matrix: int) -> None:
    rgb = _patches()
    tags = {"colorspace": matrix, "color_range": 1 if limited else 2}
    got = _read(_write(tmp_path / "a.mkv", rgb, layout, tags, matrix, limited))
    assert np.abs(_inner(got) - _inner(np.rint(255 * rgb))).max() <= 4  # swscale's tables


def test_untagged_is_limited_bt601_whatever_the_size(tmp_path: Path) -> None:
    small = _patches()
    large = np.tile(small, (5, 7, 1))  # 720 lines
    for name, rgb in (("small.mkv", small), ("large.mkv", large)):
        got = _read(_write(tmp_path / name, rgb, "yuv420p", {}, 6, True))
        assert np.abs(_inner(got) - _inner(np.rint(255 * rgb))).max() <= 3


@needs_ffmpeg
@pytest.mark.parametrize("layout", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray", "rgb24", "yuvj420p"])
@pytest.mark.parametrize("tags", [{}, {"colorspace": 1, "color_range": 1}, {"colorspace": 9, "color_range": 2}])
def test_real_detail_equals_the_ffmpeg_programs(tmp_path: Path, layout: str, tags: dict[str, int]) -> None:
    noise = np.random.default_rng(0).normal(0, 25, (1, 66, 90, 3)).cumsum(axis=1).cumsum(axis=2)
    picture = (127 + 100 * np.sin(noise / 300)).astype(np.uint8)
    codec = {"codec": "mjpeg"} if layout == "yuvj420p" else LOSSLESS
    if layout == "rgb24":
        codec, tags = {"codec": "libx264rgb"}, {}
    path = write_video(tmp_path / "a.mkv", picture, pix_fmt=layout, tags=tags, **codec)
    got = _read(path)
    assert _psnr(got, _ffmpeg(path, got.shape)) >= 40


def test_unknown_matrices_are_refused_and_reserved_ones_untagged(tmp_path: Path) -> None:
    rgb = _patches()
    for matrix in (8, 10, 14):  # YCgCo, BT.2020 with constant luminance, ICtCp
        path = _write(tmp_path / f"{matrix}.mkv", rgb, "yuv444p", {"colorspace": matrix, "color_range": 1}, 1, True)
        with pytest.raises(BadVideo, match=f"colour matrix .number {matrix} of"):
            probe(path)
    frame = _frame(_coded(rgb, 6, True, 8), "yuv444p")
    expected = to_rgb(frame)
    frame.colorspace = 3
    assert np.array_equal(to_rgb(frame), expected)


def _rgba(picture: NDArray[np.uint8]) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(picture, format="rgba")


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    picture = np.random.default_rng(2).integers(0, 256, (1, 32, 40, 4), dtype=np.uint8)
    path = write_video(tmp_path / "a.png", picture, codec="png", pix_fmt="rgba", picture_of=_rgba)
    share = picture[0, ..., 3:] / 255
    expected = np.rint(picture[0, ..., :3] * share + 255 * (1 - share))
    assert np.abs(_read(path) - expected).max() <= 1
    assert probe(path).remarks == ("has transparent pixels: they are laid over white",)
    opaque = np.concatenate([picture[..., :3], np.full_like(picture[..., :1], 255)], axis=-1)
    path = write_video(tmp_path / "b.png", opaque, codec="png", pix_fmt="rgba", picture_of=_rgba)
    assert np.array_equal(_read(path), picture[0, ..., :3])
    assert probe(path).remarks == ()


def test_palettes_and_grey(tmp_path: Path) -> None:
    palette = np.random.default_rng(1).integers(0, 256, (256, 4), dtype=np.uint8)  # A R G B
    palette[:, 0] = np.where(np.arange(256) < 128, 255, 0)
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = write_video(
        tmp_path / "a.png",
        [(indices, palette)],
        codec="png",
        pix_fmt="pal8",
        picture_of=lambda it: av.VideoFrame.from_ndarray(it, format="pal8"),
    )
    got = _read(path)
    assert np.array_equal(got[:8].reshape(-1, 3), palette[:128, 1:])
    assert (got[8:] == 255).all()
    assert probe(path).remarks == ("has transparent pixels: they are laid over white",)
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    path = write_video(
        tmp_path / "b.png", grey, codec="png", pix_fmt="gray", picture_of=lambda it: planar([it], "gray")
    )
    assert np.array_equal(_read(path), grey[0, ..., None].repeat(3, axis=-1))


def _pq(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """BT.2100, table 4, from its own constants."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    y = (light / 10000) ** m1
    return ((c1 + c2 * y) / (1 + c3 * y)) ** m2


def test_pq_is_its_own_inverse_and_st_2084s() -> None:
    signal = np.linspace(0, 1, 1001)
    assert np.allclose(pq_signal(pq_light(signal)), signal, atol=1e-6)
    light = np.array([0.0, 0.005, 1.0, 100.0, 203.0, 1000.0, 10000.0])
    assert np.allclose(pq_signal(light), _pq(light), atol=1e-9)
    assert pq_signal(np.array([203.0]))[0] == pytest.approx(0.5806, abs=1e-4)  # BT.2408, table 1


def _toned(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """BT.2020 light in cd/m2, `... 3` -> 8-bit BT.709 codes: the rule of `colours`, worked out pixel by pixel."""
    strongest = light.max(axis=-1, keepdims=True).clip(1e-6, 10000)
    top = _pq(np.array(REFERENCE_WHITE)) / _pq(np.array(PEAK_LIGHT))
    knee = 1.5 * top - 0.5
    e1 = np.minimum(_pq(strongest) / _pq(np.array(PEAK_LIGHT)), 1)
    t = (e1 - knee) / (1 - knee)
    e2 = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * top
    e2 = np.where(e1 < knee, e1, e2)
    grid = np.linspace(0, 10000**0.25, 200_001) ** 4
    mapped = np.interp(e2 * _pq(np.array(PEAK_LIGHT)), _pq(grid), grid)
    to_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])  # BT.2087
    share = (light * mapped / strongest / REFERENCE_WHITE) @ to_709.T
    return np.rint(255 * share.clip(0, 1) ** (1 / 2.4))


def _light_patches(brightest: float) -> NDArray[np.float64]:
    """BT.2020 light in cd/m2 up to `brightest`, near grey and saturated."""
    return brightest * _patches(3) ** 3


PQ_TAGS = {"colorspace": 9, "color_range": 1, "color_trc": 16, "color_primaries": 9}


@pytest.mark.parametrize("brightest", [80.0, 1000.0, 4000.0])
def test_pq_is_toned_down_as_stated(tmp_path: Path, brightest: float) -> None:
    light = _light_patches(brightest)
    path = _write(tmp_path / "a.mkv", _pq(light), "yuv422p10le", PQ_TAGS, 9, True)
    expected = _toned(light)
    got = _read(path)
    assert np.abs(_inner(got) - _inner(expected)).max() <= 8  # dark parts of saturated colours: one 10-bit step
    assert _psnr(_inner(got), _inner(expected)) >= 42
    assert probe(path).remarks == ("is HDR (PQ): toned down to SDR, 203 cd/m2 and BT.709",)


def test_greys_of_hdr_are_ordered_and_white_is_reached_at_1000(tmp_path: Path) -> None:
    light = np.repeat(np.linspace(0, 1200, 64).repeat(2)[None, :, None], 8, axis=0).repeat(3, axis=-1)
    row = _read(_write(tmp_path / "a.mkv", _pq(light), "yuv422p10le", PQ_TAGS, 9, True))[4, :, 1]
    assert (np.diff(row) >= 0).all()
    assert (row[0], row[-1]) == (0, 255)
    assert 210 < row[np.abs(light[0, :, 0] - REFERENCE_WHITE).argmin()] < 235
    assert row[light[0, :, 0] < 400].max() < 252


def test_hlg_is_shown_at_1000_and_toned_down(tmp_path: Path) -> None:
    signal = _patches(4)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    luma = scene @ np.array([0.2627, 0.6780, 0.0593])
    expected = _toned(1000 * luma[..., None] ** 0.2 * scene)
    tags = PQ_TAGS | {"color_trc": 18}
    path = _write(tmp_path / "a.mkv", signal, "yuv422p10le", tags, 9, True)
    assert _psnr(_inner(_read(path)), _inner(expected)) >= 42
    assert probe(path).remarks[0].startswith("is HDR (HLG)")


def test_wide_gamuts_keep_greys_and_become_bt709(tmp_path: Path) -> None:
    tags = {"colorspace": 9, "color_range": 1, "color_trc": 1, "color_primaries": 9}
    grey = np.linspace(0, 1, 48).reshape(6, 8).repeat(SIDE, axis=0).repeat(SIDE, axis=1)[..., None].repeat(3, axis=-1)
    got = _read(_write(tmp_path / "a.mkv", grey, "yuv422p10le", tags, 9, True))
    assert np.abs(_inner(got) - _inner(255 * grey)).max() <= 2
    inside = np.full((8, 8, 3), (0.5, 0.4, 0.3))  # BT.709 light, here coded in BT.2020's primaries
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
    coded = (inside @ to_2020.T) ** (1 / 2.4)
    path = _write(tmp_path / "b.mkv", coded, "yuv422p10le", tags, 9, True)
    assert np.abs(_read(path) - 255 * inside ** (1 / 2.4)).max() <= 2
    assert probe(path).remarks == ("has a wide colour gamut: brought to BT.709",)


@needs_ffmpeg
@pytest.mark.parametrize(("transfer", "name"), [(16, "smpte2084"), (18, "arib-std-b67")])
def test_dark_hdr_equals_the_ffmpeg_programs_zscale(tmp_path: Path, transfer: int, name: str) -> None:
    """Below the knee our curve is straight, as is zimg's way from light to BT.709."""
    filters = subprocess.run(["ffmpeg", "-hide_banner", "-filters"], capture_output=True, check=True).stdout
    if b" zscale " not in filters:
        pytest.skip("this ffmpeg has no zscale")
    dark = _patches(5) * (0.45 if transfer == 16 else 0.4)
    colour = 0.3 if transfer == 16 else 0.03  # within BT.709's reach; zimg bends each of HLG's primaries by itself
    dark = (1 - colour) * dark.mean(axis=-1, keepdims=True) + colour * dark
    tags = PQ_TAGS | {"color_trc": transfer}
    path = _write(tmp_path / "a.mkv", dark, "yuv422p10le", tags, 9, True)
    linear = f"zscale=tin={name}:min=2020_ncl:pin=2020:rin=limited:t=linear:npl={REFERENCE_WHITE:g},format=gbrpf32le"
    theirs = _ffmpeg(path, dark.shape, f"{linear},zscale=p=bt709,zscale=t=bt709:r=full,format=gbrp")
    assert _psnr(_inner(_read(path)), _inner(theirs)) >= 40


def test_frames_of_hdr_with_alpha_keep_both_rules() -> None:
    codes = np.zeros((4, 4, 4), dtype=np.uint16)
    codes[..., :3] = round(65535 * float(_pq(np.array(1000.0))))
    codes[:2, :, 3] = 65535
    frame = av.VideoFrame.from_ndarray(codes, format="rgba64le")
    frame.color_trc, frame.color_primaries = 16, 9
    assert np.abs(to_rgb(frame).astype(int) - 255).max() <= 1
    codes[..., :3] = 0
    frame = av.VideoFrame.from_ndarray(codes, format="rgba64le")
    frame.color_trc, frame.color_primaries = 16, 9
    assert np.array_equal(to_rgb(frame)[:, 0, 0], [0, 0, 255, 255])


def test_interlaced_frames_stay_woven(tmp_path: Path) -> None:
    lines = np.zeros((12, 64, 64, 3), dtype=np.uint8)
    lines[:, ::2] = 200
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1", "qp": "0", "preset": "ultrafast"}
    path = write_video(tmp_path / "a.mp4", lines, codec="libx264", pix_fmt="yuv444p", options=options)
    with opened(path) as (container, stream):
        picture = to_rgb(next(iter(container.decode(stream)))).astype(int)
    assert np.abs(picture - lines[0]).max() <= 2
    assert probe(path).remarks == ("12 of its 12 frames are interlaced: both fields stay woven",)
