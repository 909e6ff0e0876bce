"""What every family shares: a denoiser of diffusers, from its own directory or from scratch, behind our contract.

    x_t `b c f h w`, t `b` in [0, 1], text -> prediction of x_t's shape

A family's file says how its network wants time, text and layout; nothing outside this folder knows a family's name.
Weights are safetensors only, made on the meta device first, and the class a directory names must be the family's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reelwright.config import Config
from reelwright.diffusion.objective import ObjectiveConfig
from reelwright.diffusion.schedule import FlowSchedule, Schedule
from reelwright.models.foreign import PICKLES, Precision, load_foreign
from reelwright.models.layers import Checkpointing, recomputed
from reelwright.pretrained.scratch import build_network
from reelwright.types import Compression, Size, Text, UsageError, UserError, nearest_multiples


class FamilyConfig(Config):
    """A network of a family: the weights of `model`, or random ones of the architecture `config` describes."""

    model: str | None = None  # a diffusers directory or a hub id; null: from scratch
    subfolder: str = "transformer"  # "" where `model` is the network's own directory
    config: dict[str, Any] = Field(default_factory=dict)  # from scratch: arguments of diffusers' class; {}: its own
    dtype: Precision = "float32"  # of the weights; training them wants float32, LoRA can do with less
    quantize: Literal["fp8", "int8"] | None = None  # 8-bit weights beside LoRA, by torchao; null: as `dtype` says
    gradient_checkpointing: Checkpointing = False

    diffusers_class: ClassVar[str]

    @property
    def fits_pipeline(self) -> bool:
        """Whether the family's pipeline of diffusers runs what was trained, put in the network's place."""
        return True

    @property
    def pictures(self) -> dict[str, Any] | None:
        """What `prepare` keeps of every window's first frame depends on; None of models that know no pictures."""
        return None

    @property
    def networks(self) -> dict[str, str]:
        """What trains, by its folder in the pipeline; each has a name where there are experts, '' where it is alone."""
        return {self.subfolder: ""}

    @property
    def in_turns(self) -> bool:
        """Whether a step trains one of several networks, so that the others have no gradient."""
        return False

    @classmethod
    def companions(cls, values: Mapping[str, Any], size: Size) -> dict[str, dict[str, Any]]:
        """What a recipe's other groups are for this family where they do not say themselves: codec, text, objective ...

        `values` is the recipe's `model` group as it is written, `size` that of its videos (frames, height, width in
        pixels). Codec and text come from the same directory; a network from scratch (`model` null) leaves them open.
        """
        return {}

    @classmethod
    def check_place(cls, values: Mapping[str, Any]) -> None:
        """ValueError where a recipe's `model` group names a directory of another family, before anything is loaded."""
        subfolder = values.get("subfolder", cls.model_fields["subfolder"].default)
        named = local_settings(values.get("model"), str(Path(subfolder) / "config.json")).get("_class_name")
        if named not in (None, cls.diffusers_class):
            raise ValueError(_other_class(values["model"], named, (cls.diffusers_class,), "model.model"))

    def check_parts(self, codec: str, text: str) -> None:
        """ValueError where this model cannot work with codec and text of these types."""

    def warnings(self, objective: ObjectiveConfig) -> tuple[str, ...]:
        """What whoever trains with this objective should know."""
        return ()

    def fitting(self, channels: int, text_width: int) -> dict[str, Any]:
        """Arguments of diffusers' class that have to agree with codec and text; a text_width of 1 is not known yet."""
        return {}

    def fitted(self, channels: int, text_width: int) -> Self:
        """From scratch with what `fitting` says where `config` is silent."""
        if self.model is not None:
            return self
        return self.model_copy(update={"config": {**self.fitting(channels, text_width), **self.config}})

    def load_network(self) -> Any:
        """The network of diffusers; without weights where torch's default device is meta, for its shapes and rules.

        UserError where it cannot be loaded, UsageError where `config` does not fit.
        """
        if self.model is not None and self.config:
            raise UsageError("model.config describes a network from scratch: leave it empty where model.model is set")
        if torch.get_default_device().type == "meta":
            return self.skeleton()
        network = self._from_scratch() if self.model is None else self._from_directory(self.model)
        if self.gradient_checkpointing:
            recompute_blocks(network, self.gradient_checkpointing)
        return network

    def skeleton(self) -> Any:
        """The network without weights, on the meta device."""
        with torch.device("meta"):
            if self.model is None:
                return self._from_scratch()
            model, subfolder = self.model, self.subfolder or None
            check_class(model, self.subfolder, (self.diffusers_class,), "model.model")
            return load_foreign(
                lambda: self.network_class.from_config(self.network_class.load_config(model, subfolder=subfolder)),
                model, "model.model", self.subfolder,
            )  # fmt: skip

    @property
    def network_class(self) -> Any:
        """diffusers' own."""
        import diffusers

        return getattr(diffusers, self.diffusers_class)

    def _from_scratch(self) -> Any:
        network = build_network(self.network_class, self.config)
        return network if self.dtype == "float32" else network.to(getattr(torch, self.dtype))

    def _from_directory(self, model: str) -> Any:
        check_class(model, self.subfolder, (self.diffusers_class,), "model.model")
        return load_foreign(
            lambda: self.network_class.from_pretrained(
                model, subfolder=self.subfolder or None, use_safetensors=True, low_cpu_mem_usage=True,
                torch_dtype=getattr(torch, self.dtype),
            ),
            model, "model.model", self.subfolder,
        )  # fmt: skip


