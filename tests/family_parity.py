"""Our bundle against a pipeline of diffusers: the same latents in, the same latents out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reelwright.bundle import build_bundle
from reelwright.diffusion.schedule import FlowSchedule
from reelwright.generate import Compute, denoise_latents, encode_prompts
from reelwright.recipe import Recipe
from reelwright.types import Bundle

CPU = Compute(torch.device("cpu"))
PROMPTS, NEGATIVE = ["a red ball falls", "two dots spin to the left"], "nothing"


def family_recipe(folder: Path, family: str, model: Path, /, **groups: Any) -> Recipe:
    """A recipe that names nothing but the family and where it lies."""
    values: dict[str, Any] = {
        "run_dir": str(folder / "run"), "cache_dir": str(folder / "cache"),
        "data": {"path": str(folder / "data"), "frames": 9, "height": 32, "width": 32},
        "model": {"type": family, "model": str(model)},
    }  # fmt: skip
    for group, settings in groups.items():
        values[group] = {**values.get(group, {}), **settings}
    return Recipe.parse(values)


def load(recipe: Recipe) -> Bundle:
    bundle = build_bundle(recipe)
    bundle.denoiser.eval()
    return bundle


def open_pipeline(name: str, folder: Path) -> Any:
    """A pipeline of diffusers by its class name, without progress bars."""
    import diffusers

    pipeline: Any = getattr(diffusers, name).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flow_times(sigmas: torch.Tensor, schedule: FlowSchedule) -> torch.Tensor:
    """The times at which our schedule has these sigmas."""
    sigmas = sigmas.double()
    return sigmas / (schedule.shift - (schedule.shift - 1) * sigmas)


def our_latents(bundle: Bundle, recipe: Recipe, prompts: list[str], negative: str, latents: Any, times: Any) -> Any:
    positive = encode_prompts(bundle, prompts, CPU)
    other = encode_prompts(bundle, [negative] * len(prompts), CPU)
    return denoise_latents(
        bundle, latents, times, positive, other, recipe.sampling, CPU, draw_noise=lambda: torch.zeros_like(latents)
    )


@dataclass(frozen=True)
class Noised:
    """Two clips of latents on their way to noise, at two sigmas of a pipeline's scheduler."""

    x0: torch.Tensor
    noise: torch.Tensor
    sigmas: torch.Tensor
    times: torch.Tensor
    x_t: torch.Tensor


def noised_by_scheduler(pipeline: Any, bundle: Bundle, channels: int) -> Noised:
    """The scheduler's own corruption, which is the objective's too."""
    generator = torch.Generator().manual_seed(3)
    x0, noise = (torch.randn(2, channels, 3, 4, 4, generator=generator) for _ in range(2))
    pipeline.scheduler.set_timesteps(4)
    sigmas = pipeline.scheduler.sigmas[1:3]
    times = flow_times(sigmas, bundle.objective.schedule)
    x_t = pipeline.scheduler.scale_noise(x0, pipeline.scheduler.timesteps[1:3], noise)
    assert (bundle.objective.corrupt(x0, noise, times) - x_t).abs().max() <= 1e-5
    assert torch.equal(bundle.objective.target(x0, noise, times), noise - x0)
    return Noised(x0, noise, sigmas, times, x_t)
