"""Stable Video Diffusion (arXiv 2311.15127): v-prediction at EDM's noise levels, in two modes.

`text`: captions in place of the picture it was trained with: no image latents, and the tokens of any text encoder
through a learned projection to the width its attention takes. `image`: its own image-to-video, where every clip's first
frame is the picture it is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from reelwright.config import Config
from reelwright.diffusion.objective import ObjectiveConfig
from reelwright.metrics.clip import IMAGE_MEAN, IMAGE_STD
from reelwright.models.foreign import Frozen, Precision, content_hash, freeze, load_foreign
from reelwright.pretrained.base import FamilyConfig, PretrainedDenoiser, pad_text
from reelwright.types import Size, Text, UsageError

NOISE_LEVELS = (1e-4, 1e4)  # what the network is told lies in here: t = 0 and t = 1 have no logarithm


class CLIPImageConfig(Config):
    """CLIP's picture tower with its projection, where other models have a text encoder."""

    type: Literal["clip_image"] = "clip_image"
    model: str  # a diffusers directory or a hub id
    subfolder: str = "image_encoder"
    dtype: Precision = "float32"

    def build(self) -> CLIPImage:
        """UserError where the model cannot be loaded."""
        return CLIPImage(self)


class CLIPImage(Frozen):
    """Pictures as one token, zeros where there is none; captions are refused."""

    trainable = False
    fitted = True
    length = 1
    tokenizer: Any = None

    def __init__(self, config: CLIPImageConfig) -> None:
        super().__init__()
        import transformers

        self.config = config
        self.encoder: Any = load_foreign(
            lambda: transformers.CLIPVisionModelWithProjection.from_pretrained(
                config.model, subfolder=config.subfolder, use_safetensors=True, dtype=getattr(torch, config.dtype)
            ),
            config.model, "text.model", config.subfolder,
        )  # fmt: skip
        freeze(self.encoder)
        self.width: int = self.encoder.config.projection_dim

    def count_tokens(self, captions: list[str]) -> list[int]:
        return [0] * len(captions)

    def tokenize(self, captions: list[str]) -> Text:
        """Of the empty caption alone, which stands for no picture. UsageError for any other."""
        if any(captions):
            raise UsageError(
                "model.mode = image: this model makes videos from a picture, not from captions. Use it with "
                "`reelwright generate MODEL --image PICTURE`; for prompts use mode = text with a text encoder "
                "(recipes/svd-finetune.yaml)"
            )
        ids = torch.zeros(len(captions), 1, dtype=torch.int64)
        return Text(ids, torch.ones_like(ids, dtype=torch.bool))

    @torch.no_grad()
    def forward(self, pictures: Tensor | Text) -> Any:
        """`b 3 h w` in [-1, 1] -> `b 1 width`, float32; of `tokenize`d texts, which have no picture, zeros."""
        if isinstance(pictures, Text):
            nothing = torch.zeros(*pictures.values.shape, self.width, device=pictures.values.device)
            return Text(nothing, pictures.mask)
        small = shrink(pictures.float(), self.encoder.config.image_size)
        mean, std = (small.new_tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        with torch.autocast(pictures.device.type, enabled=False):
            pixels = ((small + 1) / 2 - mean) / std
            return self.encoder(pixels.to(self.encoder.dtype)).image_embeds[:, None].float()

    def fingerprint(self) -> str:
        """sha256 over weights and precision."""
        return content_hash({"type": self.config.type, "dtype": self.config.dtype}, self.encoder.state_dict())


def shrink(pictures: Tensor, side: int) -> Tensor:
    """`b 3 h w` -> `b 3 side side`, as SVD's pictures reached CLIP: a Gaussian blur, then bicubic, corners aligned.

    The blur has deviation (factor - 1) / 2 along each axis, cut off at two of them, the edges mirrored.
    """
    for axis in (3, 2):
        factor = pictures.shape[axis] / side
        deviation = max((factor - 1) / 2, 1e-3)
        reach = int(max(4 * deviation, 3)) // 2
        offsets = torch.arange(-reach, reach + 1, dtype=torch.float32, device=pictures.device)
        weights = torch.exp(-(offsets**2) / (2 * deviation**2))
        kernel = (weights / weights.sum()).view((1, 1, 1, -1) if axis == 3 else (1, 1, -1, 1)).expand(3, 1, -1, -1)
        padding = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
        pictures = F.conv2d(F.pad(pictures, padding, mode="reflect"), kernel, groups=3)
    return F.interpolate(pictures, size=(side, side), mode="bicubic", align_corners=True)


class SVDConfig(FamilyConfig):
    """Stable Video Diffusion's UNet. From scratch, `config` names diffusers' arguments (block_out_channels, ...).

    Its channels are the codec's where `config` is silent: latents, and as many for the picture.
    """

    type: Literal["svd"] = "svd"
    subfolder: str = "unet"
    mode: Literal["text", "image"] = "text"
    text_length: PositiveInt = 77  # tokens; shorter texts are padded with zeros, as the network knows no mask
    motion_bucket: int = Field(default=127, ge=0, le=255)  # how much motion the network is told there is
    noise_augmentation: float = Field(default=0.02, ge=0)  # share of noise it is told the picture has, and gets

    diffusers_class: ClassVar[str] = "UNetSpatioTemporalConditionModel"

    @classmethod
    def companions(cls, values: Mapping[str, Any], size: Size) -> dict[str, dict[str, Any]]:
        model, image = values.get("model"), values.get("mode") == "image"
        groups: dict[str, dict[str, Any]] = {
            "objective": {"schedule": "edm", "prediction": "v"},
            "sampling": {"sampler": "euler", "steps": 25, "guidance": 3.0, "spacing": "karras"},
        }
        if image:  # nearest to the picture there is nothing to guide
            groups["sampling"] |= {"guidance": 1.0, "guidance_end": 3.0}
        if model is not None:
            groups["codec"] = {"type": "video_autoencoder", "model": model}
            if image:
                groups["text"] = {"type": "clip_image", "model": model}
        return groups

    @property
    def pictures(self) -> dict[str, Any] | None:
        """The noise that is added to a first frame before its latents are kept."""
        return {"noise_augmentation": self.noise_augmentation} if self.mode == "image" else None

    def check_parts(self, codec: str, text: str) -> None:
        if self.mode == "image" and text != "clip_image":
            raise ValueError(
                f"text.type = {text}: model.mode = image starts from a picture, not from captions; leave text.type out "
                "where model.model is set (else clip_image with text.model), or use model.mode = text"
            )
        if self.mode == "image" and codec != "video_autoencoder":
            raise ValueError(
                f"codec.type = {codec}: model.mode = image needs the autoencoder of Stable Video Diffusion; use "
                "codec.type = video_autoencoder"
            )

    @property
    def fits_pipeline(self) -> bool:
        """The pipeline starts from a picture and knows no captions."""
        return self.mode == "image"

    def warnings(self, objective: ObjectiveConfig) -> tuple[str, ...]:
        if objective.prediction == "v" or self.model is None:
            return ()
        return (
            f"objective.prediction = {objective.prediction}: the weights of {self.model} predict v, so that training "
            "has to teach them another task first; leave `objective` out for the one they were trained for",
        )

    def fitting(self, channels: int, text_width: int) -> dict[str, Any]:
        return {"in_channels": 2 * channels, "out_channels": channels}

    def build(self, channels: int, text_width: int) -> SVDDenoiser:
        """UserError where the weights cannot be loaded, UsageError where codec or text do not fit."""
        return SVDDenoiser(self.fitted(channels, text_width), channels, text_width)


class SVDDenoiser(PretrainedDenoiser):
    """Predicts v = alpha noise - sigma x0, where x_t is EDM's noised data over sqrt(1 + s^2), s = sigma / alpha."""

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, config: SVDConfig, channels: int, text_width: int) -> None:
        network = config.load_network()
        settings, width = network.config, network.config.cross_attention_dim
        if settings.in_channels != 2 * settings.out_channels:
            raise UsageError(
                f"model: takes {settings.in_channels} channels and makes {settings.out_channels}; Stable Video "
                "Diffusion takes twice as many as it makes, the picture's beside the video's"
            )
        if not isinstance(width, int):
            raise UsageError(f"model.config.cross_attention_dim = {width}: give one width for all blocks")
        projected = config.mode == "text"
        super().__init__(config, channels, text_width, settings.out_channels, text_width if projected else width)
        self.unet, self.settings, self.takes_image = network, config, not projected
        self.text_in = nn.Linear(text_width, width) if projected else None
        self.lora_also_trains = ("text_in",) if projected else ()

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's own weights, whatever adapters have: what reaches it is cast to it."""
        return self.unet.conv_in.weight.dtype

    def check_size(self, latent: Size) -> Size:
        """Every size will do: the UNet rounds up where it halves."""
        return latent

    def noise_level(self, t: Tensor) -> Tensor:
        """What the network is told of time: ln(s) / 4, `b` float32 (Karras et al. 2022, table 1, c_noise)."""
        ratio = self.schedule.sigma(t) / self.schedule.alpha(t)
        return (ratio.clamp(*NOISE_LEVELS).log() / 4).float()

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        image = torch.zeros_like(x_t) if cond.image is None else cond.image.to(x_t)  # b c f h w
        if self.text_in is None:
            tokens = cond.values  # b 1 d
        else:
            text = pad_text(cond, self.settings.text_length)
            tokens = self.text_in(text.to(self.text_in.weight.dtype))  # b l d
        told = [self.fps - 1, self.settings.motion_bucket, self.settings.noise_augmentation]
        both = torch.cat([x_t, image], dim=1).transpose(1, 2).to(self.dtype)  # b f 2c h w
        ids = torch.tensor([told] * len(x_t), dtype=torch.float32, device=x_t.device)  # b 3
        out = self.unet(both, self.noise_level(t), tokens.to(self.dtype), ids, return_dict=False)[0]
        return out.transpose(1, 2)  # b c f h w

    @torch.no_grad()
    def condition_on(self, picture: Tensor, codec: Any, encoder: Any, size: Size, noise: Tensor) -> tuple[Text, Text]:
        """A picture uint8 `h w 3` as one sample's (cond, uncond) for videos of `size`; noise `3 h w` of that size.

        CLIP sees the picture whole; its latents are those of the picture at the video's size, noised a little, and not
        normalised as the video's are: the network was trained so.
        """
        resized = Image.fromarray(picture.cpu().numpy()).resize((size.width, size.height), Image.Resampling.LANCZOS)
        token = encoder(_scaled(picture))  # 1 1 d
        fitted = _scaled(torch.from_numpy(np.array(resized)).to(picture.device))
        fitted = fitted + self.settings.noise_augmentation * noise.to(fitted)
        raw = codec.encode(fitted[:, :, None]).mean * codec.std + codec.mean  # 1 c 1 h w
        frames = codec.compression.latent_size(size).frames
        image = raw.expand(-1, -1, frames, -1, -1)
        mask = torch.ones(1, 1, dtype=torch.bool, device=picture.device)
        return Text(token, mask, image), Text(torch.zeros_like(token), mask, torch.zeros_like(image))


def _scaled(picture: Tensor) -> Tensor:
    """uint8 `h w 3` -> float32 `1 3 h w` in [-1, 1]."""
    return picture.permute(2, 0, 1)[None].float() / 127.5 - 1
