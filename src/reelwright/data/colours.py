"""A decoded frame -> the picture it stands for, 8-bit RGB of full range, by stated rules.

Matrix and range follow the frame's own tags: BT.601, BT.709, BT.2020, FCC or SMPTE 240M, limited or full. A frame
without tags is BT.601 of limited range, whatever its size: so do the ffmpeg program and the readers built on FFmpeg
(players take BT.709 for pictures of 720 lines and more). A matrix that swscale does not know is refused.
A chroma sample of 8-bit 4:2:0 and 4:2:2 counts for all the pixels it covers, wherever it was sited, as in the ffmpeg
program; in interlaced frames and other layouts it is interpolated. More than 8 bits are rounded.
PQ and HLG are shown on an SDR screen whose white is HDR's reference white, 203 cd/m2 (BT.2408): light up to 88 cd/m2
stays as it is, from there to 1000 cd/m2 it is rolled off into white (BT.2390, 5.4.1), always by the same curve, so that
no scene flickers. BT.2020 and P3 primaries are brought to BT.709, colours out of its reach clipped.
Alpha is straight and laid over white. Fields of interlaced frames stay woven: taking them apart would invent half of
the lines or double the rate, and area averaging to half the height or less blends them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from reelwright.data.containers import BadVideo, plain

REFERENCE_WHITE = 203.0  # cd/m2, what SDR's white becomes (BT.2408, 2.1)
PEAK_LIGHT = 1000.0  # cd/m2, what HDR is taken to be graded for; brighter light is clipped
BACKGROUND = 255  # under transparent pixels; FFmpeg's GIF decoder paints them white, too

# Code points of ITU-T H.273
_UNTAGGED = 2
_MATRICES = {0, 1, 2, 3, 4, 5, 6, 7, 9}  # 0: RGB itself; 3: reserved, taken as untagged
_PQ, _HLG = 16, 18
_PRIMARIES = {
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # DCI P3, its white taken for D65
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
_BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_D65 = (0.3127, 0.3290)
_STEPS = 1 << 16  # entries of a table, indexed by a 16-bit code

Floats = NDArray[np.float32]


def to_rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """uint8 `h w c` as stored: neither turned nor brought to square pixels. BadVideo where its colours are unknown."""
    refuse_unknown_matrix(frame)
    alpha, wide = has_alpha(frame), _is_wide(frame)
    layout = ("rgba64le" if alpha else "rgb48le") if wide else ("rgba" if alpha else "rgb24")
    try:
        codes: NDArray[Any] = _reformatted(frame, layout).to_ndarray()
    except (av.error.FFmpegError, ValueError) as error:
        raise BadVideo(f"its pixels ({frame.format.name}) cannot be brought to RGB: {plain(error)}") from None
    rgb: NDArray[np.uint8] = _narrowed(codes[..., :3], _transfer(frame), _primaries(frame)) if wide else codes[..., :3]
    return _over_background(rgb, codes[..., 3:] >> (8 if wide else 0)) if alpha else rgb


def refuse_unknown_matrix(frame: av.VideoFrame) -> None:
    """BadVideo where the colours are coded in a way swscale would silently take for another one."""
    if frame.colorspace not in _MATRICES and not frame.format.is_rgb:
        raise BadVideo(f"its colour matrix (number {frame.colorspace} of ITU-T H.273) is not known here")


def has_alpha(frame: av.VideoFrame) -> bool:
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def has_transparency(frame: av.VideoFrame) -> bool:
    """Whether the background shows through any pixel."""
    return has_alpha(frame) and bool((_reformatted(frame, "rgba").to_ndarray()[..., 3] < 255).any())


def colour_remark(frame: av.VideoFrame) -> str | None:
    """What is done to colours that an 8-bit RGB picture cannot hold; None where it holds them."""
    if _transfer(frame) in (_PQ, _HLG):
        name = "PQ" if _transfer(frame) == _PQ else "HLG"
        return f"is HDR ({name}): toned down to SDR, {REFERENCE_WHITE:g} cd/m2 and BT.709"
    if _is_wide(frame):
        return "has a wide colour gamut: brought to BT.709"
    return None


def _reformatted(frame: av.VideoFrame, layout: str) -> av.VideoFrame:
    if frame.colorspace == 3:
        frame.colorspace = _UNTAGGED
    # Bicubic where chroma must be interpolated, as the ffmpeg program does.
    return frame.reformat(format=layout, interpolation="BICUBIC", threads=1)


def _transfer(frame: av.VideoFrame) -> int:
    return int(frame.color_trc)


def _primaries(frame: av.VideoFrame) -> int:
    """HDR without named primaries is BT.2020: no other is in use with it."""
    number = int(frame.color_primaries)
    return 9 if number == _UNTAGGED and _transfer(frame) in (_PQ, _HLG) else number


def _is_wide(frame: av.VideoFrame) -> bool:
    return _transfer(frame) in (_PQ, _HLG) or _primaries(frame) in _PRIMARIES


def _over_background(rgb: NDArray[np.uint8], opacity: NDArray[Any]) -> NDArray[np.uint8]:
    weight = opacity.astype(np.uint32)
    return ((rgb * weight + BACKGROUND * (255 - weight) + 127) // 255).astype(np.uint8)


def _narrowed(codes: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """R'G'B' of 16 bits, `h w c` -> the same seen on an SDR BT.709 screen (gamma 2.4, BT.1886)."""
    light = _light(transfer)[codes]
    if transfer == _HLG:  # BT.2100, table 5: OOTF of a screen of 1000 cd/m2, gamma 1.2
        red, green, blue = (light[..., i] for i in range(3))
        light *= (PEAK_LIGHT * (0.2627 * red + 0.6780 * green + 0.0593 * blue) ** np.float32(0.2))[..., None]
    if transfer in (_PQ, _HLG):
        strongest = np.minimum(light.max(axis=-1), np.float32(_BRIGHTEST))
        light *= _tone_gain()[_root_code(strongest / np.float32(_BRIGHTEST))][..., None]
    if primaries in _PRIMARIES:
        matrix = _to_bt709(primaries)
        mixed = [sum(matrix[row, i] * light[..., i] for i in range(3)) for row in range(3)]
        light = np.stack(mixed, axis=-1)
    return _screen_codes()[_root_code(np.clip(light, 0, 1))]


