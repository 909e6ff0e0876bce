"""A CLIP small enough for a test, saved as transformers saves one: random weights, pictures of 32 x 32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

IMAGE_SIDE = 32


def save_tiny_clip(folder: Path, tokenizer: Path | None = None, width: int = 32, seed: int = 0) -> Path:
    """A model directory; its tokenizer is that of the folder `tokenizer`, else one of single characters."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        write_character_tokenizer(folder)
    else:
        for file in tokenizer.iterdir():
            shutil.copy(file, folder / file.name)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    begin, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    sizes = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2,
        "projection_dim": width,
    }  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={
            **sizes, "vocab_size": len(vocabulary), "max_position_embeddings": 77, "bos_token_id": begin,
            "eos_token_id": end, "pad_token_id": end,
        },
        vision_config={**sizes, "image_size": IMAGE_SIDE, "patch_size": 8},
        projection_dim=width,
    )  # fmt: skip
    torch.manual_seed(seed)
    transformers.CLIPModel(config).eval().save_pretrained(folder)
    preprocessing = {
        "size": {"shortest_edge": IMAGE_SIDE}, "crop_size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        "image_processor_type": "CLIPImageProcessor",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def write_character_tokenizer(folder: Path) -> None:
    """The files of a CLIP tokenizer without merges: every character is a token."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": 77,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
