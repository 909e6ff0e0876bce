"""Which run a recipe starts or goes on with, and what is read back from its checkpoints and written to them."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from reelwright.bundle import DenoisingLoss, fitted_path
from reelwright.config import to_yaml
from reelwright.loading import BASE, base_of, check_base
from reelwright.recipe import MAY_CHANGE, Recipe
from reelwright.run import RunDirectory, compare_recipes
from reelwright.training import checkpoint as checkpoints
from reelwright.training.checkpoint import TrainState
from reelwright.training.devices import resolve_device, resolve_precision
from reelwright.training.ema import EMA
from reelwright.training.optim import load_optimizer_tensors, optimizer_tensors
from reelwright.types import Bundle, UsageError, UserError


def settle(recipe: Recipe) -> Recipe:
    """The recipe with device and precision decided. A run that exists keeps what it decided then, its buckets too."""
    train = recipe.train
    saved = _saved_recipe(recipe.run_dir)
    device = resolve_device(train.device)
    decided: dict[str, Any] = {}
    if train.device == "auto":
        decided["device"] = saved.train.device if saved else device.type
    if train.precision == "auto":
        decided["precision"] = saved.train.precision if saved else resolve_precision("auto", device)
    else:
        resolve_precision(train.precision, device)
    data = recipe.data
    if data.buckets == "auto" and saved:
        data = data.model_copy(update={"buckets": saved.data.buckets})
    return recipe.model_copy(update={"train": train.model_copy(update=decided), "data": data})


def _saved_recipe(run_dir: Path) -> Recipe | None:
    """The recipe of a run that has anything to go on with; one that failed before its first step binds nobody."""
    run = RunDirectory(run_dir)
    if not run.exists():
        return None
    left = [run.metrics_path, *run.checkpoints.glob("[!.]*"), *run.samples.glob("[!.]*")]
    begun = any(path.is_dir() or (path.is_file() and path.stat().st_size > 0) for path in left)
    return Recipe.load(run.recipe_path) if begun else None


def check_same_run(recipe: Recipe) -> None:
    """UsageError where the run directory holds a run of another recipe: it shows the difference and the ways out."""
    saved = _saved_recipe(recipe.run_dir)
    if saved is None:
        return
    differences = compare_recipes(saved.plain(), recipe.plain(), MAY_CHANGE)
    if differences:
        raise UsageError(
            f"{recipe.run_dir} holds a run of another recipe:\n  "
            + "\n  ".join(str(difference) for difference in differences)
            + "\nTo train this one from the start: another run_dir=...; to go on from that run's weights in a new "
            "directory: --fork NEW_DIR; to go on with that run: take the changes back"
        )


def fork_run(recipe: Recipe, new_dir: Path) -> Recipe:
    """The recipe in the run directory `new_dir`, which starts from the newest checkpoint of the recipe's own run.

    Where `new_dir` is a run already (the same command again), it just goes on. UsageError where there is nothing to
    fork, or no step is left to train.
    """
    origin, fork = RunDirectory.open(recipe.run_dir), RunDirectory(new_dir)
    forked = recipe.model_copy(update={"run_dir": new_dir})
    if fork.exists():
        return forked
    newest = checkpoints.newest_valid(origin.checkpoints)
    if newest is None:
        raise UsageError(f"--fork {new_dir}: {origin.path} has no usable checkpoint to go on from")
    step = checkpoints.step_of(newest)
    if recipe.train.steps is not None and recipe.train.steps <= step:
        raise UsageError(
            f"--fork {new_dir}: {origin.path} is at step {step} and train.steps = {recipe.train.steps}: no step is "
            f"left; steps count from the start of {origin.path}, so give train.steps more than {step}"
        )
    settled = settle(forked)
    fork = RunDirectory.create(new_dir)
    shutil.copytree(newest, fork.checkpoints / newest.name, dirs_exist_ok=True)  # over a fork that was killed
    fork.write_recipe(settled.plain())
    fork.log(f"forked from {newest}")
    return forked


def restore(
    path: Path, recipe: Recipe, bundle: Bundle, module: DenoisingLoss, optimizer: Any, ema: EMA | None
) -> TrainState:
    """Load everything a checkpoint holds into the live objects.

    UserError names a tensor that is missing, or a codec or tokenizer that is not the one the weights were trained with.
    """
    loaded = checkpoints.load_checkpoint(path)
    check_base(str(path), base_of(path), recipe, bundle)
    _refuse_other_fit(path, recipe, bundle, loaded.tensors.get("codec", {}))
    try:
        module.load_kept(loaded.tensors["model"])
        load_optimizer_tensors(module, optimizer, loaded.tensors["optimizer"])
        if ema is not None:
            ema.load_tensors(loaded.tensors["ema"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} does not fit its own recipe: {error}") from None
    return loaded.state


def _refuse_other_fit(path: Path, recipe: Recipe, bundle: Bundle, codec: Mapping[str, torch.Tensor]) -> None:
    """UserError where the cache's codec or tokenizer is not the one a checkpoint's weights were trained with."""
    others = []
    fitted = bundle.codec.state_dict() if codec else {}
    if any(not torch.equal(tensor, fitted[name].cpu()) for name, tensor in codec.items()):
        others.append((path / "codec.safetensors", fitted_path(recipe, "codec")))
    tokenizer = path / "tokenizer.json"
    if tokenizer.exists() and tokenizer.read_text(encoding="utf-8") != bundle.text.tokenizer_json():
        others.append((tokenizer, fitted_path(recipe, "text")))
    if others:
        commands = "\n  ".join(f"cp {shlex.quote(str(saved))} {shlex.quote(str(now))}" for saved, now in others)
        raise UserError(
            f"{recipe.cache_dir}: codec or tokenizer were fitted anew since {path} was saved; its weights cannot read "
            f"what they make.\nTo go on with this run, put its own back:\n  {commands}\n"
            "To use the new ones, train from the start with another run_dir"
        )


def save_run(
    run: RunDirectory,
    recipe: Recipe,
    state: TrainState,
    bundle: Bundle,
    module: DenoisingLoss,
    optimizer: Any,
    ema: EMA | None,
) -> None:
    """One checkpoint with everything needed to resume or to generate, then verify it, then prune older ones."""
    plain_optimizer = getattr(optimizer, "optimizer", optimizer)
    tensors = {"model": module.kept(), "optimizer": optimizer_tensors(module, plain_optimizer)}
    if ema is not None:
        tensors["ema"] = ema.tensors()
    texts = {"recipe.yaml": to_yaml(recipe.plain())}
    if bundle.codec.needs_fit:
        tensors["codec"] = bundle.codec.state_dict()
    if bundle.base_sha256:
        texts[BASE] = json.dumps({"sha256": bundle.base_sha256})
    if module.text is not None:
        texts["tokenizer.json"] = module.text.tokenizer_json()  # pyright: ignore[reportCallIssue]
    path = checkpoints.save_checkpoint(run.checkpoints, state, tensors, texts)
    checkpoints.verify_checkpoint(path)
    checkpoints.prune(path, recipe.train.keep_checkpoints, state.best_step)
