"""Wan 2.1 and 2.2 text-to-video (arXiv 2503.20314): flow matching, umT5 text padded with zeros to 512 tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt
from torch import Tensor

from reelwright.pretrained.base import FamilyConfig, PretrainedDenoiser, check_patches, pad_text, t5_of_pipeline
from reelwright.types import Size, Text


class WanConfig(FamilyConfig):
    """Wan's transformer. From scratch, `config` names diffusers' arguments (num_layers, num_attention_heads, ...)."""

    type: Literal["wan"] = "wan"
    text_length: PositiveInt = 512  # tokens; shorter texts are padded with zero vectors, which it was trained to see

    diffusers_class: ClassVar[str] = "WanTransformer3DModel"

    @classmethod
    def companions(cls, values: Mapping[str, Any], size: Size) -> dict[str, dict[str, Any]]:
        """Shift 3 is what Wan uses at 480p; 5 at 720p."""
        model = values.get("model")
        groups: dict[str, dict[str, Any]] = {
            "objective": {"schedule": "flow", "shift": 3.0, "prediction": "velocity"},
            "sampling": {"sampler": "unipc", "steps": 50, "guidance": 5.0},
        }
        if model is not None:
            groups["codec"] = {"type": "video_autoencoder", "model": model}
            groups["text"] = t5_of_pipeline(model, length=512)
        return groups

    def build(self, channels: int, text_width: int) -> WanDenoiser:
        """UserError where the weights cannot be loaded, UsageError where codec or text do not fit."""
        return WanDenoiser(self, channels, text_width)


class WanDenoiser(PretrainedDenoiser):
    """Predicts the velocity noise - x0."""

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

    def __init__(self, config: WanConfig, channels: int, text_width: int) -> None:
        network = config.load_network()
        super().__init__(config, channels, text_width, network.config.in_channels, network.config.text_dim)
        self.transformer = network
        self.text_length = config.text_length

    def check_size(self, latent: Size) -> Size:
        return check_patches(latent, tuple(self.transformer.config.patch_size))

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        text = pad_text(cond, self.text_length).to(x_t.dtype)  # b l d
        return self.transformer(x_t, self.flow_time(t), text, return_dict=False)[0]  # b c f h w
