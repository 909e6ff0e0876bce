"""A HunyuanVideo pipeline with 1 + 1 layers, saved by diffusers: LLaMA text of width 32, CLIP's summary of width 16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tiny_clip import write_character_tokenizer
from tiny_families import SENTENCES, shake


def llama_tokenizer(template: str) -> Any:
    """Byte-level BPE with LLaMA 3's special tokens; every caption keeps the same number of tokens before it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([template, *SENTENCES], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=1024)


def save_hunyuan(folder: Path, template: str, guidance_embeds: bool = True) -> Path:
    import diffusers
    import transformers

    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=guidance_embeds, text_embed_dim=32,
        pooled_projection_dim=16, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        scaling_factor=0.476986, spatial_compression_ratio=8, temporal_compression_ratio=4,
        mid_block_add_attention=True,
    )  # fmt: skip
    tokenizer = llama_tokenizer(template)
    llama = transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=1024,
            pad_token_id=0,
        )  # fmt: skip
    )
    clip_folder = folder / "clip-tokenizer"
    clip_folder.mkdir(parents=True)
    write_character_tokenizer(clip_folder)
    clip_tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    clip = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=16,
            eos_token_id=clip_tokenizer.eos_token_id,
            bos_token_id=clip_tokenizer.bos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )  # fmt: skip
    )
    for number, part in enumerate((transformer, vae, llama, clip)):
        shake(part, number)
    pipeline = diffusers.HunyuanVideoPipeline(
        text_encoder=llama.eval(), tokenizer=tokenizer, transformer=transformer, vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), text_encoder_2=clip.eval(),
        tokenizer_2=clip_tokenizer,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return folder / "model"
