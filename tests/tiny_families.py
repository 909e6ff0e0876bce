"""Pipelines of every family, tiny and with random weights, saved by diffusers in its own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SENTENCES = ["a red ball falls", "a blue square rises slowly", "two dots spin to the left and then stop", "nothing"]
MAX_LENGTH = 512


def t5_tokenizer() -> Any:
    """A T5 tokenizer with a vocabulary of its own: no file of anybody's is needed."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=96, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=MAX_LENGTH
    )


def shake(module: torch.nn.Module, seed: int, scale: float = 0.05) -> None:
    """Move every weight: fresh networks hold zeros and ones that would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def wan_transformer(channels: int = 16) -> Any:
    """2 layers, 24 wide, for umT5 text of width 32."""
    import diffusers

    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels,
        out_channels=channels, text_dim=32, freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


def umt5() -> Any:
    import transformers

    settings = transformers.UMT5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return transformers.UMT5EncoderModel(settings)


def unipc(shift: float) -> Any:
    """The scheduler that Wan is published with."""
    import diffusers

    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_type="bh2"
    )


def save_wan(folder: Path, scheduler: Any = None) -> Path:
    """Wan 2.1 with 2 layers: latents of 16 channels, a quarter of the frames and an eighth of each side."""
    import diffusers

    torch.manual_seed(0)
    transformer = wan_transformer()
    vae = diffusers.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    text_encoder = umt5()
    for number, part in enumerate((transformer, vae, text_encoder)):
        shake(part, number)
    pipeline = diffusers.WanPipeline(
        tokenizer=t5_tokenizer(), text_encoder=text_encoder.eval(), vae=vae, transformer=transformer,
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
