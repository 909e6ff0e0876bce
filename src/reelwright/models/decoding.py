"""Decoding within bounds: a few frames at a time, in tiles where they are large, in float32 where less overflows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from reelwright.console import print_error
from reelwright.models.foreign import Precision
from reelwright.types import Size

MAX_PIXELS_AT_ONCE = 2**22  # frames x height x width decoded together where they need not be


def at_once(pixels: int) -> int:
    """How many things of so many pixels to work on together: at least one."""
    return max(1, MAX_PIXELS_AT_ONCE // pixels)


def is_large(pixels: int) -> bool:
    """Whether so many pixels are more than are decoded together."""
    return pixels > MAX_PIXELS_AT_ONCE


def latents_at_once(codec: Any, latents: Tensor) -> int:
    """How many latent frames of `b c f h w` to decode together: all where they depend on one another."""
    if not getattr(codec, "frames_apart", False):
        return latents.shape[2]
    frames, height, width = codec.compression.pixel_size(Size(1, *latents.shape[3:])).tuple
    return at_once(len(latents) * frames * height * width)


def in_pieces(video: Tensor) -> tuple[Tensor, ...]:
    """`b c f h w` cut along its frames, so that a copy of a piece is small."""
    return video.split(at_once(len(video) * video.shape[3] * video.shape[4]), dim=2)


@contextmanager
def tiling(vae: Any, wanted: bool) -> Iterator[None]:
    """diffusers' overlapping tiles within the context, where they are wanted and this autoencoder has them."""
    if not hasattr(vae, "use_tiling"):
        yield
        return
    before, vae.use_tiling = vae.use_tiling, wanted
    try:
        yield
    finally:
        vae.use_tiling = before


class Decoding:
    """Runs a decoder in the precision asked for, and in float32 where that gave numbers that are not finite.

    Some decoders were trained to activations that float16 cannot hold; what it makes of them are black or green tiles.
    """

    def __init__(self, dtype: Precision) -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._told = False

    def __call__(self, decode: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """decode(z), float32. The first time that it has to be done again, a line says so."""
        if self.dtype != torch.float32:
            with torch.autocast(z.device.type, dtype=self.dtype):
                decoded = decode(z).float()
            if bool(decoded.isfinite().all()):
                return decoded
            if not self._told:
                name = str(self.dtype).removeprefix("torch.")
                print_error(f"codec.decode_dtype = {name}: the decoder overflows in it; decoded again in float32")
            self._told = True
        with torch.autocast(z.device.type, enabled=False):
            return decode(z)