def recompute_blocks(network: Any, checkpointing: Checkpointing) -> None:
    """Let a network of diffusers keep no activations of its blocks, or of every n-th in each of its lists of them."""
    for module in network.modules():
        members: Any = module if isinstance(module, nn.ModuleList) else ()
        for index, block in enumerate(members):
            block.recomputed = recomputed(checkpointing, index)

    def run(block: Any, *arguments: Any) -> Any:
        """A block that stands alone, as a UNet's middle one does, is the first of its kind."""
        if getattr(block, "recomputed", True):
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    network.enable_gradient_checkpointing(run)


class PretrainedDenoiser(nn.Module):
    """A network of a family as the project calls it. Subclasses write `forward`, and what else differs.

    `schedule` is the objective's: it turns t into what the network was trained to see as time. `compression` is the
    codec's and `fps` that of the videos: what a network needs that is told of positions in seconds and pixels.
    """

    lora_targets: tuple[str, ...] = ()  # module names that LoRA adapts where the recipe does not say
    schedule: Schedule = FlowSchedule()
    compression: Compression = Compression(1, 1, 1)
    fps: float = 1.0
    lora_also_trains: tuple[str, ...] = ()  # layers that published weights lack, so that training has to make them
    takes_image: bool = False  # videos start from a picture, see `condition_on`
    generating: bool = False  # set by `generating`: what a distilled network is told of guidance differs

    def __init__(self, config: FamilyConfig, channels: int, text_width: int, in_channels: int, text_dim: int) -> None:
        super().__init__()
        if channels != in_channels:
            raise UsageError(
                f"model.type = {self._type(config)}: takes {in_channels} latent channels, but the codec makes "
                f"{channels}; {self._way(config, 'codec', 'channels')}"
            )
        if text_width not in (1, text_dim):  # 1: only sizes are asked for
            raise UsageError(
                f"model.type = {self._type(config)}: takes text of width {text_dim}, but text.type makes "
                f"{text_width}; {self._way(config, 'text encoder', 'width of text')}"
            )
        self.config, self.channels, self.text_width = config, channels, text_dim
        if config.dtype != "float32":
            self.register_forward_pre_hook(_in_dtype_of_weights)

    @staticmethod
    def _type(config: FamilyConfig) -> str:
        return getattr(config, "type", "?")

    @staticmethod
    def _way(config: FamilyConfig, part: str, number: str) -> str:
        if config.model is None:
            return f"leave the {number} out of model.config, and it is the {part}'s"
        return f"use the {part} the model was made with, or another model"

    def flow_time(self, t: Tensor) -> Tensor:
        """1000 sigma(t), `b` in t's dtype: what flow models call their timestep."""
        return (1000 * self.schedule.sigma(t)).to(t.dtype)

    def table_index(self, t: Tensor) -> Tensor:
        """The entry of a DDPM table that stands at t, `b` int64 from 0: what those models call their timestep."""
        return (t.double() * (self.schedule.grid or 1000)).round().long().clamp(min=1) - 1

    def check_size(self, latent: Size) -> Size:
        raise NotImplementedError

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """[low, high) of the times of each network that trains, where several share them; () where one has them all."""
        return ()

    @property
    def makes_videos(self) -> bool:
        """Whether all is there that videos take; if not, `complete` loads it."""
        return True

    def by_folder(self) -> dict[str, nn.Module]:
        """The networks of diffusers that train, by their folders in the pipeline."""
        names = dict(self.named_children())
        return {self.config.subfolder: names["unet"] if "unet" in names else names["transformer"]}

    def complete(self) -> None:
        """Load what takes no part in training and is needed to make videos."""

    def whole(self) -> nn.Module:
        """All that makes videos, what does not train included."""
        return self

    def condition_on(self, picture: Tensor, codec: Any, encoder: Any, size: Size, noise: Tensor) -> tuple[Text, Text]:
        """What stands for a picture uint8 `h w 3` in place of text, and for none; of models that take one."""
        raise NotImplementedError

    def forward(self, x_t: Tensor, t: Tensor, cond: Text) -> Tensor:
        raise NotImplementedError


