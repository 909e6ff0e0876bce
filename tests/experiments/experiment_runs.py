"""Run directories as training and evaluation leave them, with figures of the test's choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from reelwright.recipe import Recipe
from reelwright.run import RunDirectory
from reelwright.training.checkpoint import TrainState, save_checkpoint
from reelwright.video.write import write_video

CONDITIONS = {"device": "cpu", "precision": "fp32", "sampler": "euler", "steps": 4, "guidance": 4.0, "seed": 0}


def write_run(
    recipe: Recipe,
    losses: tuple[float, ...] = (1.0, 0.5),
    data: str = "d" * 64,
    accuracy: float | None = None,
    checker: str = "abcdef01",
    split: str = "validation",
    samples: tuple[tuple[str, int], ...] = (),
    **conditions: Any,
) -> Path:
    run = RunDirectory.create(recipe.run_dir)
    run.write_recipe(recipe.plain())
    steps = recipe.train.steps or 0
    for number, loss in enumerate(losses, start=1):
        step = steps * number // len(losses)
        figures = {"heldout_loss": loss, "heldout_low": loss - 0.1, "heldout_high": loss + 0.1}
        fixed = {"heldout_split": split, "heldout_clips": 4, "heldout_times": [0.25, 0.75]}
        run.append_metrics({"step": step, "loss": loss, "seconds": 30.0 * number})
        run.append_metrics({"step": step, **figures, **fixed})
    state = TrainState(step=steps, seconds=60.0, data_sha256=data)
    save_checkpoint(run.checkpoints, state, {"model": {"w": torch.zeros(1)}}, {})
    if accuracy is not None:
        how = {**CONDITIONS, "prompts": 100, "checker": checker, **conditions}
        row = {"split": "in_distribution", "metric": "joint accuracy", "n": 100, **how}
        rows: list[dict[str, Any]] = [
            {**row, "row": "model", "value": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02},
            {**row, "row": "renderer", "value": 1.0, "low": 0.99, "high": 1.0},
        ]
        run.write_scores(rows, {"sha256": "0" * 64})
    for index, (prompt, seed) in enumerate(samples):
        video = np.full((4, 16, 16, 3), 40 * index, dtype=np.uint8)
        facts = {"prompt": prompt, "seed": seed, "step": steps, "sampler": "euler", "steps": 4, "guidance": 4.0}
        write_video(run.sample_path(steps, index), video, 8, facts)
    return run.path
