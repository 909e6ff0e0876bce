"""A Stable Video Diffusion pipeline with two small blocks, saved by diffusers; its scheduler is SVD XT's own."""

from __future__ import annotations

from pathlib import Path

import torch

from tiny_families import shake

# scheduler/scheduler_config.json of stabilityai/stable-video-diffusion-img2vid-xt
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "interpolation_type": "linear",
    "prediction_type": "v_prediction", "sigma_max": 700.0, "sigma_min": 0.002, "steps_offset": 1,
    "timestep_spacing": "leading", "timestep_type": "continuous", "use_karras_sigmas": True,
}  # fmt: skip
UNET = {
    "block_out_channels": (32, 32), "layers_per_block": 1, "num_attention_heads": (2, 2), "cross_attention_dim": 16,
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
}  # fmt: skip


def save_svd(folder: Path) -> Path:
    """Latents of 4 channels, 8 pixels a side; pictures become one token of width 16."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    unet = diffusers.UNetSpatioTemporalConditionModel(in_channels=8, out_channels=4, **UNET)  # pyright: ignore
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32), layers_per_block=1, latent_channels=4,  # pyright: ignore
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore
    )  # fmt: skip
    encoder = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=16,
            image_size=224, patch_size=32,
        )
    )  # fmt: skip
    for number, part in enumerate((unet, vae, encoder)):
        shake(part, number, scale=0.02)
    pipeline = diffusers.StableVideoDiffusionPipeline(
        vae=vae.eval(), image_encoder=encoder.eval(), unet=unet.eval(),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER),  # pyright: ignore
        feature_extractor=transformers.CLIPImageProcessor(),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
