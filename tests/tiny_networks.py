"""Every denoiser there is, small and from scratch: what the tests of memory go through."""

from __future__ import annotations

from typing import Any

import torch

from reelwright.models.dit import DiTConfig
from reelwright.models.spatial import VideoTransformerConfig
from reelwright.models.unet3d import UNet3DConfig
from reelwright.pretrained.cogvideox import CogVideoXConfig
from reelwright.pretrained.hunyuan import HunyuanConfig
from reelwright.pretrained.ltx import LTXConfig
from reelwright.pretrained.svd import SVDConfig
from reelwright.pretrained.wan import WanConfig
from tiny_denoisers import denoiser_inputs, wake

CHANNELS, TEXT_WIDTH = 6, 12
SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 4}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dit": (DiTConfig, {"width": 24, "depth": 4, "heads": 2}),
    "dit, factorised": (DiTConfig, {"width": 24, "depth": 4, "heads": 2, "layout": "factorised"}),
    "dit, joint": (DiTConfig, {"width": 24, "depth": 4, "heads": 2, "text_tokens": "joint"}),
    "dit, pooled": (DiTConfig, {"width": 24, "depth": 4, "heads": 2, "text_tokens": "pooled"}),
    "dit, parts": (DiTConfig, {"width": 24, "depth": 4, "heads": 2, "parts": [4, 2]}),
    "video_transformer": (
        VideoTransformerConfig,
        {"width": 24, "depth": 4, "heads": 2, "positions": [4, 4], "temporal": True},
    ),
    "unet3d": (UNet3DConfig, {"width": 8, "multipliers": [1, 2], "blocks": 2, "groups": 4}),
    "wan": (
        WanConfig,
        {"config": {**SMALL, "in_channels": 6, "out_channels": 6, "text_dim": 12, "freq_dim": 16, "ffn_dim": 32}},
    ),
    "cogvideox": (
        CogVideoXConfig,
        {"config": {**SMALL, "time_embed_dim": 8, "use_rotary_positional_embeddings": True, "max_text_seq_length": 8}},
    ),
    "ltx": (LTXConfig, {"config": SMALL}),
    "hunyuan": (
        HunyuanConfig,
        {
            "config": {
                **SMALL, "num_single_layers": 2, "num_refiner_layers": 1, "in_channels": 6, "out_channels": 6,
                "patch_size": 1, "text_embed_dim": 12, "pooled_projection_dim": 12, "rope_axes_dim": [4, 6, 6],
            }
        },
    ),
    "svd": (
        SVDConfig,
        {
            "config": {
                "block_out_channels": [32, 32], "layers_per_block": 2, "num_attention_heads": [2, 2],
                "cross_attention_dim": 16, "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
                "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
                "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
            },
            "text_length": 8,
        },
    ),
}  # fmt: skip


def make_network(name: str, **settings: Any) -> Any:
    """One of them with weights that all matter, the same every time."""
    config, values = NETWORKS[name]
    torch.manual_seed(0)
    network = config.parse({**values, **settings}).build(CHANNELS, TEXT_WIDTH)
    wake(network, std=0.1)
    return network


def network_inputs(size: tuple[int, int, int] = (3, 4, 4), batch: int = 2) -> Any:
    return denoiser_inputs(size, CHANNELS, TEXT_WIDTH, batch)
