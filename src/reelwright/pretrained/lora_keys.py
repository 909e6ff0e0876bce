"""What LoRA files call the layers of a model: diffusers' names, ComfyUI's and kohya's -> ours, and back.

    diffusers, peft    transformer.blocks.0.attn1.to_q.lora_A.weight
    ComfyUI            diffusion_model.blocks.0.self_attn.q.lora_A.weight
    kohya              lora_unet_blocks_0_self_attn_q.lora_down.weight, and .alpha

ComfyUI's are the layers of the models as they were first published. Sources: Comfy-Org/ComfyUI at commit
a125cd84b054a57729b5eecab930ca9408719832, comfy/lora.py (`model_lora_keys_unet`) and comfy/ldm/{wan,hunyuan_video,
lightricks}/model.py. CogVideoX has no model there, and SVD's temporal layers have no names in that map.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from reelwright.pretrained.lora_scale import DeclaredScale
from reelwright.training.lora import Update, linear_layers
from reelwright.types import UsageError, UserError

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_WAN = {
    **{f"blocks.#.{theirs}.{o}": (f"blocks.#.{ours}.{c}",)
       for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2")) for o, c in _ATTENTION.items()},
    "blocks.#.cross_attn.k_img": ("blocks.#.attn2.add_k_proj",),
    "blocks.#.cross_attn.v_img": ("blocks.#.attn2.add_v_proj",),
    "blocks.#.ffn.0": ("blocks.#.ffn.net.0.proj",),
    "blocks.#.ffn.2": ("blocks.#.ffn.net.2",),
    "time_projection.1": ("condition_embedder.time_proj",),
    "text_embedding.0": ("condition_embedder.text_embedder.linear_1",),
    "text_embedding.2": ("condition_embedder.text_embedder.linear_2",),
    "time_embedding.0": ("condition_embedder.time_embedder.linear_1",),
    "time_embedding.2": ("condition_embedder.time_embedder.linear_2",),
    "head.head": ("proj_out",),
}  # fmt: skip
_REFINER, _REFINED = "txt_in.individual_token_refiner.blocks.#", "context_embedder.token_refiner.refiner_blocks.#"
_DOUBLE, _SINGLE = "transformer_blocks.#", "single_transformer_blocks.#"
_HUNYUAN = {
    "double_blocks.#.img_attn_qkv": tuple(f"{_DOUBLE}.attn.to_{c}" for c in "qkv"),
    "double_blocks.#.img_attn_proj": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.#.img_mlp.fc1": (f"{_DOUBLE}.ff.net.0.proj",),
    "double_blocks.#.img_mlp.fc2": (f"{_DOUBLE}.ff.net.2",),
    "double_blocks.#.img_mod.linear": (f"{_DOUBLE}.norm1.linear",),
    "double_blocks.#.txt_attn_qkv": tuple(f"{_DOUBLE}.attn.add_{c}_proj" for c in "qkv"),
    "double_blocks.#.txt_attn_proj": (f"{_DOUBLE}.attn.to_add_out",),
    "double_blocks.#.txt_mlp.fc1": (f"{_DOUBLE}.ff_context.net.0.proj",),
    "double_blocks.#.txt_mlp.fc2": (f"{_DOUBLE}.ff_context.net.2",),
    "double_blocks.#.txt_mod.linear": (f"{_DOUBLE}.norm1_context.linear",),
    "single_blocks.#.linear1": (*(f"{_SINGLE}.attn.to_{c}" for c in "qkv"), f"{_SINGLE}.proj_mlp"),
    "single_blocks.#.linear2": (f"{_SINGLE}.proj_out",),
    "single_blocks.#.modulation.linear": (f"{_SINGLE}.norm.linear",),
    f"{_REFINER}.self_attn_qkv": tuple(f"{_REFINED}.attn.to_{c}" for c in "qkv"),
    f"{_REFINER}.self_attn_proj": (f"{_REFINED}.attn.to_out.0",),
    f"{_REFINER}.mlp.fc1": (f"{_REFINED}.ff.net.0.proj",),
    f"{_REFINER}.mlp.fc2": (f"{_REFINED}.ff.net.2",),
}
# Published with q, k and v apart; in ComfyUI its class is that of 1.0 (comfy/model_base.py at 094c74c1): fused.
_HUNYUAN15 = {
    f"double_blocks.#.{theirs}_attn_{c}": (f"{_DOUBLE}.attn.{ours.format(c)}",)
    for theirs, ours in (("img", "to_{}"), ("txt", "add_{}_proj")) for c in "qkv"
}  # fmt: skip
_LTX_LAYERS = [f"{attn}.{c}" for attn in ("attn1", "attn2") for c in _ATTENTION.values()] + [
    "ff.net.0.proj",
    "ff.net.2",
]
_LTX = {f"transformer_blocks.#.{layer}": (f"transformer_blocks.#.{layer}",) for layer in _LTX_LAYERS}


@dataclass(frozen=True)
class Names:
    """ComfyUI's names of a family's layers: `#` stands for the number of a block, several layers for a fused one."""

    layers: Mapping[str, tuple[str, ...]]  # published name -> the network's layers, one above the other in its rows
    prefix: str
    aliases: tuple[tuple[str, str], ...] = ()  # (as ComfyUI's own class has it, as published)
    read: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # published names that ComfyUI does not look for


_HUNYUAN_NAMES = Names(
    _HUNYUAN, "transformer.",
    (("_attn.qkv", "_attn_qkv"), ("_attn.proj", "_attn_proj"), ("mlp.0", "mlp.fc1"), ("mlp.2", "mlp.fc2"),
     ("_mod.lin", "_mod.linear"), ("modulation.lin", "modulation.linear")),
)  # fmt: skip
COMFYUI: dict[str, Names] = {
    "wan": Names(_WAN, "diffusion_model."),
    "hunyuan": _HUNYUAN_NAMES,
    "hunyuan15": replace(_HUNYUAN_NAMES, read=_HUNYUAN15),
    "ltx": Names(_LTX, "diffusion_model."),
}
NOT_IN_COMFYUI = {
    "cogvideox": "ComfyUI itself has no CogVideoX model, so there are no names it would look for",
    "svd": "ComfyUI maps the names of Stable Diffusion's spatial layers only, not those of SVD's temporal ones",
}
KOHYA = ("wan", "hunyuan")  # what kohya-ss/musubi-tuner trains of these, by the published names of the layers

_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "unet.")
_FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")
_ROLES = {
    "down": (".lora_A.default.weight", ".lora_A.weight", ".lora_down.weight", ".lora.down.weight", "_lora.down.weight"),
    "up": (".lora_B.default.weight", ".lora_B.weight", ".lora_up.weight", ".lora.up.weight", "_lora.up.weight"),
    "magnitude": (".lora_magnitude_vector.default.weight", ".lora_magnitude_vector.weight", ".lora_magnitude_vector",
                  ".dora_scale"),
    "alpha": (".alpha",),
}  # fmt: skip


def diffusers_tensors(updates: Mapping[str, Update]) -> dict[str, Tensor]:
    """Under the names diffusers' `load_lora_weights` takes, alpha = rank understood."""
    tensors = {}
    for name, update in updates.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = update.down, update.up
        if update.magnitude is not None:
            tensors[f"{name}.lora_magnitude_vector"] = update.magnitude
    return tensors


