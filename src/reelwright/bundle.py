"""Recipe or model directory -> Bundle, and the one loss that training, evaluation and planning share."""

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
from reelwright.run import RunDirectory
from reelwright.training import checkpoint as checkpoints
from reelwright.types import Batch, Bundle, Text, UsageError, UserError


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
SOURCE_KEYS = ("path", "videos", "captions", "format", "only", "validation", "source_pattern")


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


@dataclass(frozen=True)
class LoadedModel:
    """A Bundle with its weights and where they come from."""

    bundle: Bundle
    recipe: Recipe
    origin: str
    step: int | None  # None: random weights
    weights_sha256: str
    seconds: float = 0.0  # of training
    warnings: tuple[str, ...] = ()


def load_model(model: str, checkpoint: str | None = None, raw: bool = False) -> LoadedModel:
    """MODEL as the command line takes it: a run directory, one of its checkpoints, or a recipe.

    A run means its averaged weights (`raw`: the last weights instead) at the best checkpoint if one is tracked, else
    at the newest valid one. `checkpoint` names another: a step number or a checkpoint's name.
    """
    path = Path(model)
    is_run = (path / "recipe.yaml").is_file() and not (path / checkpoints.MANIFEST).is_file()
    if checkpoint is not None and path.exists() and not is_run:
        raise UsageError(f"--checkpoint {checkpoint}: '{model}' is not a run directory, so it has no choice of them")
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _load_recipe(path)
    if (path / checkpoints.MANIFEST).is_file():
        return _load_checkpoint(path, raw, ())
    if is_run:
        chosen, warnings = _choose_checkpoint(path, checkpoint)
        return _load_checkpoint(chosen, raw, warnings)
    raise UsageError(
        f"'{model}': not a model; give a run directory (it holds recipe.yaml and checkpoints/), "
        "one of its checkpoints, or a recipe (*.yaml, for random weights)"
    )


def _choose_checkpoint(run_path: Path, name: str | None) -> tuple[Path, tuple[str, ...]]:
    folder = RunDirectory(run_path).checkpoints
    present = sorted(p.name for p in folder.glob("step-*"))
    if name is not None:
        wanted = checkpoints.name_of(int(name)) if name.isdigit() else name
        if wanted not in present:
            raise UsageError(f"--checkpoint {name}: not in {folder}; there are: {', '.join(present) or 'none'}")
        return folder / wanted, ()
    passed_over: list[str] = []
    newest = checkpoints.newest_valid(folder, passed_over.append)
    if newest is None:
        reasons = "; ".join(passed_over) or "none has been saved yet"
        raise UsageError(f"{run_path}: no usable checkpoint ({reasons}); train it with: reelwright train RECIPE")
    best = checkpoints.load_checkpoint(newest, stems=()).state.best_step
    if best is not None:
        try:
            checkpoints.verify_checkpoint(folder / checkpoints.name_of(best))
        except checkpoints.DamagedCheckpoint as damage:
            passed_over.append(f"the best checkpoint is damaged, {newest.name} is used instead: {damage}")
        else:
            return folder / checkpoints.name_of(best), tuple(passed_over)
    return newest, tuple(passed_over)


def _load_checkpoint(path: Path, raw: bool, warnings: tuple[str, ...]) -> LoadedModel:
    stem = "model" if raw or not (path / "ema.safetensors").exists() else "ema"
    loaded = checkpoints.load_checkpoint(path, stems=(stem, "codec"))
    recipe = Recipe.load(path / "recipe.yaml")
    tokenizer_path = path / "tokenizer.json"
    tokenizer = tokenizer_path.read_text(encoding="utf-8") if tokenizer_path.exists() else None
    if recipe.text.type == "native" and tokenizer is None:
        raise UserError(f"{tokenizer_path}: missing, and the text encoder cannot be used without it")
    try:
        bundle = build_bundle(recipe, loaded.tensors.get("codec", {}), tokenizer)
    except RuntimeError as error:
        raise UserError(f"{path / 'codec.safetensors'} does not fit its recipe: {error}") from None
    result = DenoisingLoss(bundle).load_state_dict(loaded.tensors[stem], strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise UsageError(
            f"{path / stem}.safetensors does not fit its recipe: missing {result.missing_keys[:3]}, "
            f"unexpected {result.unexpected_keys[:3]}"
        )
    sha256 = loaded.manifest["files"][f"{stem}.safetensors"]["sha256"]
    return LoadedModel(bundle, recipe, str(path), loaded.state.step, sha256, loaded.state.seconds, warnings)


def _load_recipe(path: Path) -> LoadedModel:
    recipe = Recipe.load(path)
    bundle = build_bundle(recipe)
    warning = f"{path} is a recipe, not a trained model: its weights are random and so are its videos"
    return LoadedModel(bundle, recipe, str(path), None, "random", warnings=(warning,))


def _read_fitted(recipe: Recipe, part: str) -> Any:
    path = fitted_path(recipe, part)
    if not path.exists():
        raise UsageError(f"{path}: the {part} has not been fitted on the data; run: reelwright prepare RECIPE")
    if path.suffix == ".json":
        return path.read_text(encoding="utf-8")
    from safetensors.torch import load_file

    return load_file(path)
