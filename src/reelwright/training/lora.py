"""LoRA (Hu et al. 2021, arXiv 2106.09685) on any network: weight + scale * up @ down, through peft.

What an adapter is when it leaves the network is an `Update` a linear layer, with the scale folded into `up`, so that
no reader has to know alpha, rank or the rule between them.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from reelwright.config import Config
from reelwright.types import UsageError, UserError

ADAPTER = "default"  # the one that is trained
DOWN, UP, MAGNITUDE = (
    f".lora_A.{ADAPTER}.weight",
    f".lora_B.{ADAPTER}.weight",
    f".lora_magnitude_vector.{ADAPTER}.weight",
)


class LoraConfig(Config):
    """Small matrices beside frozen layers are trained instead of the layers."""

    rank: int = Field(default=16, ge=1)
    alpha: float | None = Field(default=None, gt=0)  # what is added is multiplied by alpha / rank; null: alpha = rank
    targets: Literal["preset"] | tuple[str, ...] = (
        "preset"  # ends of layers' names, * for any part; preset: the model's
    )
    rslora: bool = False  # alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv 2312.03732)
    dora: bool = False  # the length of every row of the weight trains too (Liu et al. 2024, arXiv 2402.09353)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of what the small matrices read
    init: Literal["kaiming", "gaussian"] = "kaiming"  # of `down`; `up` starts at zero, so that nothing changes at first

    @model_validator(mode="after")
    def _check(self) -> LoraConfig:
        if self.targets == () or any(not pattern for pattern in self.targets):
            raise ValueError("targets: at least one name of a layer, none of them empty; or leave it at preset")
        return self

    @property
    def scale(self) -> float:
        """What `up @ down` is multiplied by."""
        return (self.alpha or self.rank) / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Update:
    """What is added to a linear layer: `up @ down`. With `magnitude` the rows of the sum are scaled to it (DoRA)."""

    down: Tensor  # rank in
    up: Tensor  # out rank
    magnitude: Tensor | None = None  # out

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Every layer LoRA can adapt, by name; those adapted already too."""
    from peft.tuners.lora import LoraLayer

    layers: dict[str, nn.Linear] = {}
    adapted = None
    for name, module in network.named_modules():  # depth first: what is within a layer follows it
        if adapted is not None and name.startswith(f"{adapted}."):
            continue
        if isinstance(module, LoraLayer):
            adapted = name
            layers[name] = module.get_base_layer()  # pyright: ignore[reportArgumentType]
        elif isinstance(module, nn.Linear):
            layers[name] = module
    return layers


def find_targets(network: nn.Module, patterns: Sequence[str], field: str = "train.lora.targets") -> list[str]:
    """Names of the linear layers a pattern fits: the end of the name from a dot on, or all of it.

    UsageError for a pattern that fits none lists what there is.
    """
    names = list(linear_layers(network))
    found: set[str] = set()
    for pattern in patterns:
        fitting = [name for name in names if fnmatchcase(f".{name}", f"*.{pattern}")]
        if not fitting:
            raise UsageError(
                f"{field}: '{pattern}' fits no linear layer of the model; it has {', '.join(_kinds(names))}"
            )
        found.update(fitting)
    return [name for name in names if name in found]


def _kinds(names: Collection[str]) -> list[str]:
    """The names with numbers of blocks left out, each once, and how many there are."""
    counts: dict[str, int] = {}
    for name in names:
        kind = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        counts[kind] = counts.get(kind, 0) + 1
    return [f"{kind} ({count})" for kind, count in counts.items()]


def quantize(network: nn.Module, kind: Literal["fp8", "int8"], beside: tuple[str, ...] = ()) -> None:
    """Keep the weights of linear layers in 8 bits, all but those below `beside`; their products stay as precise.

    UsageError where torchao is not installed.
    """
    try:
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Float8WeightOnlyConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError:
        raise UsageError(
            f"model.quantize = {kind}: needs torchao, which is not installed: pip install 'reelwright[quantize]'; or "
            "leave it null"
        ) from None
    config = Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()
    quantize_(network, config, lambda module, name: isinstance(module, nn.Linear) and not f"{name}.".startswith(beside))


