"""A HunyuanVideo 1.5 pipeline with 2 layers, saved by diffusers: Qwen2.5-VL text of width 32, ByT5's of width 16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tiny_families import SENTENCES, shake

CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # what Qwen2.5's own makes of a system's message and a user's
SHIFT, GUIDANCE = 5.0, 3.5
PROMPTS = ['a red ball falls on a sign that says "OPEN"', "two dots spin to the left"]


def qwen_tokenizer(template: str) -> Any:
    """Byte-level BPE with Qwen's marks and chats."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([template, *SENTENCES], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", model_max_length=4096, padding_side="right"
    )
    made.chat_template = CHAT
    return made


def prefix_tokens(model: Path, template: str) -> int:
    """How many tokens of the saved tokenizer precede a caption; with the published one it is 108."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model / "tokenizer")
    return len(tokenizer(template.split("{}")[0], add_special_tokens=False)["input_ids"])


def text_group(prefix: int, **settings: Any) -> dict[str, Any]:
    """The text group of a recipe that a tokenizer of our own making needs."""
    return {"type": "hunyuan15", "template_tokens": prefix, **settings}


def save_hunyuan15(folder: Path, template: str, task_type: str = "t2v") -> Path:
    import diffusers
    import transformers

    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_refiner_layers=1,
        mlp_ratio=2.0, text_embed_dim=32, text_embed_2_dim=16, image_embed_dim=8, rope_axes_dim=(2, 4, 4),
        task_type=task_type,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16, 16, 16),  # pyright: ignore[reportArgumentType]
        layers_per_block=1, spatial_compression_ratio=8,
    )  # fmt: skip
    tokenizer = qwen_tokenizer(template)
    qwen = transformers.Qwen2_5_VLTextModel(
        transformers.Qwen2_5_VLTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        )  # fmt: skip
    )
    byt5 = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
        )
    )
    for number, part in enumerate((transformer, vae, qwen, byt5)):
        shake(part, number)
    pipeline = diffusers.HunyuanVideo15Pipeline(
        text_encoder=qwen.eval(), tokenizer=tokenizer, transformer=transformer, vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT), text_encoder_2=byt5.eval(),
        tokenizer_2=transformers.ByT5Tokenizer(), guider=diffusers.ClassifierFreeGuidance(guidance_scale=GUIDANCE),
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return folder / "model"
