"""Wan 2.2's two pipelines, tiny and with random weights, saved by diffusers in its own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tiny_families import shake, t5_tokenizer, umt5, wan_transformer

BOUNDARY = 0.875


def save_experts(folder: Path, boundary: float = BOUNDARY) -> Path:
    """A14B: two networks that differ, on latents as Wan 2.1 has them."""
    import diffusers

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return _save(folder, vae, [wan_transformer(), wan_transformer()], 3.0, boundary_ratio=boundary)


def save_5b(folder: Path) -> Path:
    """TI2V 5B: latents of 48 channels, a quarter of the frames and a sixteenth of each side."""
    import diffusers

    torch.manual_seed(0)
    statistics = torch.Generator().manual_seed(1)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=48, dim_mult=[1, 1, 1, 1], num_res_blocks=1, is_residual=True,
        in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
        latents_mean=torch.randn(48, generator=statistics).tolist(),
        latents_std=(0.5 + torch.rand(48, generator=statistics)).tolist(),
    )  # fmt: skip
    return _save(folder, vae, [wan_transformer(48)], 5.0, expand_timesteps=True)


def _save(folder: Path, vae: Any, networks: list[Any], shift: float, **settings: Any) -> Path:
    import diffusers

    text_encoder = umt5()
    for number, part in enumerate((*networks, vae, text_encoder)):
        shake(part, number)
    pipeline = diffusers.WanPipeline(
        tokenizer=t5_tokenizer(), text_encoder=text_encoder.eval(), vae=vae, transformer=networks[0],
        transformer_2=networks[1] if len(networks) > 1 else None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), **settings,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
