"""A model small enough for a test: 8 frames of 16x16, a DCT codec, a native text encoder, a DiT of width 32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reelwright.bundle import DenoisingLoss, build_bundle
from reelwright.config import apply_override
from reelwright.models.codec import DCTCodecConfig
from reelwright.models.text import NativeTextConfig
from reelwright.randomness import keyed_normal
from reelwright.recipe import Recipe
from reelwright.run import RunDirectory
from reelwright.training.checkpoint import TrainState, save_checkpoint
from reelwright.types import Batch, Bundle, Posterior

CAPTIONS = ("a red ball falls", "a blue square rises", "a green star", "two dots spin to the left and then stop")


def tiny_recipe(folder: Path, *overrides: str) -> Recipe:
    values: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
        "data": {"path": str(folder / "data"), "frames": 8, "height": 16, "width": 16},
        "codec": {"type": "dct", "block": [4, 8, 8], "channels": 6},
        "text": {"type": "native", "vocab_size": 300, "width": 32, "depth": 1, "length": 16},
        "model": {"type": "dit", "width": 32, "depth": 2, "heads": 2},
    }
    for override in overrides:
        apply_override(values, override)
    return Recipe.parse(values)


def fitted_parts(recipe: Recipe) -> tuple[dict[str, Tensor], str]:
    """What `prepare` would have fitted: the codec's buffers and the tokenizer."""
    assert isinstance(recipe.codec, DCTCodecConfig) and isinstance(recipe.text, NativeTextConfig)
    codec, text = recipe.codec.build(), recipe.text.build()
    codec.fit([keyed_normal((1, 3, 8, 16, 16), "tiny video", n).clamp(-1, 1) for n in range(4)])
    text.fit(CAPTIONS)
    return codec.state_dict(), text.tokenizer_json()


def tiny_bundle(recipe: Recipe) -> Bundle:
    return build_bundle(recipe, *fitted_parts(recipe))


def shake(module: nn.Module, seed: int = 0, scale: float = 0.1) -> None:
    """Move every weight: a fresh model predicts exactly zero whatever it is shown."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.add_(scale * keyed_normal(tuple(parameter.shape), "shake", seed, number))


def tiny_batch(bundle: Bundle, indices: tuple[int, ...] = (3, 1, 2), stochastic: bool = True) -> Batch:
    """Sample `index` has the same content in every batch, but for the padding of its text."""
    shape = (bundle.codec.channels, 2, 2, 2)
    mean = torch.stack([keyed_normal(shape, "mean", index) for index in indices])
    logvar = torch.stack([keyed_normal(shape, "logvar", index) for index in indices]) if stochastic else None
    captions = [CAPTIONS[index % len(CAPTIONS)] for index in indices]
    text = bundle.text.tokenize(captions)
    return Batch(indices, tuple(7 for _ in indices), Posterior(mean, logvar), text, tuple(captions))


def write_run(recipe: Recipe, steps: tuple[int, ...] = (10, 20), best_step: int | None = None) -> RunDirectory:
    """A run with a checkpoint at every one of `steps`; its weights differ from step to step, the average from both."""
    run = RunDirectory.create(recipe.run_dir)
    run.write_recipe(recipe.plain())
    codec, tokenizer = fitted_parts(recipe)
    for step in steps:
        module = DenoisingLoss(build_bundle(recipe, codec, tokenizer))
        shake(module, seed=step)
        model = module.state_dict()
        tensors = {"model": model, "ema": {name: value + 1 for name, value in model.items()}, "codec": codec}
        texts = {"recipe.yaml": run.recipe_path.read_text(), "tokenizer.json": tokenizer}
        save_checkpoint(run.checkpoints, TrainState(step=step, best_step=best_step), tensors, texts)
    return run