def kohya_tensors(updates: Mapping[str, Update], family: str, network: nn.Module) -> dict[str, Tensor]:
    """Under kohya's names: the published layers, flat, with alpha = rank. UsageError as of `comfyui_tensors`."""
    if family not in KOHYA:
        raise UsageError(
            f"--format kohya: its trainer, musubi-tuner, has no names for this model, only for {' and '.join(KOHYA)}; "
            "use --format lora or diffusers"
        )
    tensors = {}
    for key, tensor in comfyui_tensors(updates, family, network, "kohya").items():
        layer, half = key.removeprefix(COMFYUI[family].prefix).removesuffix(".weight").rsplit(".lora_", 1)
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{name}.lora_{'down' if half == 'A' else 'up'}.weight"] = tensor
        if half == "A":
            tensors[f"{name}.alpha"] = torch.tensor(float(len(tensor)))
    return tensors


def comfyui_tensors(
    updates: Mapping[str, Update], family: str, network: nn.Module, form: str = "comfyui"
) -> dict[str, Tensor]:
    """Under ComfyUI's names. UsageError where it has none for the model or a layer.

    Layers that are one there become one: their `down` lie above one another and `up` has zeros between them, so that
    the rank grows with their number.
    """
    if family not in COMFYUI:
        reason = NOT_IN_COMFYUI.get(family, "ComfyUI knows no model of this architecture")
        raise UsageError(f"--format {form}: {reason}; use --format lora or diffusers")
    if any(update.magnitude is not None for update in updates.values()):
        raise UsageError(f"--format {form}: not for DoRA (train.lora.dora); use --format lora, or diffusers (merged)")
    names, layers = COMFYUI[family], linear_layers(network)
    left, tensors = dict(updates), {}
    for theirs, ours in _fused(names.layers, layers).items():
        if not any(part in updates for part in ours):
            continue
        parts = [(left.pop(part, None), layers[part].out_features) for part in ours]
        down, up = _join(parts)
        tensors[f"{names.prefix}{theirs}.lora_A.weight"], tensors[f"{names.prefix}{theirs}.lora_B.weight"] = down, up
    if left:
        raise UsageError(
            f"--format {form}: ComfyUI has no name for {len(left)} of {len(updates)} layers "
            f"({', '.join(list(left)[:3])}); "
            "use --format lora or diffusers, or train other train.lora.targets"
        )
    return tensors


