"""An image autoencoder of Stable Diffusion's kind, saved by diffusers: 4 latent channels, 8 pixels a side."""

from __future__ import annotations

from pathlib import Path

import torch


def save_tiny_vae(folder: Path) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        block_out_channels=(4, 4, 8, 8),  # pyright: ignore[reportArgumentType]
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder)
    return folder
