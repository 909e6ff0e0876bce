"""Recipe -> Bundle, and the one loss that training, evaluation and planning share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reelwright.data.sealed import write_atomic
from reelwright.diffusion.objective import Objective
from reelwright.models.foreign import content_hash
from reelwright.pretrained.base import FamilyConfig, PretrainedDenoiser
from reelwright.pretrained.scratch import try_forward
from reelwright.randomness import derive_seed, keyed_generator, keyed_normal
from reelwright.recipe import Recipe
from reelwright.training.lora import add_lora, quantize
from reelwright.types import Batch, Bundle, Size, Text, UsageError, UserError

LEAST_OWN = -0.2  # share that a sample has at least where it is mixed; at most as much beyond 1


class DenoisingLoss(nn.Module):
    """The weights that train, as one module: latents, noise, time and text -> one loss a sample.

    Its parameter names are those of every checkpoint: `denoiser.*` and, where the text encoder trains, `text.*`.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.denoiser = bundle.denoiser
        self.text = bundle.text if isinstance(bundle.text, nn.Module) and bundle.text.trainable else None
        self.objective: Objective = bundle.objective
        self.adapted = bool(bundle.base_sha256)

    def condition(self, text: Text) -> Text:
        """Token ids through the trained encoder; a frozen encoder's embeddings as they are."""
        return self.text(text) if self.text is not None else text

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint holds: all weights, or those that train where the others are an adapter's base."""
        if not self.adapted:
            return self.state_dict()
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def load_kept(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `kept`. ValueError or RuntimeError names what is missing, left over or of another shape."""
        expected = self.kept()
        if differing := sorted(set(tensors) ^ set(expected)):
            raise ValueError(f"the weights and the model differ in: {', '.join(differing[:5])}")
        self.load_state_dict(dict(tensors), strict=not self.adapted)

    def forward(self, latents: Tensor, noise: Tensor, t: Tensor, text: Text, own: Tensor | None = None) -> Tensor:
        """One loss a sample, `b`; `own` as of `Draws`."""
        cond = self.condition(text)
        if own is not None:
            latents, cond = mixed(latents, cond, own, getattr(self.denoiser, "counts", ()))
        x_t = self.objective.corrupt(latents, noise, t)  # b c f h w
        prediction = self.denoiser(x_t, t.to(x_t), cond)  # b c f h w
        return self.objective.loss(prediction.float(), self.objective.target(latents, noise, t), t)  # b


@dataclass(frozen=True)
class Draws:
    """The random part of one training batch. Every sample's draws are keyed by (seed, epoch, index, purpose)."""

    latents: Tensor  # b c f h w, one draw of the posterior
    noise: Tensor  # b c f h w
    t: Tensor  # b
    own: Tensor | None = None  # b p: each sample's share, 1 where it is not mixed, in all channels or part by part


def draw(batch: Batch, objective: Objective, seed: int, mixup: tuple[float, ...] = ()) -> Draws:
    """Posterior sample, noise and time of each sample, whatever rank, worker or micro-batch it is in.

    About a share `mixup` of the samples is to be mixed with another: the first with the second, the third with the
    fourth and so on, so that these must be in one batch. Of several shares each is that of a part of the latents; where
    several parts of a sample are mixed, all of them with the same weights.
    """
    shape = tuple(batch.latents.mean.shape[1:])
    keys = list(zip(batch.epochs, batch.indices, strict=True))
    noise = torch.stack([keyed_normal(shape, seed, epoch, index, "noise") for epoch, index in keys])
    uniform = torch.cat([torch.rand(1, generator=keyed_generator(seed, epoch, index, "time")) for epoch, index in keys])
    posterior_noise = None
    if batch.latents.logvar is not None:
        posterior_noise = torch.stack([keyed_normal(shape, seed, epoch, index, "posterior") for epoch, index in keys])
    own = None
    if mixup:
        drawn = [torch.rand(2, generator=keyed_generator(seed, epoch, index, "mixup")) for epoch, index in keys]
        chance, share = torch.stack(drawn).split(1, dim=1)  # b 1 each
        own = torch.where(chance < torch.tensor(mixup), LEAST_OWN + (1 - 2 * LEAST_OWN) * share, 1.0)  # b p
    return Draws(batch.latents.sample(posterior_noise), noise, objective.sample_time(uniform), own)


def mixed(latents: Tensor, cond: Text, own: Tensor, counts: Sequence[int] = ()) -> tuple[Tensor, Text]:
    """Latents `b c ...` and captions mixed two by two, each keeping its share. ValueError for an odd number.

    The shares `own` are `b 1`, of all channels, or `b p`, of the parts of the latents of so many channels each.

    Mixup (Zhang et al. 2018, arXiv 1710.09412) of what a model makes of captions, the mean over their tokens (as
    Verma et al. 2019, "Manifold Mixup", arXiv 1806.05236), with shares below 0 and above 1 too: whatever lies on the
    line through two clips is said by the same mix of their captions. So does what a caption says of one thing add to
    what it says of another, also where the two were never together.
    """
    if len(own) % 2:
        raise ValueError(f"{len(own)} samples cannot be mixed two by two")
    assert own.shape[1] in (1, len(counts)), "as many shares as parts"
    partner = torch.arange(len(own), device=own.device) ^ 1
    channels = torch.tensor(counts if own.shape[1] > 1 else latents.shape[1:2], device=own.device)  # of each share
    share = own.repeat_interleave(channels, dim=1).to(latents.device)  # b c
    share = share[(...,) + (None,) * (latents.ndim - 2)]  # b c 1 1 1
    weights = (cond.mask / cond.mask.sum(dim=1, keepdim=True))[:, None]  # b 1 l
    of_own = own.to(weights.device)[:, :, None]  # b p 1
    both = torch.cat([weights * of_own, weights[partner] * (1 - of_own)], dim=2).squeeze(1)  # b p 2*l, or b 2*l
    values = torch.cat([cond.values, cond.values[partner]], dim=1)  # b 2*l d
    mask = torch.cat([cond.mask, cond.mask[partner]], dim=1)
    return latents * share + latents[partner] * (1 - share), Text(values, mask, cond.image, both)


def objective_of_step(bundle: Bundle, seed: int, step: int) -> Objective:
    """What draws the times of a training step: the objective, or that of the one network whose turn it is.

    Where networks share the times, one of them trains at a step, as often as its share of all training times. Which one
    follows from seed and step alone, so that all processes agree and a resumed run goes on with the same.
    """
    objective, intervals = bundle.objective, getattr(bundle.denoiser, "intervals", ())
    if len(intervals) < 2:
        return objective
    turn = torch.rand((), generator=keyed_generator(seed, "turn", step), dtype=torch.float64).item()
    for interval in intervals:
        turn -= objective.share(interval)
        if turn < 0:
            break
    return objective.within(interval)


# What of `data:` says which clips a fit may see; the split too, as held-out clips stay unseen.
SOURCE_KEYS = (
    "path", "videos", "captions", "format", "columns", "split", "only", "media", "partial",
    "validation", "source_pattern", "near_duplicates",
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
    if recipe.train.start_from is not None and part != "buckets":  # its own are taken over
        shared["start_from"] = str(recipe.train.start_from.resolve())
    if part == "buckets":
        names = ("frames", "fps", "width", "height", "bucket_multiple", "window", "scene_cuts")
        rules = [recipe.codec.plain(), recipe.model.plain()]
    else:
        names = ("frames", "fps", "width", "height", "buckets") if part == "codec" else ()
        rules = getattr(recipe, part).plain()
    text = json.dumps([rules, shared, {name: data[name] for name in names}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fitted_path(recipe: Recipe, part: str) -> Path:
    """Where `prepare` keeps what was fitted on the data: part 'codec' (safetensors), 'text' or 'buckets' (JSON)."""
    suffix = {"codec": ".safetensors", "text": ".json", "buckets": ".json"}[part]
    return recipe.cache_dir / "fitted" / f"{part}-{fitted_key(recipe, part)}{suffix}"


def write_fitted(recipe: Recipe, part: str, data: bytes) -> None:
    """Keep what was fitted, whole or not at all. UserError where it cannot be written."""
    path = fitted_path(recipe, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)


def settled_buckets(recipe: Recipe) -> Recipe:
    """The recipe with the buckets that were derived for `data.buckets: auto`; as it is where none were yet."""
    if recipe.data.buckets != "auto" or not (path := fitted_path(recipe, "buckets")).exists():
        return recipe
    try:
        return _with_buckets(recipe, [tuple(bucket) for bucket in json.loads(path.read_text(encoding="utf-8"))])
    except (ValueError, TypeError):
        raise UserError(f"{path}: not a list of buckets; delete it and run `reelwright prepare` again") from None


def keep_buckets(recipe: Recipe, buckets: Sequence[tuple[int, int, int]]) -> Recipe:
    """Keep what was derived for `data.buckets: auto`, as a fit is kept; the recipe with these buckets."""
    write_fitted(recipe, "buckets", json.dumps([list(bucket) for bucket in buckets]).encode())
    return _with_buckets(recipe, list(buckets))


def _with_buckets(recipe: Recipe, buckets: list[Any]) -> Recipe:
    data = type(recipe.data).parse({**recipe.data.plain(), "buckets": [list(bucket) for bucket in buckets]})
    return recipe.model_copy(update={"data": data})


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

    With `frozen_text_width` a frozen text encoder is not loaded (`text` is None), nor what else only generating needs:
    training reads the cache.
    """
    codec = build_codec(recipe, codec_tensors)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(recipe.seed, "weights"))  # the CPU's alone
        if frozen_text_width is not None and recipe.text.type != "native":
            text, width = None, frozen_text_width
        else:
            text = build_text(recipe, tokenizer)
            width = text.width
        denoiser = _denoiser(recipe, codec, width)
    check_fit(recipe, codec, denoiser)
    objective = recipe.objective.build()
    if isinstance(denoiser, PretrainedDenoiser):
        denoiser.schedule = objective.schedule
        denoiser.compression, denoiser.fps = codec.compression, recipe.data.fps
        if len(denoiser.intervals) == 1:
            objective = objective.within(denoiser.intervals[0])
        if frozen_text_width is None:
            denoiser.complete()
    return Bundle(denoiser, codec, text, objective, tuple(getattr(denoiser, "lora_targets", ())))


def adapt(
    bundle: Bundle, recipe: Recipe, remembered: Callable[[Callable[[], str]], str] = lambda compute: compute()
) -> tuple[Bundle, list[str]]:
    """The bundle with adapters beside its weights as `train.lora` says, and the names of the layers that have one.

    As it is, and no names, where the recipe asks for none. A text encoder of its own trains on unless its weights came
    with those of the denoiser. `remembered(compute)` may know the sha256 of the base without computing it. UsageError
    where no layer fits `train.lora.targets`.
    """
    config = recipe.train.lora
    if config is None:
        return bundle, []
    new = tuple(f"{name}." for name in getattr(bundle.denoiser, "lora_also_trains", ()))  # no part of the base
    base = {name: tensor for name, tensor in bundle.denoiser.state_dict().items() if not name.startswith(new)}
    sha256 = remembered(lambda: content_hash({}, base))
    kind = getattr(recipe.model, "quantize", None)
    if kind is not None:
        quantize(bundle.denoiser, kind, beside=new)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(recipe.seed, "lora"))
        names = add_lora(bundle.denoiser, config, bundle.lora_targets)
    if recipe.train.start_from is not None and isinstance(bundle.text, nn.Module):
        bundle.text.requires_grad_(False)
    for name in getattr(bundle.denoiser, "lora_also_trains", ()):  # what the base was not trained with
        bundle.denoiser.get_submodule(name).requires_grad_(True)
    return replace(bundle, base_sha256=sha256), names


def blueprint(recipe: Recipe, codec: Any) -> Any:
    """The recipe's denoiser for a codec, without weights: to be asked which sizes it takes.

    Of a frozen text encoder, which is not loaded here, the width is not known yet.
    """
    width = recipe.text.width if recipe.text.type == "native" else 1
    with torch.device("meta"):
        return _denoiser(recipe, codec, width)


def try_network(recipe: Recipe, codec: Any) -> None:
    """UsageError where a family's network from scratch cannot compute the largest videos of the recipe."""
    if isinstance(recipe.model, FamilyConfig):
        largest = max(recipe.data.sizes, key=lambda size: size.frames * size.height * size.width)
        try_forward(recipe.model, codec.channels, codec.compression.latent_size(largest))


def _denoiser(recipe: Recipe, codec: Any, text_width: int) -> Any:
    """UsageError where model and codec, or model and machine, do not fit."""
    try:
        return recipe.model.build(channels=codec.channels, text_width=text_width)
    except ValueError as error:
        raise UsageError(f"model.{error}") from None


def size_rule(codec: Any, denoiser: Any) -> Callable[[Size], bool]:
    """Whether codec and denoiser take videos of a size."""

    def fits(size: Size) -> bool:
        try:
            denoiser.check_size(codec.compression.latent_size(size))
        except ValueError:
            return False
        return True

    return fits


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
