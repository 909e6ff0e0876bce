"""LTX-Video pipelines with 2 layers, saved by diffusers: T5 text of width 32, latents of 8 channels, 4x8x8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tiny_families import shake, t5_tokenizer

# From 0.9.1 on the decoder is told a time, and some of its blocks add noise.
DECODERS: dict[str, dict[str, Any]] = {
    "0.9.0": {},
    "0.9.1": {"timestep_conditioning": True, "decoder_inject_noise": (True, False, False)},
}


def save_ltx(folder: Path, decoder: str = "0.9.0") -> Path:
    import diffusers
    import transformers

    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        num_layers=2, caption_channels=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2, layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True), decoder_spatio_temporal_scaling=(True, True),
        downsample_type=("conv", "conv"), upsample_residual=(False, False), upsample_factor=(1, 1), patch_size=2,
        **{"decoder_inject_noise": (False, False, False), **DECODERS[decoder]},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    vae.latents_mean.copy_(torch.randn(8, generator=generator))
    vae.latents_std.copy_(torch.rand(8, generator=generator) + 0.5)
    text_encoder = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    )
    for number, part in enumerate((transformer, vae, text_encoder)):
        shake(part, number)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1,
    )  # fmt: skip
    pipeline = diffusers.LTXPipeline(
        tokenizer=t5_tokenizer(), text_encoder=text_encoder.eval(), vae=vae, transformer=transformer,
        scheduler=scheduler,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
