"""What was read -> what generates or trains: a Bundle with its weights, and with adapters beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from reelwright.bundle import adapt, build_bundle, fitted_path, write_fitted
from reelwright.durable import sha256_of
from reelwright.loading.remembered import remembered
from reelwright.loading.stored import StoredModel, is_frozen, local_recipe, open_model
from reelwright.models.exported import (
    INDEX,
    MAX_INDEX_BYTES,
    METADATA_KEY,
    RECIPE,
    read_tensors,
)
from reelwright.models.foreign import content_hash
from reelwright.pretrained.lora_keys import read_updates
from reelwright.pretrained.lora_scale import declared_scale
from reelwright.recipe import Recipe
from reelwright.training.lora import add_updates, merge
from reelwright.types import Bundle, UsageError, UserError


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
    loras: tuple[dict[str, Any], ...] = ()  # files added by `with_loras`: their names, scales and sha256


def load_model(model: str, checkpoint: str | None = None, raw: bool = False) -> LoadedModel:
    """MODEL as the command line takes it: a run directory, one of its checkpoints, an exported model, or a recipe.

    A run means its averaged weights (`raw`: the last weights instead) at the best checkpoint if one is tracked, else
    at the newest valid one. `checkpoint` names another: a step number, a checkpoint's name, or "newest".
    """
    path = Path(model)
    if path.suffix in (".yaml", ".yml") and path.is_file() and checkpoint is None:
        return _load_recipe(path)
    if checkpoint is None and not raw and (path / RECIPE).is_file() and _is_pipeline(path / INDEX):
        return _load_pipeline(path)
    with open_model(model, checkpoint, raw) as stored:
        return build_model(stored)


def check_base(source: str, base_sha256: str, recipe: Recipe, bundle: Bundle) -> None:
    """UserError where adapters would be put beside other weights than those they were trained with."""
    if base_sha256 != bundle.base_sha256:
        where = recipe.train.start_from or getattr(recipe.model, "model", None)
        raise UserError(
            f"{source}: its adapters were trained beside the weights {base_sha256[:12]}..., but {where} holds "
            f"{bundle.base_sha256[:12]}...: it was changed since, or is another model; put the right one back there"
        )


def build_model(stored: StoredModel) -> LoadedModel:
    """The Bundle of a stored model, with its weights. UserError where they do not fit what its recipe builds."""
    recipe = stored.recipe
    if not is_frozen(recipe, "text") and stored.tokenizer is None:
        raise UserError(f"{stored.sources['tokenizer']}: missing, and the text encoder cannot be used without it")
    try:
        bundle = build_bundle(
            local_recipe(recipe, stored.folders), stored.tensors.get("codec", {}), stored.tokenizer
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(f"{stored.sources['codec']} does not fit its recipe: {error}") from None
    except ValueError as error:
        raise UserError(f"{stored.sources['tokenizer']}: {error}") from None
    bundle, _ = beginning(bundle, recipe, fresh=False)
    check_base(stored.path, stored.origin.base_sha256, recipe, bundle)
    for part in ("denoiser", "text"):
        module = getattr(bundle, part)
        if part == "denoiser" or module.trainable:
            adapted = bool(bundle.base_sha256)
            _load_weights(module, stored.tensors.get(part, {}), part, stored.sources[part], adapted)
        elif part in stored.tensors:
            raise UserError(f"{stored.sources[part]} does not fit its recipe: weights of {part}, which does not train")
    origin = stored.origin
    return LoadedModel(
        bundle, recipe, stored.path, origin.step, origin.weights_sha256, origin.seconds, stored.warnings
    )  # fmt: skip


def _load_weights(module: nn.Module, tensors: dict[str, Tensor], part: str, source: str, adapted: bool = False) -> None:
    """UserError names the tensors that are missing, unexpected or of another shape; then nothing was loaded.

    Where the module is `adapted`, only what trains of it is expected.
    """
    expected: dict[str, Any] = module.state_dict()
    if adapted:
        expected = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    wrong = {
        "missing": [f"{part}.{name}" for name in expected if name not in tensors],
        "unexpected": [f"{part}.{name}" for name in tensors if name not in expected],
        "of another shape": [
            f"{part}.{name}: {list(tensors[name].shape)}, not {list(expected[name].shape)}"
            for name in expected
            if name in tensors and tensors[name].shape != expected[name].shape
        ],
    }
    if any(wrong.values()):
        reasons = ", ".join(f"{reason} {names[:3]}" for reason, names in wrong.items() if names)
        raise UserError(f"{source} does not fit its recipe: {reasons}")
    module.load_state_dict(tensors, strict=not adapted)


# -- what a run begins with


def beginning(bundle: Bundle, recipe: Recipe, fresh: bool) -> tuple[Bundle, list[str]]:
    """A bundle as `train` begins with it, and the names of the layers that have an adapter.

    The weights of `train.start_from` where the run is `fresh` or they are the base of adapters; then the adapters.
    UsageError where weights do not fit, by name and shape.
    """
    source = recipe.train.start_from
    if source is not None and (fresh or recipe.train.lora is not None):
        with open_model(str(source)) as stored:
            tensors, tokenizer = merged(stored).tensors, stored.tokenizer
        for part in ("denoiser", "text"):
            module: Any = getattr(bundle, part)
            if part == "text" and not (isinstance(module, nn.Module) and module.trainable):
                continue
            if part == "text" and bundle.text.tokenizer_json() != tokenizer:
                raise UsageError(
                    f"train.start_from = {source}: its tokenizer is not the one in {recipe.cache_dir}; run `reelwright "
                    "prepare` again with this recipe, or use another cache_dir"
                )
            try:
                _load_weights(module, tensors.get(part, {}), part, str(source))
            except UserError as error:
                raise UsageError(f"train.start_from: {error}; model and text must be as they were there") from None
    return adapt(bundle, recipe, lambda compute: remembered(recipe, "model", compute))


def take_fits(recipe: Recipe) -> None:
    """Put the fitted codec and tokenizer of `train.start_from` in the cache: its weights know no others."""
    source = recipe.train.start_from
    if source is None:
        return
    fitted = [part for part in ("codec", "text") if not is_frozen(recipe, part)]
    wanted = [part for part in fitted if not fitted_path(recipe, part).exists()]
    if not wanted:
        return
    with open_model(str(source)) as stored:
        for part in wanted:
            theirs, ours = (getattr(r, part) for r in (stored.recipe, recipe))
            if theirs != ours:
                raise UsageError(f"train.start_from = {source}: its {part} is {theirs.plain()}, not {ours.plain()}")
            if part == "codec" and stored.tensors.get("codec"):
                write_fitted(recipe, part, save(dict(stored.tensors["codec"])))
            elif part == "text" and stored.tokenizer is not None:
                write_fitted(recipe, part, stored.tokenizer.encode())


def full_precision(stored: StoredModel) -> StoredModel:
    """The same with the base's own weights in place of those rounded to 8 bits, which nothing can be added to."""
    model = stored.recipe.model
    if getattr(model, "quantize", None) is None:
        return stored
    exact = model.model_copy(update={"quantize": None})
    return replace(stored, recipe=stored.recipe.model_copy(update={"model": exact}))


