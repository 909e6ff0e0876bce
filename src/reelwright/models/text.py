"""Captions -> token ids -> embeddings: a small encoder trained with the denoiser, or CLIP and T5 of transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import nn

from reelwright.config import Config
from reelwright.models.foreign import Frozen, Precision, content_hash, freeze, load_part
from reelwright.models.layers import TransformerBlock, rope_table
from reelwright.types import Text, UserError

PAD, BEGIN, SPECIAL_TOKENS = 0, 1, 2  # ids below SPECIAL_TOKENS never come from a caption's own characters
BYTES = 256


class NativeTextConfig(Config):
    """A byte-level BPE fitted on the captions and a small bidirectional transformer trained with the denoiser.

    With `depth` 0 there is no transformer: tokens know nothing of one another nor of their order.
    """

    type: Literal["native"] = "native"
    vocab_size: PositiveInt = 2048  # at most: a fitted tokenizer may find fewer
    width: PositiveInt = 256
    depth: NonNegativeInt = 2
    heads: PositiveInt = 4
    length: int = Field(default=64, ge=2)  # tokens kept of a caption, the first of them the beginning mark

    @model_validator(mode="after")
    def _check(self) -> NativeTextConfig:
        if self.vocab_size < BYTES + SPECIAL_TOKENS:
            raise ValueError(
                f"vocab_size = {self.vocab_size}: padding, beginning and the {BYTES} bytes need at least "
                f"{BYTES + SPECIAL_TOKENS}"
            )
        if self.depth and (self.width % self.heads or self.width // self.heads % 2):
            raise ValueError(
                f"width = {self.width} over heads = {self.heads}: the head dimension must be whole and even"
            )
        return self

    def build(self) -> NativeText:
        return NativeText(self)


class NativeText(nn.Module):
    """Captions as their tokens and what these tell one another; any string encodes, as every byte has a token."""

    trainable = True

    def __init__(self, config: NativeTextConfig) -> None:
        super().__init__()
        self.config = config
        self.width, self.length = config.width, config.length
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.blocks = nn.ModuleList(TransformerBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self._tokenizer: Any = None

    @property
    def fitted(self) -> bool:
        return self._tokenizer is not None

    def fit(self, captions: Iterable[str]) -> None:
        """Fit the tokenizer. The same captions in the same order give the same tokenizer, byte for byte."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.config.vocab_size - SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator((well_formed(caption) for caption in captions), trainer)
        self._tokenizer = tokenizer

    def tokenizer_json(self) -> str:
        return self._fitted_tokenizer().to_str()

    def load_tokenizer(self, text: str) -> None:
        """Take what `tokenizer_json` gave. ValueError where it is no tokenizer or does not fit `vocab_size`."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"not a tokenizer's JSON: {error}") from None
        if tokenizer.get_vocab_size() + SPECIAL_TOKENS > self.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.get_vocab_size()} tokens and {SPECIAL_TOKENS} special ones, "
                f"more than text.vocab_size = {self.config.vocab_size}"
            )
        self._tokenizer = tokenizer

    def fingerprint(self) -> str:
        """sha256 over the settings and the tokenizer: what token ids depend on. Weights train, so they stay out."""
        return content_hash({**self.config.plain(), "tokenizer": self.tokenizer_json()}, {})

    def count_tokens(self, captions: list[str]) -> list[int]:
        """Tokens of each caption before it is cut at `length`, beginning mark included."""
        return [len(ids) + 1 for ids in self._encode(captions)]

    def tokenize(self, captions: list[str]) -> Text:
        """Ids `b l` and mask, l = the longest of them, at most `length`."""
        rows = [[BEGIN, *(token + SPECIAL_TOKENS for token in ids)][: self.length] for ids in self._encode(captions)]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        return Text(ids, ids != PAD)

    def untokenize(self, tokens: Text) -> list[str]:
        """The captions that ids stand for, as far as they were not cut."""
        rows = [[int(i) - SPECIAL_TOKENS for i in row if i >= SPECIAL_TOKENS] for row in tokens.values]
        return self._fitted_tokenizer().decode_batch(rows)

    def forward(self, tokens: Text) -> Text:
        """Ids `b l` -> embeddings `b l width`."""
        x = self.embedding(tokens.values)  # b l d
        if self.blocks:
            rope = rope_table((x.shape[1],), self.width // self.config.heads, x.device)  # l e
        for block in self.blocks:
            x = block(x, rope, tokens.mask)  # b l d
        return Text(self.norm(x), tokens.mask)

    def _encode(self, captions: list[str]) -> list[list[int]]:
        encoded = self._fitted_tokenizer().encode_batch([well_formed(caption) for caption in captions])
        return [one.ids for one in encoded]

    def _fitted_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise ValueError("the native text encoder has no tokenizer yet: call fit(captions) or load_tokenizer(json)")
        return self._tokenizer


def well_formed(caption: str) -> str:
    """The caption with lone surrogates, which UTF-8 cannot hold, replaced."""
    return caption.encode("utf-8", "replace").decode("utf-8")


Padding = Literal["trimmed", "encoded", "kept"]


class _FrozenTextConfig(Config):
    model: str  # a transformers directory or a hub id
    subfolder: str = ""  # "text_encoder" inside a whole diffusers pipeline
    tokenizer_subfolder: str = ""  # "tokenizer" there
    dtype: Precision = "float32"


class CLIPTextConfig(_FrozenTextConfig):
    """CLIP's text tower (Radford et al. 2021), last hidden state."""

    type: Literal["clip"] = "clip"
    length: int = Field(default=77, ge=2, le=77)

    def build(self) -> FrozenText:
        """UserError where the model cannot be loaded."""
        return FrozenText(self, {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"})


class T5TextConfig(_FrozenTextConfig):
    """The encoder of T5 (Raffel et al. 2020) or of umT5, last hidden state."""

    type: Literal["t5"] = "t5"
    length: int = Field(default=128, ge=2)
    padding: Padding = "trimmed"

    def build(self) -> FrozenText:
        """UserError where the model cannot be loaded."""
        return FrozenText(self, {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}, self.padding)


class FrozenText(Frozen):
    """A text encoder of transformers, never trained.

    `padding`, as pretrained video models differ in it: 'trimmed', the encoder sees the caption alone; 'encoded', it
    sees the caption padded to `length`, but the padding is no part of the text; 'kept', padding is text like any other.
    """

    trainable = False
    fitted = True

    def __init__(
        self, config: CLIPTextConfig | T5TextConfig, classes: dict[str, str], padding: Padding = "trimmed"
    ) -> None:
        super().__init__()
        import transformers

        load = partial(load_part, model=config.model, field="text.model")

        self.config, self.length, self.padding = config, config.length, padding
        settings = load(transformers.AutoConfig, subfolder=config.subfolder)
        if settings.model_type not in classes:
            raise UserError(
                f"text.model = {config.model}: holds a {settings.model_type}, but text.type = {config.type} "
                f"takes {' or '.join(classes)}"
            )
        self.tokenizer = load(transformers.AutoTokenizer, subfolder=config.tokenizer_subfolder)
        encoder = getattr(transformers, classes[settings.model_type])
        self.encoder = load(
            encoder, subfolder=config.subfolder, use_safetensors=True, dtype=getattr(torch, config.dtype)
        )
        freeze(self.encoder)
        self.width: int = self.encoder.config.hidden_size

    def count_tokens(self, captions: list[str]) -> list[int]:
        """Tokens of each caption before it is cut at `length`, special tokens included."""
        return [len(ids) for ids in self.tokenizer(captions, truncation=False)["input_ids"]]

    def tokenize(self, captions: list[str]) -> Text:
        """Ids `b l` and mask, l = the longest of them, at most `length`, or always that where padding is encoded."""
        to = "longest" if self.padding == "trimmed" else "max_length"
        tokens = self.tokenizer(captions, padding=to, truncation=True, max_length=self.length, return_tensors="pt")
        mask = tokens["attention_mask"].bool()
        return Text(tokens["input_ids"], torch.ones_like(mask) if self.padding == "kept" else mask)

    @torch.no_grad()
    def forward(self, tokens: Text) -> Text:
        """Ids `b l` -> embeddings `b l width`, float32."""
        seen = tokens.mask if self.padding == "trimmed" else torch.ones_like(tokens.mask)
        with torch.autocast(tokens.values.device.type, enabled=False):
            hidden = self.encoder(input_ids=tokens.values, attention_mask=seen.long()).last_hidden_state
        return Text(hidden.float(), tokens.mask)

    def fingerprint(self) -> str:
        """sha256 over what embeddings depend on: tokenizer, weights, length and precision; not the path."""
        vocabulary = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        settings = {
            "type": self.config.type,
            "length": self.length,
            "padding": self.padding,
            "dtype": self.config.dtype,
            "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        }
        return content_hash(settings, self.encoder.state_dict())