def _in_dtype_of_weights(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """x_t as the weights are, where autocast does not see to it."""
    x_t, *others = args
    if torch.is_autocast_enabled(x_t.device.type):
        return args
    return (x_t.to(getattr(torch, module.config.dtype)), *others)


@contextmanager
def generating(denoiser: nn.Module) -> Iterator[None]:
    """While videos are made, not learned from."""
    if not isinstance(denoiser, PretrainedDenoiser):
        yield
        return
    denoiser.generating = True
    try:
        yield
    finally:
        denoiser.generating = False


def check_channels(settings: Any) -> None:
    """UsageError where a network does not make what it takes."""
    takes, makes = settings.in_channels, settings.out_channels or settings.in_channels
    if takes != makes:
        raise UsageError(
            f"model: takes {takes} channels and makes {makes}, as image-to-video networks do; use a text-to-video one, "
            "or in model.config as many out_channels as in_channels"
        )


def check_patches(latent: Size, patch: tuple[int, int, int]) -> Size:
    """The grid of patches of latents. ValueError names the axis that does not divide and the nearest that do."""
    for axis, extent, side in zip(("frames", "height", "width"), latent.tuple, patch, strict=True):
        if extent % side:
            ways = nearest_multiples(extent, side)
            raise ValueError(
                f"{axis} = {extent} latents: the model takes them in patches of {side}; use {ways} latents"
            )
    return Size(*(extent // side for extent, side in zip(latent.tuple, patch, strict=True)))


def pad_text(text: Text, length: int) -> Tensor:
    """Embeddings `b l d` with zeros where the text is padding, up to `length` tokens: `b length d`."""
    values = text.values * text.mask[:, :, None].to(text.values.dtype)
    if values.shape[1] > length:
        raise ValueError(f"a text of {values.shape[1]} tokens, but the model takes {length}: lower text.length")
    return nn.functional.pad(values, (0, 0, 0, length - values.shape[1]))


def local_settings(model: str | None, name: str) -> dict[str, Any]:
    """A configuration file of a pipeline's directory; empty where `model` is a hub id or the file cannot be read."""
    try:
        values = json.loads((Path(model) / name).read_text(encoding="utf-8")) if isinstance(model, str) else {}
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def t5_of_pipeline(model: str, length: int, **settings: Any) -> dict[str, Any]:
    """The text group of a recipe for a pipeline that encodes text with T5 or umT5."""
    folders = {"subfolder": "text_encoder", "tokenizer_subfolder": "tokenizer"}
    return {"type": "t5", "model": model, **folders, "length": length, **settings}


def check_class(model: str, subfolder: str, allowed: tuple[str, ...], field: str) -> str:
    """The class that config.json names, without loading any weights.

    UserError where it is none of `allowed`, the file is not there, or shards of the weights are missing.
    """
    folder = Path(model) / subfolder
    if folder.is_dir():
        path = folder / "config.json"
        _check_weights(folder)
    else:
        path = Path(_from_hub(model, subfolder, field))
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("_class_name")
    except FileNotFoundError:
        raise UserError(f"{field} = {model}: {path} is missing; give a directory as diffusers saves it") from None
    except (ValueError, AttributeError):
        raise UserError(f"{field} = {model}: {path} is not the JSON that diffusers writes; get it again") from None
    if named not in allowed:
        raise UserError(_other_class(model, named, allowed, field))
    return named


def _other_class(model: str, named: Any, allowed: tuple[str, ...], field: str) -> str:
    types = [str(f.model_fields["type"].default) for f in FamilyConfig.__subclasses__() if f.diffusers_class == named]
    way = f"use model.type = {types[0]}" if types else "choose the type that fits the model"
    return (
        f"{field} = {model}: its config.json names the class {named!r}, but only {' or '.join(allowed)} can be "
        f"used here; {way}"
    )


def _from_hub(model: str, subfolder: str, field: str) -> str:
    from huggingface_hub import hf_hub_download

    return load_foreign(
        lambda: hf_hub_download(model, "config.json", subfolder=subfolder or None), model, field, subfolder
    )


def _check_weights(folder: Path) -> None:
    """UserError where there are no weights, or an index of sharded ones names files that are not there."""
    if not any(any(folder.glob(kind)) for kind in ("*.safetensors*", *PICKLES)):  # pickles have a message of their own
        raise UserError(f"{folder}: holds no weights (*.safetensors); download the model again")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            named = {Path(str(name)).name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index}: not an index of sharded weights ({error}); get it again") from None
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise UserError(
                f"{folder}: {len(missing)} of {len(named)} weight files that {index.name} names are missing "
                f"({', '.join(missing[:3])}); download the model again"
            )
