"""LTX-Video 0.9 (arXiv 2501.00103): flow matching on strongly compressed latents, positions in seconds and pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from reelwright.pretrained.base import (
    FamilyConfig,
    PretrainedDenoiser,
    check_channels,
    check_patches,
    local_settings,
    t5_of_pipeline,
)
from reelwright.types import Size, Text, UsageError

COMPRESSION = (8, 32, 32)  # frames, height and width that a latent of the published autoencoders covers
TERMINAL = 0.1  # sigma of the last step of sampling, as published


class LTXConfig(FamilyConfig):
    """LTX-Video's transformer. From scratch, `config` names diffusers' arguments (num_layers, ...).

    What has to agree is made to where `config` is silent: channels, and the widths of text and cross-attention.
    """

    type: Literal["ltx"] = "ltx"

    diffusers_class: ClassVar[str] = "LTXVideoTransformer3DModel"

    @classmethod
    def companions(cls, values: Mapping[str, Any], size: Size) -> dict[str, dict[str, Any]]:
        """As the model's scheduler has it: the shift grows with the number of latents, one for the whole recipe."""
        model = values.get("model")
        groups: dict[str, dict[str, Any]] = {
            "objective": {"schedule": "flow", "prediction": "velocity"},
            "sampling": {"sampler": "euler", "steps": 50, "guidance": 3.0},
        }
        if model is not None:
            scheduler = local_settings(model, "scheduler/scheduler_config.json")
            groups["objective"]["shift"] = _shift(scheduler, size)
            groups["sampling"]["shift_terminal"] = scheduler.get("shift_terminal") if scheduler else TERMINAL
            groups["codec"] = {"type": "video_autoencoder", "model": model}
            groups["text"] = t5_of_pipeline(model, length=128, padding="encoded")
        return groups

    def fitting(self, channels: int, text_width: int) -> dict[str, Any]:
        width = self.config.get("num_attention_heads", 32) * self.config.get("attention_head_dim", 64)
        return {
            "in_channels": channels, "out_channels": channels, "caption_channels": text_width,
            "cross_attention_dim": width,
        }  # fmt: skip

    def build(self, channels: int, text_width: int) -> LTXDenoiser:
        """UserError where the weights cannot be loaded, UsageError where codec or text do not fit."""
        return LTXDenoiser(self.fitted(channels, text_width), channels, text_width)


class LTXDenoiser(PretrainedDenoiser):
    """Predicts the velocity noise - x0."""

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, config: LTXConfig, channels: int, text_width: int) -> None:
        network = config.load_network()
        settings = network.config
        check_channels(settings)
        if (settings.patch_size, settings.patch_size_t) != (1, 1):
            raise UsageError(
                f"model: patch_size = {settings.patch_size}, patch_size_t = {settings.patch_size_t}: LTX-Video takes "
                "its latents one by one; leave both 1 and let the codec compress"
            )
        super().__init__(config, channels, text_width, settings.in_channels, settings.caption_channels)
        self.transformer = network

    def check_size(self, latent: Size) -> Size:
        return check_patches(latent, (1, 1, 1))

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        frames, height, width = x_t.shape[2:]
        strides = (self.compression.frames / self.fps, self.compression.height, self.compression.width)
        out = self.transformer(
            x_t.flatten(2).transpose(1, 2),  # b n c
            cond.values.to(x_t.dtype), self.flow_time(t), cond.mask, frames, height, width,
            rope_interpolation_scale=strides, return_dict=False,
        )[0]  # fmt: skip
        return out.transpose(1, 2).unflatten(2, (frames, height, width))  # b c f h w


def _shift(scheduler: dict[str, Any], size: Size) -> float:
    """Its logarithm is a line through two numbers of latents: Esser et al. 2024 (arXiv 2403.03206), section 5.3.2.

    The numbers are those of LTX-Video's scheduler where `scheduler` does not give others.
    """
    if not scheduler.get("use_dynamic_shifting", True):
        return float(scheduler.get("shift", 1.0))
    fewest, most = scheduler.get("base_image_seq_len", 1024), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.95), scheduler.get("max_shift", 2.05)
    frames, height, width = COMPRESSION
    latents = (1 + (size.frames - 1) // frames) * (size.height // height) * (size.width // width)
    mu = low + (high - low) * (latents - fewest) / (most - fewest)
    return mu if scheduler.get("time_shift_type") == "linear" else math.exp(mu)
