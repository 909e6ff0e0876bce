"""Recipe -> Bundle, and the one loss that training, evaluation and planning share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reelwright.diffusion.objective import Objective
from reelwright.randomness import derive_seed, keyed_generator, keyed_normal
from reelwright.recipe import Recipe
from reelwright.types import Batch, Bundle, Text, UsageError


class DenoisingLoss(nn.Module):
    """The weights that train, as one module: latents, noise, time and text -> one loss a sample.

    Its parameter names are those of every checkpoint: `denoiser.*` and, where the text encoder trains, `text.*`.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.denoiser = bundle.denoiser
        self.text = bundle.text if isinstance(bundle.text, nn.Module) and bundle.text.trainable else None
        self.objective: Objective = bundle.objective

    def condition(self, text: Text) -> Text:
        """Token ids through the trained encoder; a frozen encoder's embeddings as they are."""
        return self.text(text) if self.text is not None else text

    def forward(self, latents: Tensor, noise: Tensor, t: Tensor, text: Text) -> Tensor:
        x_t = self.objective.corrupt(latents, noise, t)  # b c f h w
        prediction = self.denoiser(x_t, t, self.condition(text))  # b c f h w
        return self.objective.loss(prediction.float(), self.objective.target(latents, noise, t), t)  # b


@dataclass(frozen=True)
class Draws:
    """The random part of one training batch. Every sample's draws are keyed by (seed, epoch, index, purpose)."""

    latents: Tensor  # b c f h w, one draw of the posterior
    noise: Tensor  # b c f h w
    t: Tensor  # b


def draw(batch: Batch, objective: Objective, seed: int) -> Draws:
    """Posterior sample, noise and time of each sample, whatever rank, worker or micro-batch it is in."""
    shape = tuple(batch.latents.mean.shape[1:])
    keys = list(zip(batch.epochs, batch.indices, strict=True))
    noise = torch.stack([keyed_normal(shape, seed, epoch, index, "noise") for epoch, index in keys])
    uniform = torch.cat([torch.rand(1, generator=keyed_generator(seed, epoch, index, "time")) for epoch, index in keys])
    posterior_noise = None
    if batch.latents.logvar is not None:
        posterior_noise = torch.stack([keyed_normal(shape, seed, epoch, index, "posterior") for epoch, index in keys])
    return Draws(batch.latents.sample(posterior_noise), noise, objective.sample_time(uniform))


# What of `data:` says which clips a fit may see; the split too, as held-out clips stay unseen.
SOURCE_KEYS = (
    "path", "videos", "captions", "format", "columns", "split", "only", "media", "partial",
    "validation", "source_pattern",
)  # fmt: skip


def placed(recipe: Recipe) -> dict[str, Any]:
    """The recipe's data settings with absolute paths: two projects' `data` folders are not the same data."""
    data = recipe.data.plain()
    for name in ("path", "videos", "captions", "only"):
        if isinstance(data[name], str):
            data[name] = str(Path(data[name]).resolve())
    return data


def fitted_key(recipe: Recipe, part: str) -> str:
    """Names the fit of a codec or tokenizer in the cache: what it was fitted for, not which clips were there.

    A fit is kept when clips come or go (so that one new clip does not invalidate every latent) and is made anew by
    `prepare --refit`.
    """
    data = placed(recipe)
    shared = {name: data[name] for name in SOURCE_KEYS}
    shape = {name: data[name] for name in ("frames", "fps", "width", "height", "buckets")} if part == "codec" else {}
    text = json.dumps([getattr(recipe, part).plain(), shared, shape], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fitted_path(recipe: Recipe, part: str) -> Path:
    """Where `prepare` keeps what was fitted on the data: part 'codec' (safetensors) or 'text' (JSON)."""
    suffix = {"codec": ".safetensors", "text": ".json"}[part]
    return recipe.cache_dir / "fitted" / f"{part}-{fitted_key(recipe, part)}{suffix}"


def build_codec(recipe: Recipe, tensors: dict[str, Tensor] | None = None) -> Any:
    """The recipe's codec with its fitted buffers (from `tensors`, else from the cache)."""
    codec: Any = recipe.codec.build()
    if codec.needs_fit:
        if tensors is None:
            tensors = _read_fitted(recipe, "codec")
        codec.load_state_dict(tensors)
    return codec


def build_text(recipe: Recipe, tokenizer: str | None = None) -> Any:
    """The recipe's text encoder; a trainable one with its fitted tokenizer (from `tokenizer`, else from the cache)."""
    text: Any = recipe.text.build()
    if text.trainable:
        text.load_tokenizer(tokenizer if tokenizer is not None else _read_fitted(recipe, "text"))
    return text


def build_bundle(
    recipe: Recipe,
    codec_tensors: dict[str, Tensor] | None = None,
    tokenizer: str | None = None,
    frozen_text_width: int | None = None,
) -> Bundle:
    """A Bundle with random weights, the same for the same seed.

    With `frozen_text_width` a frozen text encoder is not loaded (`text` is None): training reads the cache.
    """
    codec = build_codec(recipe, codec_tensors)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(recipe.seed, "weights"))  # the CPU's alone
        if frozen_text_width is not None and recipe.text.type != "native":
            text, width = None, frozen_text_width
        else:
            text = build_text(recipe, tokenizer)
            width = text.width
        denoiser = recipe.model.build(channels=codec.channels, text_width=width)
    check_fit(recipe, codec, denoiser)
    return Bundle(denoiser, codec, text, recipe.objective.build(), tuple(getattr(denoiser, "lora_targets", ())))


def check_fit(recipe: Recipe, codec: Any, denoiser: Any) -> None:
    """UsageError where a size of the recipe fits neither codec nor patch."""
    for size in recipe.data.sizes:
        try:
            latent = codec.compression.latent_size(size)
            denoiser.check_size(latent)
        except ValueError as error:
            raise UsageError(f"data: a video of {size} (frames x height x width): {error}") from None


def _read_fitted(recipe: Recipe, part: str) -> Any:
    path = fitted_path(recipe, part)
    if not path.exists():
        raise UsageError(f"{path}: the {part} has not been fitted on the data; run: reelwright prepare RECIPE")
    if path.suffix == ".json":
        return path.read_text(encoding="utf-8")
    from safetensors.torch import load_file

    return load_file(path)
