"""Prompts -> videos."""

from __future__ import annotations

from reelwright.generate.request import Request, cut_prompts, load_picture
from reelwright.generate.sampling import (
    Compute,
    Progress,
    decode_latents,
    denoise_latents,
    encode_pictures,
    encode_prompts,
    encode_video,
    fitting_latent_size,
    generate_videos,
    latent_window,
    sample_latents,
    walk_times,
)
from reelwright.generate.targets import check_target, output_paths, refuse_existing
from reelwright.generate.verb import clip_recipe, run_generate

__all__ = [
    "Compute",
    "Progress",
    "Request",
    "check_target",
    "clip_recipe",
    "cut_prompts",
    "decode_latents",
    "denoise_latents",
    "encode_pictures",
    "encode_prompts",
    "encode_video",
    "fitting_latent_size",
    "generate_videos",
    "latent_window",
    "load_picture",
    "output_paths",
    "refuse_existing",
    "run_generate",
    "sample_latents",
    "walk_times",
]
