"""HunyuanVideo 1.0 (arXiv 2412.03603): flow matching, a language model's tokens and CLIP's summary of the caption.

Its published weights are distilled with guidance as an input of the network; true guidance can be had on top of it.
"""

from __future__ import annotations

import hashlib
import json
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
from reelwright.models.foreign import Frozen, Precision, content_hash, freeze, load_part
from reelwright.models.layers import masked_mean
from reelwright.pretrained.base import FamilyConfig, PretrainedDenoiser, check_channels, check_patches, local_settings
from reelwright.types import Size, Text, UsageError

# The words around every caption the model was trained with, and how many tokens of theirs precede the caption; part
# of the model like its weights (Tencent/HunyuanVideo, hyvideo/constants.py, PROMPT_TEMPLATE_ENCODE_VIDEO).
TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
TEMPLATE_TOKENS = 95
SKIPPED_LAYERS = 2  # of the language model, counted from its end
CLIP_LENGTH = 77
POOLED = 768  # width of CLIP's summary
JOINT_ATTENTION_LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
)  # of a block over video and text  # fmt: skip


class HunyuanTextConfig(Config):
    """A language model (LLaMA with its template) and a CLIP text tower, of one pipeline directory."""

    type: Literal["hunyuan"] = "hunyuan"
    model: str  # a diffusers directory or a hub id
    length: int = Field(default=256, ge=1)  # tokens of the caption, the template's not counted
    template_tokens: int = Field(default=TEMPLATE_TOKENS, ge=0)  # cut off in front; 95 with the model's own tokenizer
    dtype: Precision = "float32"

    def build(self) -> HunyuanText:
        """UserError where one of the two cannot be loaded."""
        return HunyuanText(self)


