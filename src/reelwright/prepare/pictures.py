"""What a model that starts from a picture is told of a window: its first frame, as encoder and codec see it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reelwright.bundle import blueprint, build_text
from reelwright.randomness import keyed_normal
from reelwright.recipe import Recipe
from reelwright.types import Size


class Pictures:
    """First frames -> what the cache keeps of them beside the latents."""

    def __init__(self, settings: dict[str, Any], denoiser: Any, codec: Any, encoder: Any) -> None:
        self._settings, self._denoiser, self._codec, self._encoder = settings, denoiser, codec, encoder

    def fingerprint(self) -> str:
        """What they depend on besides the window and the codec."""
        return f"{self._encoder.fingerprint()} {json.dumps(self._settings, sort_keys=True)}"

    def encode(self, key: str, pixels: np.ndarray, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """uint8 `f h w c` -> {"picture": `l d` float32, "image": latents `c h w`}, on the CPU.

        The noise the network is told of is drawn by `key`, once for a window: the same in every epoch.
        """
        self._encoder.to(device)
        size = Size(*pixels.shape[:3])
        picture = torch.from_numpy(np.ascontiguousarray(pixels[0])).to(device)
        noise = keyed_normal((3, size.height, size.width), key, "picture")
        told, _ = self._denoiser.condition_on(picture, self._codec, self._encoder, size, noise)
        return {"picture": told.values[0].float().cpu(), "image": told.image[0, :, 0].to("cpu", dtype)}


def pictures_of(recipe: Recipe, codec: Any, encoder: Any = None, denoiser: Any = None) -> Pictures | None:
    """For the recipe's model, None where it knows no pictures. What is not given is made, the denoiser a blueprint."""
    settings = getattr(recipe.model, "pictures", None)
    if settings is None:
        return None
    return Pictures(settings, denoiser or blueprint(recipe, codec), codec, encoder or build_text(recipe))
