"""A LoRA run -> one file in the naming other programs read; a family's network -> where diffusers reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from reelwright.durable import sync
from reelwright.loading import StoredModel, local_recipe
from reelwright.models.exported import METADATA_KEY, NETWORK_CONFIG, NETWORK_WEIGHTS, NETWORKS, Contents
from reelwright.pretrained.base import FamilyConfig
from reelwright.pretrained.lora_keys import comfyui_tensors, diffusers_tensors, kohya_tensors
from reelwright.training.lora import LoraConfig, updates_of
from reelwright.types import UsageError, UserError


def check_lora(stored: StoredModel, form: str) -> LoraConfig:
    """UsageError where a model has no adapters of its own."""
    config = stored.recipe.train.lora
    if config is None:
        raise UsageError(
            f"--format {form}: writes a LoRA, and '{stored.path}' has none: all of its weights were trained; "
            "use --format diffusers or safetensors"
        )
    return config


def lora_files(stored: StoredModel, target: Path) -> dict[Path, str]:
    """The files of a model's adapters, each with the network they are of; '' where there are no experts.

    Readers of LoRAs know of one network, so that two make two files: lora-high.safetensors and lora-low.safetensors.
    """
    names: Mapping[str, str] = getattr(stored.recipe.model, "networks", {})
    experts = {network: name for network, name in names.items() if name}
    if len(experts) < 2:
        return {target: next(iter(experts), "")}
    return {target.with_stem(f"{target.stem}-{name}"): network for network, name in experts.items()}


def write_lora(stored: StoredModel, path: Path, form: str, network: str = "") -> None:
    """The adapters as one safetensors file, alpha folded in. UsageError where there are none, or no names for them.

    Those of one `network` alone, where it is given, and as if there were no other: `WanPipeline.load_lora_weights`
    wants the same names for either, and the word `load_into_transformer_2` for the second.
    """
    config, model = check_lora(stored, form), stored.recipe.model
    updates = updates_of(stored.tensors["denoiser"], config)
    if network:
        own = f"{network}."
        updates = {f"transformer.{n.removeprefix(own)}": u for n, u in updates.items() if n.startswith(own)}
    if not updates:
        raise UserError(f"{stored.sources['denoiser']}: holds no adapter; use another checkpoint")
    if form != "lora":
        named = comfyui_tensors if form == "comfyui" else kohya_tensors
        tensors = named(updates, model.type, _skeleton(stored, next(iter(updates)).partition(".")[0]))
    else:
        tensors = diffusers_tensors(updates)
    if form == "lora":  # what trained beside the adapters and no base has: a projection of the text
        tensors |= {name: t for name, t in stored.tensors["denoiser"].items() if ".lora_" not in name}
    origin = stored.origin
    facts = {
        "lora": form, "model": model.type, "base": getattr(model, "model", None), "base_sha256": origin.base_sha256,
        "weights_sha256": origin.weights_sha256, "step": origin.step, "rank": config.rank,
        **({"expert": getattr(model, "networks")[network]} if network else {}),  # noqa: B009
    }  # fmt: skip
    path.touch()
    mode = path.stat().st_mode
    plain = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={METADATA_KEY: json.dumps(facts)})
    path.chmod(mode)  # safetensors leaves its files to their owner alone
    sync(path)


def _skeleton(stored: StoredModel, part: str) -> nn.Module:
    """The network without weights, for the sizes of its layers."""
    model: Any = stored.recipe.model
    if not isinstance(model, FamilyConfig):
        return nn.Module()
    return nn.ModuleDict({part: model.skeleton()})


def put_network_apart(stored: StoredModel, contents: Contents) -> None:
    """The network of a pretrained family where and as diffusers reads it: `Class.from_pretrained(OUT, "unet")`.

    Changes `contents`. A model that holds adapters, or was trained from scratch, stays as it is.
    """
    model: Any = stored.recipe.model
    held = contents.tensors.get("denoiser/model.safetensors", {})
    network = next((name for name in NETWORKS if any(key.startswith(f"{name}.") for key in held)), None)
    if not isinstance(model, FamilyConfig) or model.model is None or network is None or stored.recipe.train.lora:
        return
    if any(model.networks.values()):  # an expert: the other stays where it is, and so do the facts of both
        return
    apart = {key.removeprefix(f"{network}."): held[key] for key in held if key.startswith(f"{network}.")}
    beside = {key: held[key] for key in held if not key.startswith(f"{network}.")}
    skeleton = local_recipe(stored.recipe, stored.folders).model.skeleton()  # pyright: ignore[reportAttributeAccessIssue]
    settings = {key: value for key, value in json.loads(skeleton.to_json_string()).items() if value is not None}
    settings.pop("_name_or_path", None)
    contents.texts[f"{network}/{NETWORK_CONFIG}"] = json.dumps(settings, indent=2)
    del contents.tensors["denoiser/model.safetensors"]
    contents.tensors[f"{network}/{NETWORK_WEIGHTS}"] = apart
    if beside:
        contents.tensors["denoiser/model.safetensors"] = beside
