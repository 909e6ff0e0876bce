"""CogVideoX 2B, 5B and 1.5 text-to-video (arXiv 2408.06072): v-prediction on a table, T5 text with its padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from reelwright.pretrained.base import (
    FamilyConfig,
    PretrainedDenoiser,
    check_channels,
    check_patches,
    local_settings,
    pad_text,
    t5_of_pipeline,
)
from reelwright.types import Size, Text, UsageError


class CogVideoXConfig(FamilyConfig):
    """CogVideoX's transformer. From scratch, `config` names diffusers' arguments (num_layers, patch_size, ...).

    What has to agree with codec and text is theirs where `config` is silent: channels and the width of the text.
    """

    type: Literal["cogvideox"] = "cogvideox"

    diffusers_class: ClassVar[str] = "CogVideoXTransformer3DModel"

    @classmethod
    def companions(cls, values: Mapping[str, Any], size: Size) -> dict[str, dict[str, Any]]:
        """Read from the directory, the sampler too; of a hub id, from its name (...-2b, ...1.5-...), as published."""
        model = values.get("model")
        network = local_settings(model, "transformer/config.json")
        scheduler = local_settings(model, "scheduler/scheduler_config.json")
        name = (model or "").lower()
        newer = not network and "1.5" in name
        published_shift = 3.0 if name.endswith("-2b") else 1.0
        stochastic = scheduler.get("_class_name") == "CogVideoXDPMScheduler"
        groups: dict[str, dict[str, Any]] = {
            "objective": {
                "schedule": "scaled_linear", "prediction": "v", "zero_terminal_snr": True,
                "snr_shift": scheduler.get("snr_shift_scale", published_shift),
            },
            "sampling": {"sampler": "dpmpp_2m_sde" if stochastic else "ddim", "steps": 50, "guidance": 6.0},
        }  # fmt: skip
        if model is not None:
            length = network.get("max_text_seq_length", 224 if newer else 226)
            group = network.get("patch_size_t", 2 if newer else None) or 1
            groups["codec"] = {"type": "video_autoencoder", "model": model, "frame_group": group}
            groups["text"] = t5_of_pipeline(model, length, padding="kept")
        return groups

    def fitting(self, channels: int, text_width: int) -> dict[str, Any]:
        return {"in_channels": channels, "out_channels": channels, "text_embed_dim": text_width}

    def build(self, channels: int, text_width: int) -> CogVideoXDenoiser:
        """UserError where the weights cannot be loaded, UsageError where codec or text do not fit."""
        return CogVideoXDenoiser(self.fitted(channels, text_width), channels, text_width)


class CogVideoXDenoiser(PretrainedDenoiser):
    """Predicts v = alpha noise - sigma x0. Its text has always `max_text_seq_length` tokens, none of them masked."""

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, config: CogVideoXConfig, channels: int, text_width: int) -> None:
        network = config.load_network()
        settings = network.config
        check_channels(settings)
        if settings.use_rotary_positional_embeddings and settings.attention_head_dim % 16:
            raise UsageError(
                f"model.config.attention_head_dim = {settings.attention_head_dim}: rotary positions need a multiple of "
                "16, shared between time, height and width as 1 : 1.5 : 1.5"
            )
        super().__init__(config, channels, text_width, settings.in_channels, settings.text_embed_dim)
        self.transformer, self.text_length = network, settings.max_text_seq_length

    def check_size(self, latent: Size) -> Size:
        settings = self.transformer.config
        side = settings.patch_size
        grid = check_patches(latent, (settings.patch_size_t or 1, side, side))
        largest = (settings.sample_height // side, settings.sample_width // side)
        if self._positions_are_a_slice and (grid.height > largest[0] or grid.width > largest[1]):
            raise ValueError(
                f"height x width = {latent.height}x{latent.width} latents: the model knows positions up to "
                f"{settings.sample_height}x{settings.sample_width}; use no more"
            )
        learned = ((settings.sample_frames - 1) // settings.temporal_compression_ratio + 1,) + largest
        if settings.use_learned_positional_embeddings and (grid.frames, grid.height, grid.width) != learned:
            frames, height, width = learned[0], settings.sample_height, settings.sample_width
            raise ValueError(
                f"frames x height x width = {latent} latents: the model has learned positions for {frames}x{height}x"
                f"{width} alone; use these, and for a longer video windows of so many frames"
            )
        return grid

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        if cond.values.shape[1] > self.text_length:
            raise UsageError(
                f"text.length: a caption of {cond.values.shape[1]} tokens, but the model takes {self.text_length} "
                f"(max_text_seq_length); use text.length = {self.text_length}"
            )
        text = pad_text(cond, self.text_length).to(x_t.dtype)  # b l d
        grid = self.check_size(Size(*x_t.shape[2:]))
        frames = x_t.transpose(1, 2)  # b f c h w
        return self.transformer(
            frames, text, self.table_index(t), image_rotary_emb=self._rotary(grid, x_t), return_dict=False
        )[0].transpose(1, 2)  # b c f h w

    @property
    def _positions_are_a_slice(self) -> bool:
        """Whether rotary positions count patches (1.5); those of 1.0 are stretched to one picture size."""
        settings = self.transformer.config
        return bool(settings.use_rotary_positional_embeddings and settings.patch_size_t)

    def _rotary(self, grid: Size, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the patches' positions, `n head` each; None for a network with sines of its own."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        settings = self.transformer.config
        if not settings.use_rotary_positional_embeddings:
            return None
        base = (settings.sample_height // settings.patch_size, settings.sample_width // settings.patch_size)
        where: dict[str, Any] = {"crops_coords": _centred(grid, base)}
        if self._positions_are_a_slice:
            where = {"crops_coords": None, "grid_type": "slice", "max_size": base}
        table: Any = get_3d_rotary_pos_embed(
            settings.attention_head_dim, grid_size=(grid.height, grid.width), temporal_size=grid.frames,
            device=like.device, **where,
        )  # fmt: skip
        return table


def _centred(grid: Size, base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Top left and bottom right of the largest rectangle of the grid's shape in the middle of `base`."""
    if grid.height / grid.width > base[0] / base[1]:
        height, width = base[0], round(base[0] / grid.height * grid.width)
    else:
        height, width = round(base[1] / grid.width * grid.height), base[1]
    top, left = round((base[0] - height) / 2), round((base[1] - width) / 2)
    return (top, left), (top + height, left + width)