class HunyuanText(Frozen):
    """Captions -> `b 1+l d`: first CLIP's pooled summary, zeros behind it, then the language model's tokens."""

    trainable = False
    fitted = True

    def __init__(self, config: HunyuanTextConfig) -> None:
        super().__init__()
        import transformers

        load = partial(load_part, model=config.model, field="text.model")

        weights = {"use_safetensors": True, "dtype": getattr(torch, config.dtype)}
        self.config, self.length = config, config.length
        self.tokenizer = load(transformers.AutoTokenizer, subfolder="tokenizer")
        self.clip_tokenizer = load(transformers.AutoTokenizer, subfolder="tokenizer_2")
        self.encoder = load(transformers.LlamaModel, subfolder="text_encoder", **weights)
        self.clip = load(transformers.CLIPTextModel, subfolder="text_encoder_2", **weights)
        freeze(self)
        self.width: int = self.encoder.config.hidden_size

    def count_tokens(self, captions: list[str]) -> list[int]:
        """Tokens of each caption before it is cut at `length`."""
        filled = [TEMPLATE.format(caption) for caption in captions]
        return [len(ids) - self.config.template_tokens for ids in self.tokenizer(filled, truncation=False)["input_ids"]]

    def tokenize(self, captions: list[str]) -> Text:
        """Both tokenizers' ids side by side, `b l+77`: the language model's first."""
        filled = [TEMPLATE.format(caption) for caption in captions]
        tokens = self.tokenizer(
            filled, padding="longest", truncation=True, max_length=self.length + self.config.template_tokens,
            return_tensors="pt", padding_side="right",
        )  # fmt: skip
        clip = self.clip_tokenizer(
            captions, padding="max_length", truncation=True, max_length=CLIP_LENGTH, return_tensors="pt"
        )
        mask = torch.cat([tokens["attention_mask"].bool(), clip["attention_mask"].bool()], dim=1)
        return Text(torch.cat([tokens["input_ids"], clip["input_ids"]], dim=1), mask)

    @torch.no_grad()
    def forward(self, tokens: Text) -> Text:
        """Ids `b l+77` -> embeddings `b 1+l' d`, float32, l' tokens behind the template."""
        ids, clip_ids = tokens.values[:, :-CLIP_LENGTH], tokens.values[:, -CLIP_LENGTH:]
        mask = tokens.mask[:, :-CLIP_LENGTH]
        with torch.autocast(ids.device.type, enabled=False):
            layers = self.encoder(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
            pooled = self.clip(input_ids=clip_ids).pooler_output  # b p; CLIP's own padding is what it was trained with
        words = layers[-1 - SKIPPED_LAYERS][:, self.config.template_tokens :].float()  # b l' d
        summary = F.pad(pooled.float(), (0, self.width - pooled.shape[1]))[:, None]  # b 1 d
        real = torch.cat([mask.new_ones(len(ids), 1), mask[:, self.config.template_tokens :]], dim=1)
        return Text(torch.cat([summary, words], dim=1), real)

    def fingerprint(self) -> str:
        """sha256 over what embeddings depend on: tokenizers, weights, template, lengths and precision; not the path."""
        return two_encoders_hash(self, TEMPLATE, self.tokenizer, self.clip_tokenizer)


def two_encoders_hash(text: Any, template: str, *tokenizers: Any) -> str:
    """What embeddings of either generation's text encoders depend on."""
    vocabularies = json.dumps([tokenizer.get_vocab() for tokenizer in tokenizers], sort_keys=True)
    settings = {
        "length": text.length, "dtype": text.config.dtype, "template": [template, text.config.template_tokens],
        "vocabularies": hashlib.sha256(vocabularies.encode()).hexdigest(),
    }  # fmt: skip
    return content_hash(settings, text.state_dict())


class HunyuanConfig(FamilyConfig):
    """HunyuanVideo's transformer. From scratch, `config` names diffusers' arguments (num_layers, ...)."""

    type: Literal["hunyuan"] = "hunyuan"
    embedded_guidance: float = Field(default=6.0, ge=0)  # what the network is told while it generates
    training_guidance: float = Field(default=1.0, ge=0)  # and while it trains: no guidance to be learned
    summary: Literal["first_token", "mean"] = "mean"  # of the text: CLIP's (text.type = hunyuan), or the tokens' mean

    diffusers_class: ClassVar[str] = "HunyuanVideoTransformer3DModel"

    @classmethod
    def companions(cls, values: Mapping[str, Any], size: Size) -> dict[str, dict[str, Any]]:
        """The shift is that of the directory's scheduler; else 7, as published."""
        model = values.get("model")
        shift = local_settings(model, "scheduler/scheduler_config.json").get("shift") or 7.0
        groups: dict[str, dict[str, Any]] = {
            "objective": {"schedule": "flow", "shift": shift, "prediction": "velocity"},
            "sampling": {"sampler": "euler", "steps": 50, "guidance": 1.0},
        }
        if model is not None:
            groups["codec"] = {"type": "video_autoencoder", "model": model}
            groups["text"] = {"type": "hunyuan", "model": model}
            groups["model"] = {"type": "hunyuan", "summary": "first_token"}
        return groups

    def warnings(self, objective: ObjectiveConfig) -> tuple[str, ...]:
        network = self.config or local_settings(self.model, str(Path(self.subfolder) / "config.json"))
        told = {name: getattr(self, name) for name in ("embedded_guidance", "training_guidance")}
        changed = [name for name, value in told.items() if value != type(self).model_fields[name].default]
        if network.get("guidance_embeds", True) or not changed:
            return ()
        return (
            f"model.{changed[0]} = {told[changed[0]]:g} has no effect: this network is not told of guidance "
            "(guidance_embeds = false); sampling.guidance is what guides it",
        )

    def fitting(self, channels: int, text_width: int) -> dict[str, Any]:
        width = self.config.get("text_embed_dim", text_width)
        text = {"text_embed_dim": width, "pooled_projection_dim": min(POOLED, width)} if width != 1 else {}
        return {"in_channels": channels, "out_channels": channels, **text}

    def build(self, channels: int, text_width: int) -> HunyuanDenoiser:
        """UserError where the weights cannot be loaded, UsageError where codec or text do not fit."""
        return HunyuanDenoiser(self.fitted(channels, text_width), channels, text_width)


class HunyuanDenoiser(PretrainedDenoiser):
    """Predicts the velocity noise - x0. The text's first token is CLIP's summary (see HunyuanText)."""

    lora_targets = tuple(
        f"*transformer_blocks.*.{layer}"  # not the refiner of the text, which most LoRAs leave alone
        for layer in JOINT_ATTENTION_LAYERS
    )

    def __init__(self, config: HunyuanConfig, channels: int, text_width: int) -> None:
        network = config.load_network()
        check_channels(network.config)
        super().__init__(config, channels, text_width, network.config.in_channels, network.config.text_embed_dim)
        if network.config.pooled_projection_dim > network.config.text_embed_dim:
            raise UsageError(
                f"model.config: pooled_projection_dim = {network.config.pooled_projection_dim} is above "
                f"text_embed_dim = {network.config.text_embed_dim}; the summary travels as one of the text's tokens"
            )
        self.transformer, self.summary = network, config.summary
        self.guidance = (config.training_guidance, config.embedded_guidance)

    def check_size(self, latent: Size) -> Size:
        side = self.transformer.config.patch_size
        return check_patches(latent, (self.transformer.config.patch_size_t, side, side))

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        words, mask, summary = cond.values.to(x_t.dtype), cond.mask, masked_mean(cond.values, cond.mask)
        if self.summary == "first_token":
            words, mask, summary = words[:, 1:], mask[:, 1:], words[:, 0]
        pooled = summary[:, : self.transformer.config.pooled_projection_dim].to(x_t.dtype)  # b p
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full_like(t, 1000 * self.guidance[self.generating])  # b
        return self.transformer(x_t, self.flow_time(t), words, mask.to(x_t.dtype), pooled, guidance, return_dict=False)[
            0
        ]  # b c f h w
