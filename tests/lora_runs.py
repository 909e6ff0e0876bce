"""Tiny LoRA runs of every family, through the verbs, and the pipeline of diffusers beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from family_parity import our_latents
from reelwright.config import to_yaml
from reelwright.loading import load_model
from reelwright.pretrained.hunyuan import TEMPLATE
from reelwright.recipe import Recipe
from reelwright.train import train

PROMPTS, NEGATIVE = ["a red ball falls"], "nothing"
LORA = {"rank": 4, "alpha": 6.0, "init": "gaussian"}


def lora_recipe(folder: Path, clips: Path, model: dict[str, Any], lora: dict[str, Any], **groups: Any) -> Path:
    """folder/recipe.yaml: 5 steps on 4 clips at a rate that moves the adapters far."""
    only = sorted(path.name for path in (clips / "videos").glob("*.mp4"))[:4]
    values: dict[str, Any] = {
        "run_dir": str(folder / "run"), "cache_dir": str(folder / "cache"),
        "data": {"path": str(clips), "frames": 5, "fps": 8, "width": 32, "height": 32, "only": only},
        "model": model, **groups,
        "train": {
            "steps": 5, "batch_size": 2, "precision": "fp32", "device": "cpu", "save_every": 5, "evaluate_every": 0,
            "sample_every": 0, "sample_prompts": 1, "warmup_steps": 0, "tensorboard": False, "ema": None,
            "learning_rate": 0.02, "lora": lora,
        },
        "sampling": {"steps": 2, "guidance": 1.0, "sampler": "euler"},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(values), encoding="utf-8")
    return path


def hunyuan_groups(model: Path) -> dict[str, Any]:
    """The text group that a tokenizer of our own making needs."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model / "tokenizer")
    prefix = len(tokenizer(TEMPLATE.split("{}")[0])["input_ids"])
    return {"text": {"type": "hunyuan", "template_tokens": prefix}}


def train_run(path: Path, *overrides: str) -> Path:
    return train(Recipe.load(path, overrides), say=lambda _: None).run_dir


def latents_of(model: str, noise: torch.Tensor, times: torch.Tensor, **options: Any) -> torch.Tensor:
    """What a stored model makes of the noise, by our own sampler."""
    loaded = load_model(model, **options)
    loaded.bundle.denoiser.eval()
    return our_latents(loaded.bundle, loaded.recipe, PROMPTS, NEGATIVE, noise, times)
