"""Wan 2.1 and 2.2 text-to-video (arXiv 2503.20314): flow matching, umT5 text padded with zeros to 512 tokens.

Wan 2.2 A14B is two networks: `transformer` where sigma is at least the pipeline's `boundary_ratio`, `transformer_2`
below it. Wan 2.2 5B is one, with an autoencoder of its own. Its pipeline tells every token the same time
(`expand_timesteps`), which is what telling it once computes; the two differ where a video starts from a picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from reelwright.diffusion.objective import ObjectiveConfig
from reelwright.diffusion.schedule import FlowSchedule
from reelwright.models.foreign import freeze, load_foreign
from reelwright.pretrained.base import (
    FamilyConfig,
    PretrainedDenoiser,
    check_channels,
    check_patches,
    local_settings,
    pad_text,
    t5_of_pipeline,
)
from reelwright.types import Size, Text, UsageError, UserError

EXPERTS = {"high": "transformer", "low": "transformer_2"}  # by the noise they see -> their folders in the pipeline
INDEX = "model_index.json"
UNIPC = "UniPCMultistepScheduler"  # which the published directories name


class WanConfig(FamilyConfig):
    """Wan's transformer. From scratch, `config` names diffusers' arguments (num_layers, num_attention_heads, ...)."""

    type: Literal["wan"] = "wan"
    text_length: PositiveInt = 512  # tokens; shorter texts are padded with zero vectors, which it was trained to see
    expert: Literal["high", "low", "both"] | None = None  # of a pipeline with two networks: which of them train

    diffusers_class: ClassVar[str] = "WanTransformer3DModel"

    @model_validator(mode="after")
    def _check_expert(self) -> WanConfig:
        if self.expert is not None and (self.model is None or self.subfolder != "transformer"):
            raise ValueError(
                f"expert = {self.expert!r}: chooses between the two networks of a pipeline; set model to its directory "
                "or hub id and leave subfolder alone, or leave expert out"
            )
        return self

    @property
    def networks(self) -> dict[str, str]:
        if self.expert is None:
            return super().networks
        return {folder: name for name, folder in EXPERTS.items() if self.expert in (name, "both")}

    @property
    def in_turns(self) -> bool:
        return self.expert == "both"

    def alone(self, folder: str) -> WanConfig:
        """For one of the experts by itself."""
        return self.model_copy(update={"subfolder": folder, "expert": None})

    @classmethod
    def companions(cls, values: Mapping[str, Any], size: Size) -> dict[str, dict[str, Any]]:
        """Shift and sampler are those of the directory's scheduler, of a hub id as published: UniPC, 3, 5 for 5B."""
        model = values.get("model")
        published = 5.0 if "-5b" in str(model).lower() else 3.0
        scheduler = local_settings(model, "scheduler/scheduler_config.json")
        shift = scheduler.get("flow_shift") or scheduler.get("shift") or published
        groups: dict[str, dict[str, Any]] = {
            "objective": {"schedule": "flow", "shift": shift, "prediction": "velocity"},
            "sampling": {"sampler": "unipc", "spacing": "timesteps", "steps": 50, "guidance": 5.0},
        }
        if scheduler.get("_class_name", UNIPC) != UNIPC:
            groups["sampling"] |= {"sampler": "euler", "spacing": "even"}
        if values.get("expert") is not None:
            groups["sampling"] |= {"steps": 40, "guidance": 4.0}
        if model is not None:
            groups["codec"] = {"type": "video_autoencoder", "model": model}
            groups["text"] = t5_of_pipeline(model, length=512)
        return groups

    def warnings(self, objective: ObjectiveConfig) -> tuple[str, ...]:
        if self.expert in (None, "both"):
            return ()
        return (
            f"model.expert = {self.expert}: the other expert is not loaded, and without it there is no video: no "
            "samples are made while this trains; make them with `reelwright generate` from the run",
        )

    def fitting(self, channels: int, text_width: int) -> dict[str, Any]:
        text = {"text_dim": text_width} if text_width > 1 else {}
        return {"in_channels": channels, "out_channels": channels, **text}

    def build(self, channels: int, text_width: int) -> WanDenoiser | WanExperts:
        """UserError where the weights cannot be loaded, UsageError where codec, text or `expert` do not fit."""
        boundary = boundary_ratio(self.model) if self.model is not None and self.subfolder else None
        if self.expert is None and boundary is not None:
            raise UsageError(
                f"model.expert: {self.model} has two networks, one for high and one for low noise; say which of them "
                "trains: high, low or both (both too where nothing is trained)"
            )
        if self.expert is None:
            return WanDenoiser(self.fitted(channels, text_width), channels, text_width)
        if boundary is None:
            raise UsageError(
                f"model.expert = {self.expert}: {self.model} has one network (its {INDEX} names no boundary_ratio); "
                "leave model.expert out"
            )
        return WanExperts(self, boundary, channels, text_width)