def merged(stored: StoredModel) -> StoredModel:
    """A stored model with its adapters added to the weights beside them; as it is where it has none."""
    if stored.recipe.train.lora is None:
        return stored
    bundle = build_model(full_precision(stored)).bundle
    merge(bundle.denoiser)
    parts = {"denoiser": bundle.denoiser, **({"text": bundle.text} if bundle.text.trainable else {})}
    train = stored.recipe.train.model_copy(update={"lora": None, "start_from": None})
    return replace(
        stored,
        recipe=stored.recipe.model_copy(update={"train": train}),
        origin=stored.origin.model_copy(update={"base_sha256": ""}),
        tensors={**stored.tensors, **{part: dict(module.state_dict()) for part, module in parts.items()}},
    )


def with_loras(loaded: LoadedModel, wanted: Sequence[str]) -> LoadedModel:
    """The model with the LoRAs of files named 'FILE' or 'FILE:SCALE' beside its weights, all of them at once.

    The files may be ours, diffusers', ComfyUI's or kohya's; UserError with the counts where one is for another model.
    For a model of experts 'FILE:EXPERT' and 'FILE:EXPERT:SCALE' say which of them; files of ours say it themselves.
    """
    added = list(loaded.loras)
    for text in wanted:
        path, scale = lora_and_scale(text)
        path, network, expert = _adapted(path, loaded.bundle.denoiser)
        if not path.is_file():
            file, _, word = str(path).rpartition(":")
            if Path(file).is_file():
                raise UsageError(f"--lora {text}: '{word}' is no number, and no expert of this model; give FILE:SCALE")
            raise UsageError(f"--lora {text}: no such file; give a .safetensors file, or FILE:SCALE")
        tensors, denoiser = read_tensors(path), loaded.bundle.denoiser
        new = tuple(f"{name}." for name in getattr(denoiser, "lora_also_trains", ()))
        beside = {name: tensors.pop(name) for name in list(tensors) if name.startswith(new)} if new else {}
        updates = read_updates(tensors, loaded.recipe.model.type, network, str(path), declared_scale(path))
        denoiser.load_state_dict({**denoiser.state_dict(), **beside})
        add_updates(network, updates, f"added_{len(added)}", scale)
        name = f"{path}:{expert}" if expert else str(path)
        added.append({"file": name, "scale": scale, "sha256": sha256_of(path), "layers": len(updates)})
    return replace(loaded, loras=tuple(added))


