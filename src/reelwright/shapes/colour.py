"""sRGB to CIE L*a*b*, where the Euclidean distance is close to the difference an eye sees."""

from __future__ import annotations

import numpy as np

# Linear sRGB to CIE XYZ (IEC 61966-2-1), each row divided by the D65 white point.
_WHITE = np.array([0.95047, 1.0, 1.08883])
_RGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_RELATIVE_XYZ = _RGB_TO_XYZ / _WHITE[:, None]


def lab(rgb: np.ndarray) -> np.ndarray:
    """L*a*b* (L in 0..100) of sRGB values in 0..255, over the last axis of `... 3`. CIE 15:2004, eq. 8.3 to 8.8."""
    encoded = np.clip(np.asarray(rgb, dtype=np.float64), 0.0, 255.0) / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _RELATIVE_XYZ.T
    edge = 6.0 / 29.0
    root = np.where(xyz > edge**3, np.cbrt(xyz), xyz / (3.0 * edge**2) + 4.0 / 29.0)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)