def boundary_ratio(model: str) -> float | None:
    """The sigma from which on a pipeline uses the first of its two networks; None where it has one.

    UserError where that is no number between 0 and 1.
    """
    settings = local_settings(model, INDEX)
    if not Path(model).is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        from huggingface_hub import hf_hub_download

        path = load_foreign(lambda: hf_hub_download(model, INDEX), model, "model.model")
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    ratio = settings.get("boundary_ratio")
    if ratio is not None and not (isinstance(ratio, (int, float)) and 0 < ratio < 1):
        raise UserError(
            f"model.model = {model}: boundary_ratio = {ratio!r} in its {INDEX} does not lie between 0 and 1"
        )
    return ratio


class _Wan(PretrainedDenoiser):
    """What one network and two have in common. They predict the velocity noise - x0."""

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

    def __init__(self, config: WanConfig, channels: int, text_width: int, networks: Mapping[str, Any]) -> None:
        settings = next(iter(networks.values())).config
        check_channels(settings)
        super().__init__(config, channels, text_width, settings.in_channels, settings.text_dim)
        self.patch_size, self.text_length = tuple(settings.patch_size), config.text_length
        for name, network in networks.items():
            self.add_module(name, network)

    def check_size(self, latent: Size) -> Size:
        return check_patches(latent, self.patch_size)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        text = pad_text(cond, self.text_length).to(x_t.dtype)  # b l d
        return network(x_t, self.flow_time(t), text, return_dict=False)[0]  # b c f h w


class WanDenoiser(_Wan):
    """One network for all noise: Wan 2.1, and 2.2 5B."""

    def __init__(self, config: WanConfig, channels: int, text_width: int) -> None:
        super().__init__(config, channels, text_width, {"transformer": config.load_network()})

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        return self.predict(self.get_submodule("transformer"), x_t, t, cond)


class WanExperts(_Wan):
    """Two networks that share the time: `transformer` from `boundary` to pure noise, `transformer_2` below it.

    Those that train are parts of this module. One that does not is none: `complete` loads it, frozen, for making
    videos, and neither checkpoints nor adapters nor the hash of an adapter's base know of it.
    """

    def __init__(self, config: WanConfig, ratio: float, channels: int, text_width: int) -> None:
        networks = {folder: config.alone(folder).load_network() for folder in config.networks}
        super().__init__(config, channels, text_width, networks)
        self.config: WanConfig = config
        self.ratio = ratio
        self._beside: dict[str, nn.Module] = {}

    @property
    def experts(self) -> dict[str, nn.Module]:
        """Those that are loaded: 'high', 'low'."""
        loaded = {**dict(self.named_children()), **self._beside}
        return {name: loaded[folder] for name, folder in EXPERTS.items() if folder in loaded}

    @property
    def boundary(self) -> float:
        """The t from which on noise is high, rounded to float32: what networks are told of time.

        UsageError where the schedule is not that of flow matching.
        """
        if not isinstance(self.schedule, FlowSchedule):
            raise UsageError("objective.schedule: the two networks share the time of flow matching; use flow")
        level = torch.tensor(self.ratio / (1 - self.ratio), dtype=torch.float64)  # sigma / alpha
        return self.schedule.time(level).float().item()

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        parts = {"high": (self.boundary, 1.0), "low": (0.0, self.boundary)}
        return tuple(parts[name] for name in self.config.networks.values())

    def by_folder(self) -> dict[str, nn.Module]:
        return dict(self.named_children())

    @property
    def makes_videos(self) -> bool:
        return len(self.experts) == len(EXPERTS)

    def complete(self) -> None:
        for name, folder in EXPERTS.items():
            if name not in self.experts:
                network = self.config.alone(folder).load_network()
                freeze(network)
                self._beside[folder] = network

    def whole(self) -> nn.Module:
        return nn.ModuleDict(self.experts)

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        experts = self.experts
        if len(experts) == 1:  # in training; its times are those of `intervals`
            return self.predict(next(iter(experts.values())), x_t, t, cond)
        high = t.float() >= self.boundary  # b
        if bool(high.all()):
            return self.predict(experts["high"], x_t, t, cond)
        if not bool(high.any()):
            return self.predict(experts["low"], x_t, t, cond)
        parts = [
            (where, self.predict(experts[name], x_t[where], t[where], Text(cond.values[where], cond.mask[where])))
            for name, where in (("high", high), ("low", ~high))
        ]
        out = parts[0][1].new_empty(x_t.shape)  # b c f h w
        for where, part in parts:
            out[where] = part
        return out
