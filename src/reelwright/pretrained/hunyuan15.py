"""HunyuanVideo 1.5 text-to-video (arXiv 2511.18870): flow matching, Qwen2.5-VL's tokens and ByT5's of words in quotes.

Its network can start from a picture: beside x_t it takes that picture's latents, a mask, and tokens of it. Here they
are those of a video made from text alone: zeros, and none. It is not told of guidance, as 1.0's is: guidance is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from reelwright.config import Config
from reelwright.diffusion.objective import ObjectiveConfig
from reelwright.models.foreign import Frozen, Precision, freeze, load_part
from reelwright.pretrained.base import FamilyConfig, PretrainedDenoiser, check_patches, local_settings
from reelwright.pretrained.hunyuan import JOINT_ATTENTION_LAYERS, two_encoders_hash
from reelwright.types import Size, Text, UsageError, UserError

# The words around every caption the model was trained with, and how many tokens of theirs precede the caption; part
# of the model like its weights, the runs of nine spaces too (diffusers, HunyuanVideo15Pipeline.system_message). Around
# them stand the marks of Qwen's chats.
TEMPLATE = (
    "<|im_start|>system\n"
    "You are a helpful assistant. Describe the video by detailing the following aspects:         "
    "1. The main content and theme of the video.         "
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.         "
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.         "
    "4. background environment, light, style and atmosphere.         "
    "5. camera angles, movements, and transitions used in the video.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
TEMPLATE_TOKENS = 108
SKIPPED_LAYERS = 2  # of the language model, counted from its end
QUOTED_LENGTH = 256  # bytes and marks of the words in quotes
QUOTES = re.compile('"([^"\n]*)"|“([^”\n]*)”')

# What network/config.json and its neighbours say of themselves is read; of a hub id the name tells, as published in
# Tencent-Hunyuan/HunyuanVideo-1.5, README.md, "Optimal Inference Configurations".
SHIFTS = (("step_distilled", 7.0), ("720p_t2v", 9.0), ("720p", 7.0), ("", 5.0))


def words_in_quotes(caption: str) -> str:
    """What the model is to write within the video, as ByT5 is given it, each of them once; '' where there are none."""
    found = [straight or curly for straight, curly in QUOTES.findall(caption)]
    return "".join(f'Text "{words}". ' for words in dict.fromkeys(found))


class Hunyuan15TextConfig(Config):
    """The text part of Qwen2.5-VL with its template, and a ByT5 encoder of glyphs, of one pipeline directory."""

    type: Literal["hunyuan15"] = "hunyuan15"
    model: str  # a diffusers directory or a hub id
    length: int = Field(default=1000, ge=1)  # tokens of the caption and the template's behind it
    template_tokens: int = Field(default=TEMPLATE_TOKENS, ge=0)  # cut off in front; 108 with the model's own tokenizer
    dtype: Precision = "float32"

    def build(self) -> Hunyuan15Text:
        """UserError where one of the two cannot be loaded, or belongs to another model."""
        return Hunyuan15Text(self)


class Hunyuan15Text(Frozen):
    """Captions -> `b l d+1`: the language model's tokens, then ByT5's of the words in quotes, zeros behind them.

    The last of the d + 1 numbers is 1 for ByT5's tokens and 0 for the others: padding is cut away in the cache, so
    that a token's place does not tell.
    """

    trainable = False
    fitted = True

    def __init__(self, config: Hunyuan15TextConfig) -> None:
        super().__init__()
        import transformers

        load = partial(load_part, model=config.model, field="text.model")

        for subfolder, wanted in (("text_encoder", "qwen2_5_vl_text"), ("text_encoder_2", "t5")):
            found = load(transformers.AutoConfig, subfolder=subfolder).model_type
            if found != wanted:
                raise UserError(
                    f"text.model = {config.model}: its {subfolder} is a {found}, but text.type = hunyuan15 takes a "
                    f"{wanted}; give HunyuanVideo 1.5's directory, or choose the text.type that fits this one"
                )
        weights = {"use_safetensors": True, "dtype": getattr(torch, config.dtype)}
        self.config, self.length = config, config.length
        self.tokenizer = load(transformers.AutoTokenizer, subfolder="tokenizer")
        self.quotes_tokenizer = load(transformers.AutoTokenizer, subfolder="tokenizer_2")
        self.encoder = load(transformers.Qwen2_5_VLTextModel, subfolder="text_encoder", **weights)
        self.quotes_encoder = load(transformers.T5EncoderModel, subfolder="text_encoder_2", **weights)
        freeze(self)
        self.width: int = self.encoder.config.hidden_size + 1

    def count_tokens(self, captions: list[str]) -> list[int]:
        """Tokens of each caption before it is cut at `length`."""
        ids = self.tokenizer(_filled(captions), add_special_tokens=False, truncation=False)["input_ids"]
        return [len(row) - self.config.template_tokens for row in ids]

    def tokenize(self, captions: list[str]) -> Text:
        """Both tokenizers' ids side by side, `b l+256`: the language model's first."""
        tokens = self.tokenizer(
            _filled(captions), add_special_tokens=False, padding="longest", truncation=True, return_tensors="pt",
            max_length=self.length + self.config.template_tokens, padding_side="right",
        )  # fmt: skip
        quotes = [words_in_quotes(caption) for caption in captions]
        quoted = self.quotes_tokenizer(
            quotes, padding="max_length", truncation=True, max_length=QUOTED_LENGTH, return_tensors="pt"
        )
        present = torch.tensor([bool(words) for words in quotes])[:, None]  # b 1: an end mark alone is no text
        mask = torch.cat([tokens["attention_mask"].bool(), quoted["attention_mask"].bool() & present], dim=1)
        return Text(torch.cat([tokens["input_ids"], quoted["input_ids"]], dim=1), mask)

    @torch.no_grad()
    def forward(self, tokens: Text) -> Text:
        """Ids `b l+256` -> embeddings `b l'+q d+1`, float32: l' tokens behind the template, q of words in quotes."""
        ids, quoted_ids = tokens.values[:, :-QUOTED_LENGTH], tokens.values[:, -QUOTED_LENGTH:]
        mask, quoted_mask = tokens.mask[:, :-QUOTED_LENGTH], tokens.mask[:, -QUOTED_LENGTH:]
        with torch.autocast(ids.device.type, enabled=False):
            states = self.encoder(
                input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
            ).hidden_states
            quoted, quoted_mask = self._encode_quoted(quoted_ids, quoted_mask)  # b q d
        words = states[-1 - SKIPPED_LAYERS][:, self.config.template_tokens :].float()  # b l' d
        marked = torch.cat([F.pad(words, (0, 1)), F.pad(quoted, (0, 1), value=1.0)], dim=1)  # b l'+q d+1
        return Text(marked, torch.cat([mask[:, self.config.template_tokens :], quoted_mask], dim=1))

    def _encode_quoted(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids `b 256` -> embeddings `b q d` and mask `b q`, q the longest. ByT5 runs on captions with quotes alone."""
        longest = int(mask.sum(dim=1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]
        quoted = torch.zeros(*ids.shape, self.width - 1, device=ids.device)  # b q d
        rows = mask.any(dim=1)  # b
        if longest:
            found = self.quotes_encoder(input_ids=ids[rows], attention_mask=mask[rows].long()).last_hidden_state
            quoted[rows, :, : found.shape[2]] = found.float()
        return quoted, mask

    def fingerprint(self) -> str:
        """sha256 over what embeddings depend on: tokenizers, weights, template, lengths and precision; not the path."""
        return two_encoders_hash(self, TEMPLATE, self.tokenizer, self.quotes_tokenizer)


def _filled(captions: list[str]) -> list[str]:
    return [TEMPLATE.format(caption or " ") for caption in captions]  # as the pipeline has it


class Hunyuan15Config(FamilyConfig):
    """HunyuanVideo 1.5's transformer. From scratch, `config` names diffusers' arguments (num_layers, ...)."""

    type: Literal["hunyuan15"] = "hunyuan15"
    marked_text: bool = False  # the text says which tokens are of words in quotes (text.type = hunyuan15); or none are

    diffusers_class: ClassVar[str] = "HunyuanVideo15Transformer3DModel"

    @property
    def in_turns(self) -> bool:
        """What the last block makes of the text leads nowhere: those weights never have a gradient."""
        return True

    @classmethod
    def companions(cls, values: Mapping[str, Any], size: Size) -> dict[str, dict[str, Any]]:
        """Shift and guidance are read from the directory; of a hub id, from its name (...-720p_t2v), as published."""
        model = values.get("model")
        name = str(model or "").lower()
        shift = next(shift for part, shift in SHIFTS if part in name)
        scheduler = local_settings(model, "scheduler/scheduler_config.json")
        guider = local_settings(model, "guider/guider_config.json")
        guidance = guider.get("guidance_scale", 1.0 if "distilled" in name else 6.0)
        groups: dict[str, dict[str, Any]] = {
            "objective": {"schedule": "flow", "shift": scheduler.get("shift", shift), "prediction": "velocity"},
            "sampling": {"sampler": "euler", "steps": 50, "guidance": guidance},
        }
        if model is not None:
            # Without tiles its autoencoder attends from every latent to every other: 10 GB for 121 frames of 480p.
            groups["codec"] = {"type": "video_autoencoder", "model": model, "tiling": True}
            groups["text"] = {"type": "hunyuan15", "model": model}
            groups["model"] = {"type": "hunyuan15", "marked_text": True}
        return groups

    def warnings(self, objective: ObjectiveConfig) -> tuple[str, ...]:
        settings = local_settings(self.model, str(Path(self.subfolder) / "config.json"))
        if settings.get("task_type") != "i2v":
            return ()
        return (
            f"model.model = {self.model}: these weights continue a picture (task_type = i2v), and here they are given "
            "none; those made for captions alone are the t2v ones",
        )

    def fitting(self, channels: int, text_width: int) -> dict[str, Any]:
        text = {"text_embed_dim": text_width - self.marked_text} if text_width > 1 else {}
        return {"in_channels": 2 * channels + 1, "out_channels": channels, **text}

    def build(self, channels: int, text_width: int) -> Hunyuan15Denoiser:
        """UserError where the weights cannot be loaded, UsageError where codec or text do not fit."""
        return Hunyuan15Denoiser(self.fitted(channels, text_width), channels, text_width)


class Hunyuan15Denoiser(PretrainedDenoiser):
    """Predicts the velocity noise - x0."""

    lora_targets = tuple(
        f"transformer_blocks.*.{layer}"  # not the refiner of the text, which most LoRAs leave alone
        for layer in JOINT_ATTENTION_LAYERS
    )

    def __init__(self, config: Hunyuan15Config, channels: int, text_width: int) -> None:
        network = config.load_network()
        settings = network.config
        if settings.in_channels != 2 * settings.out_channels + 1:
            raise UsageError(
                f"model: takes {settings.in_channels} channels and makes {settings.out_channels}, but a network of "
                "HunyuanVideo 1.5 for videos takes 2 x those it makes + 1 (a picture's latents and a mask beside its "
                "own), which one for super-resolution does not; use another model.model, or model.config"
            )
        if config.marked_text and settings.text_embed_2_dim > settings.text_embed_dim:
            raise UsageError(
                f"model.config: text_embed_2_dim = {settings.text_embed_2_dim} is above text_embed_dim = "
                f"{settings.text_embed_dim}; the words in quotes travel among the other tokens of the text"
            )
        super().__init__(
            config, channels, text_width, settings.out_channels, settings.text_embed_dim + config.marked_text
        )
        self.transformer, self.marked = network, config.marked_text
        for block in network.transformer_blocks:
            block.attn.set_processor(KeyMaskedAttention())

    def check_size(self, latent: Size) -> Size:
        side = self.transformer.config.patch_size
        return check_patches(latent, (self.transformer.config.patch_size_t, side, side))

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        settings = self.transformer.config
        values, mask = cond.values.to(x_t.dtype), cond.mask  # b l d
        quoted, in_quotes = x_t.new_zeros(len(x_t), 0, settings.text_embed_2_dim), mask[:, :0]
        if self.marked:  # all tokens for both, the other's masked: the network reads its texts as sets
            quoted, in_quotes = values[:, :, : settings.text_embed_2_dim], mask & (values[:, :, -1] > 0.5)
            values, mask = values[:, :, :-1], mask & ~in_quotes
        picture = x_t.new_zeros(len(x_t), settings.out_channels + 1, *x_t.shape[2:])  # its latents and the mask
        no_tokens = x_t.new_zeros(len(x_t), 0, settings.image_embed_dim)  # what stands for no picture would be masked
        return self.transformer(
            torch.cat([x_t, picture], dim=1), self.flow_time(t).to(x_t.dtype), values, mask,
            encoder_hidden_states_2=quoted, encoder_attention_mask_2=in_quotes, image_embeds=no_tokens,
            return_dict=False,
        )[0]  # b c f h w  # fmt: skip


class KeyMaskedAttention:
    """A block's attention over video and text together, masked by `b 1 1 n` keys.

    In place of diffusers' mask of all n x n pairs, which for 121 frames of 480p (n = 49,290) takes 2.4 GB a copy. What
    differs are the tokens that are masked themselves, which no other ever reads.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,  # b n d, of the video
        encoder_hidden_states: Tensor,  # b l d, of the text
        attention_mask: Tensor,  # b l
        image_rotary_emb: Any,  # cosines and sines, n e each
    ) -> tuple[Tensor, Tensor]:
        from diffusers.models.embeddings import apply_rotary_emb

        def heads(layer: Any, norm: Any, x: Tensor) -> Tensor:
            parts = layer(x).unflatten(2, (attn.heads, -1))  # b n h e
            return parts if norm is None else norm(parts)

        def join(of_video: Tensor, of_text: Tensor) -> Tensor:
            return torch.cat([of_video, of_text], dim=1).transpose(1, 2)  # b h n+l e

        video, text = hidden_states, encoder_hidden_states
        queries: Any = apply_rotary_emb(heads(attn.to_q, attn.norm_q, video), image_rotary_emb, sequence_dim=1)
        keys: Any = apply_rotary_emb(heads(attn.to_k, attn.norm_k, video), image_rotary_emb, sequence_dim=1)
        queries = join(queries, heads(attn.add_q_proj, attn.norm_added_q, text))
        keys = join(keys, heads(attn.add_k_proj, attn.norm_added_k, text))
        values = join(heads(attn.to_v, None, video), heads(attn.add_v_proj, None, text))
        read = F.pad(attention_mask.bool(), (video.shape[1], 0), value=True)[:, None, None]  # b 1 1 n+l
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=read)  # b h n+l e
        of_video, of_text = found.transpose(1, 2).flatten(2).split([video.shape[1], text.shape[1]], dim=1)
        return attn.to_out[1](attn.to_out[0](of_video)), attn.to_add_out(of_text)
