"""Where figures go besides the run's own metrics.jsonl: TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reelwright.training.config import TrainConfig
from reelwright.types import UsageError


class Trackers:
    """TensorBoard events in the run directory and, if asked for, a W&B run. Figures past `step` are purged."""

    def __init__(self, config: TrainConfig, run_path: Path, step: int, settings: Mapping[str, Any]) -> None:
        self._board = None
        self._wandb = None
        if config.tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(str(run_path / "tensorboard"), purge_step=step + 1 if step else None)
        if config.wandb:
            try:
                import wandb  # pyright: ignore[reportMissingImports]
            except ImportError:
                raise UsageError(
                    f"train.wandb = '{config.wandb}': wandb is not installed; "
                    "pip install 'reelwright[wandb]' or set train.wandb=null"
                ) from None
            # one W&B run a run directory: resumed, not started again
            identity = str(run_path.resolve()).replace("/", "-")[-60:].strip("-")
            self._wandb = wandb.init(
                project=config.wandb, id=identity, name=run_path.name, resume="allow", config=dict(settings)
            )

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        numbers = {k: v for k, v in figures.items() if isinstance(v, int | float) and k != "step"}
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
