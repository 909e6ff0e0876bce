"""What `generate` was asked for, and whether the model can do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reelwright.loading import LoadedModel
from reelwright.recipe import SamplingConfig, Spacing
from reelwright.types import Bundle, Size, UsageError

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")
MIN_PICTURE_SIDE, MAX_PICTURE_SIDE = 16, 8192  # below, there is nothing to see; above, a file may be a bomb


@dataclass(frozen=True)
class Request:
    """What `reelwright generate` was asked for; None means 'as the run says'."""

    prompts: tuple[str, ...]
    num_videos: int = 1
    seed: int = 0
    negative_prompt: str = ""
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_end: float | None = None
    guidance_low: float | None = None
    spacing: Spacing | None = None
    noise_levels: tuple[float, float] | None = None
    shift_terminal: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    window_frames: int | None = None
    window_overlap: float | None = None
    window_noise: Literal["fresh", "repeated"] | None = None
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    image: str | None = None  # a picture's file, for models that start from one

    def size(self, model: LoadedModel) -> Size:
        own = model.recipe.size
        return Size(self.frames or own.frames, self.height or own.height, self.width or own.width)

    def sampling(self, model: LoadedModel) -> SamplingConfig:
        """With `window_frames` settled: what the model was trained on where more is asked for, else 0."""
        given = {name: getattr(self, name) for name in SamplingConfig.model_fields}
        values = model.recipe.sampling.plain() | {k: v for k, v in given.items() if v is not None}
        sampling = SamplingConfig.parse(values, origin="generate")
        if sampling.window_frames == "auto":
            trained = max(size.frames for size in model.recipe.data.sizes)
            window = trained if self.size(model).frames > trained else 0
            sampling = sampling.model_copy(update={"window_frames": window})
        return sampling

    @classmethod
    def from_recipe(cls, recipe: dict[str, Any], path: Path) -> Request:
        """The request that made a clip, from the recipe in its metadata. UsageError where another command made it."""
        if "command" in recipe:
            raise UsageError(
                f"{path}: not generated from a prompt alone, but made of {recipe.get('input')} by `reelwright "
                f"{recipe['command']}` (strength {recipe.get('strength')}, seed {recipe.get('seed')}); its recipe "
                "holds every setting: run that command again on the same input"
            )
        try:
            return cls(
                prompts=(recipe["prompt"],),
                **{name: recipe[name] for name in cls.__dataclass_fields__ if name in recipe and name != "prompts"},
            )
        except KeyError as error:
            raise UsageError(f"{path}: its recipe has no {error}; it was not made by `reelwright generate`") from None


def load_picture(model: LoadedModel, request: Request) -> np.ndarray | None:
    """The picture a request starts from, uint8 `h w 3`; None for models that make videos from text.

    UsageError where the model wants one and the request has none, or the other way round, or it cannot be read.
    """
    takes = getattr(model.bundle.denoiser, "takes_image", False)
    if request.image is None:
        if takes:
            raise UsageError("this model makes videos from a picture: give --image PICTURE in place of --prompt")
        return None
    if not takes:
        raise UsageError(f"--image {request.image}: this model makes videos from text alone; leave --image out")
    if any(request.prompts) or request.negative_prompt:
        raise UsageError(f"--image {request.image}: this model sees a picture and no text; leave --prompt out")
    from PIL import Image, ImageOps

    try:
        with Image.open(request.image, formats=PICTURE_FORMATS) as image:
            if max(image.size) > MAX_PICTURE_SIDE or min(image.size) < MIN_PICTURE_SIDE:
                raise UsageError(
                    f"--image {request.image}: {image.width}x{image.height} pixels; give a picture with sides from "
                    f"{MIN_PICTURE_SIDE} to {MAX_PICTURE_SIDE}"
                )
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"--image {request.image}: cannot be read as a picture ({error}); give a PNG, JPEG or WebP"
        ) from None


def cut_prompts(bundle: Bundle, prompts: Sequence[str]) -> list[str]:
    """A warning for each prompt with more tokens than the text encoder takes."""
    counts = bundle.text.count_tokens(list(prompts))
    return [
        f"the prompt '{prompt}' has {count} tokens, the text encoder takes {bundle.text.length}: its end is not seen"
        for prompt, count in zip(prompts, counts, strict=True)
        if count > bundle.text.length
    ]
