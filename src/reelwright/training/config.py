"""The `train:` group of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from reelwright.config import Config
from reelwright.training.lora import LoraConfig

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class TrainConfig(Config):
    """How a model is trained. Counts are optimizer steps unless they say otherwise."""

    steps: int | None = Field(default=1000, ge=1)  # optimizer steps; or give `epochs`
    epochs: float | None = Field(default=None, gt=0)  # passes over the training samples, instead of `steps`
    batch_size: int = Field(default=16, ge=1)  # samples per optimizer step over all processes
    micro_batch: int | Literal["auto"] = "auto"  # samples per forward pass of one process, of the costliest bucket
    micro_batch_power: float = Field(default=1.0, ge=0, le=4)  # a sample costs tokens^this; cheap ones go together
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)  # of the training samples that may turn out unreadable
    learning_rate: float = Field(default=1e-4, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)  # of learning_rate, where cosine and linear end
    weight_decay: float = Field(default=0.01, ge=0)
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"] = "adamw"  # all but adamw: bitsandbytes
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float | None = Field(default=1.0, gt=0)  # largest gradient norm; null: no clipping
    precision: Precision = "auto"  # of the forward and backward pass; master weights are always float32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ema: float | None = Field(default=0.999, ge=0, lt=1)  # decay of the weights' moving average; null: none is kept
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)  # what classifier-free guidance needs
    mixup: float | tuple[float, ...] = 0.0  # share of the samples mixed with another; a list: of each of model.parts
    save_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)  # newest valid ones kept, beside the best
    evaluate_every: int = Field(default=500, ge=0)  # held-out loss; 0: never
    evaluate_samples: int = Field(default=64, ge=1)  # held-out clips it is measured on
    evaluate_times: int = Field(default=8, ge=1)  # timestep quantiles it is measured at
    track_best: bool = False  # keep the checkpoint of the lowest held-out loss and generate from it
    sample_every: int = Field(default=500, ge=0)  # sample videos; 0: only at the end
    sample_prompts: tuple[str, ...] | int = 4  # prompts of the sample videos, or how many captions to take
    lora: LoraConfig | None = (
        None  # small matrices beside the frozen weights of a trained model; null: all weights train
    )
    start_from: Path | None = None  # a run, checkpoint or exported model whose weights training begins with
    freeze: tuple[str, ...] = ()  # weights that keep their values: names or beginnings of them, * for any part
    train_only: tuple[str, ...] = ()  # the weights that train, all others keep their values
    log_every: int = Field(default=10, ge=1)
    tensorboard: bool = True
    wandb: str | None = None  # Weights & Biases project name; null: not used

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"steps = {self.steps} and epochs = {self.epochs}: give exactly one; set the other to null"
            )
        if isinstance(self.micro_batch, int) and self.micro_batch < 1:
            raise ValueError(f"micro_batch = {self.micro_batch}: must be 'auto' or at least 1")
        if not all(0 <= share <= 1 for share in self._shares):
            raise ValueError(
                f"mixup = {self.told_mixup}: shares from 0 to 1, one number or a list with one for each of model.parts"
            )
        if self.mixes and (self.batch_size % 2 or self.micro_batch == 1):
            raise ValueError(
                f"mixup = {self.told_mixup}: samples are mixed two by two, so batch_size = {self.batch_size} "
                f"must be even and micro_batch = {self.micro_batch} at least 2"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {self.betas}: both must be in [0, 1)")
        if self.sample_prompts == () or (isinstance(self.sample_prompts, int) and self.sample_prompts < 1):
            raise ValueError(
                f"sample_prompts = {self.sample_prompts}: at least one, as a number or as a list of prompts"
            )
        if self.final_lr_fraction and self.lr_schedule == "constant":
            raise ValueError(
                f"final_lr_fraction = {self.final_lr_fraction} has no effect with lr_schedule = 'constant'; "
                "use cosine or linear, or leave it at 0"
            )
        if self.freeze and self.train_only:
            raise ValueError("freeze and train_only: give one of them; either says what the other leaves")
        if self.lora is not None and (self.freeze or self.train_only):
            raise ValueError(
                "freeze, train_only: no effect with lora, which trains its own matrices alone; leave them out"
            )
        if self.track_best and not self.evaluate_every:
            raise ValueError("track_best = true has no effect while evaluate_every = 0; set evaluate_every")
        return self

    @property
    def mixes(self) -> tuple[float, ...]:
        """`mixup` of all channels, or of each part; () where nothing is mixed."""
        return self._shares if any(self._shares) else ()

    @property
    def together(self) -> int:
        """Samples that are mixed with one another, so that they must be in one micro-batch."""
        return 2 if self.mixes else 1

    @property
    def told_mixup(self) -> str:
        """`mixup` as a recipe has it."""
        return str(list(self.mixup) if isinstance(self.mixup, tuple) else self.mixup)

    @property
    def _shares(self) -> tuple[float, ...]:
        return self.mixup if isinstance(self.mixup, tuple) else (self.mixup,)


# What may differ when a run goes on; everything else would make it another run.
RESUMABLE_KEYS = frozenset(
    f"train.{name}"
    for name in (
        "steps",
        "epochs",
        "max_bad_fraction",
        "save_every",
        "keep_checkpoints",
        "evaluate_every",
        "evaluate_samples",
        "evaluate_times",
        "sample_every",
        "sample_prompts",
        "log_every",
        "tensorboard",
        "wandb",
    )
)
