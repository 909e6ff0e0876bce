"""CogVideoX pipelines with 2 layers, saved by diffusers: T5 text of width 32, latents of 4 channels, 8x compression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tiny_families import shake, t5_tokenizer

TEXT_LENGTH = 12
VARIANTS: dict[str, dict[str, Any]] = {
    "2b": {"use_rotary_positional_embeddings": False},
    "5b": {"use_rotary_positional_embeddings": True},
    "1.5": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
}
SNR_SHIFT = {"2b": 3.0, "5b": 1.0, "1.5": 1.0}


def save_cogvideox(folder: Path, variant: str, scheduler_class: str = "CogVideoXDDIMScheduler") -> Path:
    import diffusers
    import transformers

    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=32, num_layers=2, sample_width=8, sample_height=6, sample_frames=9, patch_size=2,
        max_text_seq_length=TEXT_LENGTH, **VARIANTS[variant],
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2,
        scaling_factor=0.7, invert_scale_latents=variant == "1.5",
    )  # fmt: skip
    text_encoder = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    )
    for number, part in enumerate((transformer, vae, text_encoder)):
        shake(part, number)
    scheduler = getattr(diffusers, scheduler_class)(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
        snr_shift_scale=SNR_SHIFT[variant],
    )  # fmt: skip
    pipeline = diffusers.CogVideoXPipeline(
        tokenizer=t5_tokenizer(), text_encoder=text_encoder.eval(), vae=vae, transformer=transformer,
        scheduler=scheduler,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