def add_lora(network: nn.Module, config: LoraConfig, preset: Sequence[str]) -> list[str]:
    """Freeze `network` and put float32 adapters beside the layers `config.targets` names, whose names are returned.

    Random numbers come from torch's global generator. UsageError where no layer fits.
    """
    patterns = preset if config.targets == "preset" else config.targets
    if not patterns:
        raise UsageError("train.lora.targets: this model has no preset; name its layers")
    targets = find_targets(network, patterns)
    network.requires_grad_(False)
    _inject(
        network, targets, ADAPTER, config.rank, config.alpha or config.rank, use_rslora=config.rslora,
        use_dora=config.dora, lora_dropout=config.dropout,
        init_lora_weights="gaussian" if config.init == "gaussian" else True,
    )  # fmt: skip
    made = [name for name, _ in _adapted(network, ADAPTER)]
    assert made == targets and targets, f"peft adapted {len(made)} layers, not {len(targets)}"
    return targets


def add_updates(network: nn.Module, updates: Mapping[str, Update], adapter: str, scale: float = 1.0) -> None:
    """Put a finished adapter beside the layers it names, in addition to what is there. Nothing of it trains.

    UserError where it was made for other layers, or two would scale the rows of one layer (DoRA): each is made for the
    weights alone, and they do not add up.
    """
    layers = linear_layers(network)
    magnitudes = {update.magnitude is not None for update in updates.values()}
    if len(magnitudes) > 1:
        raise UserError("the LoRA scales the rows of some layers (DoRA) and not of others, which cannot be loaded")
    for name, update in updates.items():
        shape = (layers[name].out_features, layers[name].in_features)
        if (update.up.shape[0], update.down.shape[1]) != shape or update.up.shape[1] != update.rank:
            raise UserError(
                f"the LoRA was made for another model: {name} is {shape[0]} x {shape[1]}, but its matrices are "
                f"{list(update.up.shape)} and {list(update.down.shape)}"
            )
    scaled = [name for name, layer in _layers(network) if name in updates and len(layer.lora_magnitude_vector)]
    if scaled and magnitudes == {True}:
        raise UserError(
            f"two LoRAs scale the rows of {scaled[0]} (DoRA), and only one can: leave one of them out, or export a "
            "model with it (--format diffusers) and add the other to that"
        )
    rank = max(update.rank for update in updates.values())  # smaller ones are filled up with zeros
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    _inject(network, list(updates), adapter, rank, rank, use_dora=magnitudes == {True})
    with torch.no_grad():
        for name, layer in _adapted(network, adapter):
            update, missing = updates[name], rank - updates[name].rank
            layer.lora_A[adapter].weight.copy_(nn.functional.pad(update.down.float(), (0, 0, 0, missing)))
            layer.lora_B[adapter].weight.copy_(nn.functional.pad(scale * update.up.float(), (0, missing)))
            if update.magnitude is not None:
                layer.lora_magnitude_vector[adapter].weight.copy_(update.magnitude.float())
    every = dict.fromkeys(key for _, layer in _layers(network) for key in layer.lora_A)
    scaling = {key for _, layer in _layers(network) for key in layer.lora_magnitude_vector}
    for _, layer in _layers(network):  # peft scales what the adapters before it have added
        layer.set_adapter(sorted(every, key=lambda key: key not in scaling))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trainable)


def _inject(network: nn.Module, targets: Sequence[str], adapter: str, rank: int, alpha: float, **settings: Any) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    exactly = "|".join(re.escape(name) for name in targets)  # in full: peft takes ends of names otherwise
    made = PeftConfig(r=rank, lora_alpha=alpha, target_modules=exactly, **settings)  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several at once are meant
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")  # 8-bit weights are never merged into
        inject_adapter_in_model(made, network, adapter_name=adapter)
    for _, layer in _adapted(network, adapter):
        for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
            if adapter in part:
                part[adapter].float()  # peft gives them the dtype of the layer


def _layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _adapted(network: nn.Module, adapter: str) -> Iterator[tuple[str, Any]]:
    for name, layer in _layers(network):
        if adapter in layer.lora_A:
            yield name, layer


def merge(network: nn.Module) -> None:
    """Add every adapter to the weights it stands beside and take it away."""
    for name, layer in list(_layers(network)):
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config


def updates_of(tensors: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Update]:
    """The adapter among named weights of a network, as `add_lora` named them."""
    updates = {}
    for name, down in tensors.items():
        if not name.endswith(DOWN):
            continue
        layer = name.removesuffix(DOWN)
        up = tensors.get(layer + UP)
        if up is None:
            raise UserError(f"the adapter has no '{layer + UP}'; use another checkpoint")
        updates[layer] = Update(down.float(), config.scale * up.float(), tensors.get(layer + MAGNITUDE))
    return updates