def _adapted(path: Path, denoiser: nn.Module) -> tuple[Path, nn.Module, str]:
    """A LoRA's file without its 'EXPERT', the network it is for, and the expert's name, '' where there are none.

    UsageError where a model has experts and neither the word nor the file says which of them is meant.
    """
    experts: dict[str, nn.Module] = getattr(denoiser, "experts", {})
    stem, _, expert = str(path).rpartition(":")
    if expert in experts:
        path = Path(stem)
    elif experts and path.is_file():
        expert = _expert_of(path)
    if not experts or not path.is_file():
        return path, denoiser, ""
    if expert not in experts:
        raise UsageError(
            f"--lora {path}: this model is made of experts, and the file does not say for which it is: give "
            f"{' or '.join(f'{path}:{name}' for name in experts)}, or both"
        )
    return path, nn.ModuleDict({"transformer": experts[expert]}), expert


def _expert_of(path: Path) -> str:
    """The expert that a file of ours is for; '' where it names none."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError):
        return ""
    return str(facts.get("expert", "")) if isinstance(facts, dict) else ""


def lora_and_scale(text: str) -> tuple[Path, float]:
    """'style.safetensors:0.8' -> its path and 0.8; 1 where it names no scale."""
    path, _, number = text.rpartition(":")
    try:
        scale = float(number)
    except ValueError:
        return Path(text), 1.0
    if not path or not math.isfinite(scale):
        raise UsageError(f"--lora {text}: give FILE or FILE:SCALE, the scale a number")
    return Path(path), scale


def _is_pipeline(index: Path) -> bool:
    """Whether diffusers wrote a model_index.json."""
    try:
        with index.open("rb") as file:
            data = file.read(MAX_INDEX_BYTES + 1)
        return len(data) <= MAX_INDEX_BYTES and "_diffusers_version" in json.loads(data)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _load_pipeline(path: Path) -> LoadedModel:
    """A fine-tuned pipeline of diffusers as `export` leaves it, its recipe beside it."""
    recipe = Recipe.load(path / RECIPE)
    groups: dict[str, Any] = {"train": recipe.train.model_copy(update={"lora": None, "start_from": None})}
    for name in ("model", "codec", "text"):
        group: Any = getattr(recipe, name)
        moved = {"model": str(path), **({"quantize": None} if name == "model" else {})}
        groups[name] = group.model_copy(update=moved)
    recipe = recipe.model_copy(update=groups)
    bundle = build_bundle(recipe)
    return LoadedModel(bundle, recipe, str(path), None, content_hash({}, bundle.denoiser.state_dict()))


def _load_recipe(path: Path) -> LoadedModel:
    recipe = Recipe.load(path)
    bundle = build_bundle(recipe)
    published = getattr(recipe.model, "model", None)
    if published is not None and not getattr(bundle.denoiser, "lora_also_trains", ()):
        return LoadedModel(bundle, recipe, str(path), None, f"as published: {published}")
    warning = f"{path} is a recipe, not a trained model: its weights are random and so are its videos"
    return LoadedModel(bundle, recipe, str(path), None, "random", warnings=(warning,))