_BRIGHTEST = 10000.0  # cd/m2, PQ's end


@lru_cache(maxsize=4)
def _light(transfer: int) -> Floats:
    """By 16-bit code: PQ's light in cd/m2, HLG's scene light, or SDR's share of white."""
    signal = np.arange(_STEPS) / (_STEPS - 1)
    if transfer == _PQ:
        return pq_light(signal).astype(np.float32)
    if transfer == _HLG:  # BT.2100, table 5: inverse OETF
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
    return (signal**2.4).astype(np.float32)


def pq_light(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """cd/m2 of a PQ signal in 0..1 (BT.2100, table 4: EOTF)."""
    power = signal ** (1 / 78.84375)
    return _BRIGHTEST * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)


def pq_signal(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """PQ signal in 0..1 of cd/m2: inverse of `pq_light`."""
    power = (light / _BRIGHTEST) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


@lru_cache(maxsize=1)
def _tone_gain() -> Floats:
    """By the root code of a pixel's strongest primary: what all three are multiplied by to be shares of SDR's white.

    The curve of BT.2390, 5.4.1 (EETF), without black lift; on the strongest primary it keeps every hue.
    """
    light = _BRIGHTEST * (np.arange(_STEPS) / (_STEPS - 1)) ** 2
    peak, white = pq_signal(np.array([PEAK_LIGHT, REFERENCE_WHITE]))
    top = white / peak
    knee = 1.5 * top - 0.5
    signal = np.minimum(pq_signal(light) / peak, 1.0)
    t = (signal - knee) / (1 - knee)
    rolled = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * top
    shown = pq_light(np.where(signal < knee, signal, rolled) * peak)
    gain = np.full(_STEPS, 1 / REFERENCE_WHITE)
    np.divide(shown, light * REFERENCE_WHITE, out=gain, where=light > 1)
    return gain.astype(np.float32)


@lru_cache(maxsize=4)
def _to_bt709(primaries: int) -> Floats:
    """Linear RGB of other primaries -> linear RGB of BT.709, both of white D65 (SMPTE RP 177)."""
    return (np.linalg.inv(_to_xyz(_BT709)) @ _to_xyz(_PRIMARIES[primaries])).astype(np.float32)


def _to_xyz(primaries: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in primaries]).T
    x, y = _D65
    return columns * np.linalg.solve(columns, np.array([x / y, 1.0, (1 - x - y) / y]))


@lru_cache(maxsize=1)
def _screen_codes() -> NDArray[np.uint8]:
    """By root code: 8-bit code that shows this share of white on a screen of gamma 2.4."""
    share = (np.arange(_STEPS) / (_STEPS - 1)) ** 2
    return np.rint(255 * share ** (1 / 2.4)).astype(np.uint8)


def _root_code(share: Floats) -> NDArray[np.uint16]:
    """16-bit index of a share in 0..1, finer in the dark: the square root of it."""
    return np.rint(np.sqrt(share) * np.float32(_STEPS - 1)).astype(np.uint16)
