"""The whole schema of a recipe: the component configurations joined under one roof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from reelwright.config import Config
from reelwright.data.config import DataConfig
from reelwright.diffusion.objective import ObjectiveConfig
from reelwright.diffusion.sampler import SAMPLERS
from reelwright.models.codec import CodecConfig, PCACodecConfig
from reelwright.models.dit import DiTConfig
from reelwright.models.text import NativeTextConfig, TextConfig
from reelwright.training.config import RESUMABLE_KEYS, TrainConfig
from reelwright.types import Size

# The type a group has where a recipe names none.
DEFAULT_TYPES = {"codec": "pca", "text": "native", "model": "dit"}


class SamplingConfig(Config):
    """How videos are made where the command line does not say."""

    sampler: str = "euler"  # one of diffusion.sampler.SAMPLERS
    steps: int = Field(default=30, ge=1)
    guidance: float = Field(default=4.0, ge=0)  # 1: none
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # the t at which guidance acts

    @model_validator(mode="after")
    def _check(self) -> SamplingConfig:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler = '{self.sampler}': not one of {', '.join(SAMPLERS)}")
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance_interval = {[low, high]}: must be [low, high] with 0 <= low < high <= 1")
        return self


class Recipe(Config):
    """Everything a run depends on. `reelwright train RECIPE` needs nothing else."""

    run_dir: Path
    cache_dir: Path
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    codec: CodecConfig = PCACodecConfig()
    text: TextConfig = NativeTextConfig()
    model: DiTConfig = DiTConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="before")
    @classmethod
    def _name_types(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = {key: value for key, value in values.items() if value is not None}  # `train:` with nothing below it
        for group, default in DEFAULT_TYPES.items():
            inner = values.get(group)
            if isinstance(inner, dict) and "type" not in inner:
                values[group] = {"type": default, **inner}
        train = values.get("train")
        if isinstance(train, dict) and train.get("epochs") is not None and "steps" not in train:
            values["train"] = {**train, "steps": None}
        return values

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        grid = self.objective.build().schedule.grid
        if grid is not None and self.sampling.steps > grid:
            raise ValueError(
                f"sampling.steps = {self.sampling.steps}: the schedule has {grid} times "
                "(objective.schedule_steps); use at most that"
            )
        return self

    @property
    def size(self) -> Size:
        """Size of the videos this recipe generates unless told otherwise."""
        return self.data.sizes[0]


# A run may be moved, its data cleaned up, and `sampling` only says how videos are shown.
MAY_CHANGE = frozenset(
    {*RESUMABLE_KEYS, "run_dir", "cache_dir", "data.max_dropped"}
    | {f"sampling.{name}" for name in SamplingConfig.model_fields}
)