def _fused(names: Mapping[str, tuple[str, ...]], layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Published name -> the layers of this network that it stands for."""
    present = {_bare(name): name for name in layers}
    found: dict[str, tuple[str, ...]] = {}
    for theirs, ours in names.items():
        pattern = re.compile(re.escape(ours[0]).replace(r"\#", r"(\d+)"))
        for bare in present:
            match = pattern.fullmatch(bare)
            if match is None:
                continue
            number = match[1] if match.groups() else ""
            parts = [part.replace("#", number) for part in ours]
            if all(part in present for part in parts):
                found[theirs.replace("#", number)] = tuple(present[part] for part in parts)
    return found


def _bare(name: str) -> str:
    """A layer's name within the network of diffusers: our wrapper's own name for that network left out."""
    for prefix in ("transformer.", "unet."):
        name = name.removeprefix(prefix)
    return name


def _join(parts: list[tuple[Update | None, int]]) -> tuple[Tensor, Tensor]:
    """(update or None, rows) of layers above one another -> down, up of all of them."""
    there = [update for update, _ in parts if update is not None]
    if all(torch.equal(update.down, there[0].down) for update in there):
        up = [update.up if update is not None else there[0].up.new_zeros(rows, there[0].rank) for update, rows in parts]
        return there[0].down, torch.cat(up)
    down, rank, before = torch.cat([update.down for update in there]), sum(update.rank for update in there), 0
    rows_of_up = []
    for update, rows in parts:
        block = there[0].up.new_zeros(rows, rank)
        if update is not None:
            block[:, before : before + update.rank] = update.up
            before += update.rank
        rows_of_up.append(block)
    return down, torch.cat(rows_of_up)


def _split(update: Update, rows: list[int]) -> list[Update | None]:
    """Inverse of `_join`: what concerns each layer; None where it is all zeros."""
    parts: list[Update | None] = []
    magnitudes = update.magnitude.split(rows) if update.magnitude is not None else [None] * len(rows)
    for up, magnitude in zip(update.up.split(rows), magnitudes, strict=True):
        used = up.any(dim=0)
        parts.append(Update(update.down[used], up[:, used], magnitude) if used.any() or magnitude is not None else None)
    return parts


# -- reading


def read_updates(
    tensors: Mapping[str, Tensor],
    family: str,
    network: nn.Module,
    source: str,
    declared: DeclaredScale | None = None,
) -> dict[str, Update]:
    """A LoRA's file in any of the three namings -> what it adds to which layer of `network`.

    Layers are scaled by their `alpha`, those without one as `declared`, else by 1.

    UserError with the counts where any of its keys belongs to no layer.
    """
    layers = linear_layers(network)
    places = _places(family, layers)
    flat = {name.replace(".", "_"): found for name, found in places.items()}
    found: dict[tuple[str, ...], dict[str, Tensor]] = {}
    strange = []
    for key, tensor in tensors.items():
        raw, role = _role(key)
        place = _resolve(raw, places, flat) if role else None
        if place is None or role in found.get(place, {}):
            strange.append(key)
        else:
            found.setdefault(place, {})[role] = tensor
    if strange or not found:
        raise UserError(
            f"{source}: {len(tensors) - len(strange)} of its {len(tensors)} tensors belong to layers of this model, "
            f"{len(strange)} do not ({', '.join(strange[:3])}{', ...' if len(strange) > 3 else ''}); "
            "it is not a LoRA, or one for another model"
        )
    updates: dict[str, Update] = {}
    for place, group in found.items():
        if "down" not in group or "up" not in group:
            raise UserError(f"{source}: of {place[0]} it has {' and '.join(group)} alone; it is not whole")
        if group["down"].ndim < 2 or not len(group["down"]):
            raise UserError(f"{source}: the matrices of {place[0]} are empty, or none; save the LoRA again")
        updates |= _updates_of_place(place, group, layers, source, declared)
    if not updates:
        raise UserError(f"{source}: all of its matrices are zero; it changes nothing")
    return updates


def _updates_of_place(
    place: tuple[str, ...],
    group: Mapping[str, Tensor],
    layers: Mapping[str, nn.Linear],
    source: str,
    declared: DeclaredScale | None,
) -> dict[str, Update]:
    down, up = (group[role].float().flatten(1) for role in ("down", "up"))
    if "alpha" in group:
        scale = float(group["alpha"]) / len(down)
    else:
        scale = declared.of(_bare(place[0]), len(down)) if declared is not None else 1.0
    magnitude = group["magnitude"].float().flatten() if "magnitude" in group else None
    rows, columns = [layers[name].out_features for name in place], layers[place[0]].in_features
    if up.shape != (sum(rows), down.shape[0]) or down.shape[1] != columns:
        raise UserError(
            f"{source}: made for another model: {' + '.join(place)} is {sum(rows)} x {columns}, but its matrices are "
            f"{list(up.shape)} and {list(down.shape)}"
        )
    whole = Update(down, scale * up, magnitude)
    if len(place) == 1:
        return {place[0]: whole}
    return {name: part for name, part in zip(place, _split(whole, rows), strict=True) if part is not None}


def _places(family: str, layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Every name a layer may have in a file -> the layers it stands for."""
    layers = list(layers)
    places: dict[str, tuple[str, ...]] = {}
    for name in layers:
        places[_bare(name)] = places[name] = (name,)
    names = COMFYUI.get(family)
    if names is not None:
        for theirs, ours in _fused({**names.layers, **names.read}, layers).items():
            places.setdefault(theirs, ours)
            for comfyui, published in names.aliases:
                if published in theirs:
                    places.setdefault(theirs.replace(published, comfyui), ours)
    return places


def _role(key: str) -> tuple[str, str]:
    """The name of the layer and what of it a tensor is; ('', '') where it says neither."""
    for role, endings in _ROLES.items():
        for ending in endings:
            if key.endswith(ending):
                return key.removesuffix(ending), role
    return "", ""


def _resolve(
    raw: str, places: Mapping[str, tuple[str, ...]], flat: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...] | None:
    for prefix in _FLAT_PREFIXES:
        if raw.startswith(prefix):
            rest = raw.removeprefix(prefix)
            return flat.get(rest) or flat.get(f"{rest}_0")
    while raw not in places and raw.startswith(_PREFIXES):
        raw = next(raw.removeprefix(prefix) for prefix in _PREFIXES if raw.startswith(prefix))
    plain = raw.replace(".processor.", ".")
    for name in (raw, plain, f"{plain}.0"):  # older files leave out that `to_out` is a list
        if name in places:
            return places[name]
    return None
