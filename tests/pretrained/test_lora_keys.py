"""Names of LoRA files against ComfyUI's own, diffusers' converters, and files from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from reelwright.pretrained.lora_keys import comfyui_tensors, diffusers_tensors, kohya_tensors, read_updates
from reelwright.recipe import FAMILIES
from reelwright.training.lora import LoraConfig, Update, add_lora, linear_layers
from reelwright.types import UsageError, UserError

LISTED = json.loads((Path(__file__).parent / "comfyui_lora_layers.json").read_text(encoding="utf-8"))
SD15 = Path(__file__).parents[3] / "shared" / "weights" / "lora-sd15"


def network_of(family: str, heads: int = 2, head: int = 12) -> nn.Module:
    """One block of the architecture on the meta device, within a denoiser's `transformer`."""
    import diffusers

    with torch.device("meta"):
        if family == "wan":
            net: Any = diffusers.WanTransformer3DModel(
                num_attention_heads=heads, attention_head_dim=head, ffn_dim=32, num_layers=1, text_dim=16
            )
        elif family == "hunyuan":
            net = diffusers.HunyuanVideoTransformer3DModel(
                num_attention_heads=heads, attention_head_dim=head, num_layers=1, num_single_layers=1,
                num_refiner_layers=1, text_embed_dim=16, pooled_projection_dim=16,
            )  # fmt: skip
        else:
            net = diffusers.LTXVideoTransformer3DModel(
                num_attention_heads=heads, attention_head_dim=head, cross_attention_dim=heads * head, num_layers=1,
                caption_channels=16,
            )  # fmt: skip
    return nn.ModuleDict({"transformer": net})


def updates_for(
    network: nn.Module, wanted: str = "blocks.0.", rank: int = 2, refiner: bool = False
) -> dict[str, Update]:
    """Random adapters of every linear layer of the blocks."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, layer in linear_layers(network).items():
        if wanted in name and ("refiner" in name) == refiner:
            down = torch.randn(rank, layer.in_features, generator=generator)
            made[name] = Update(down, torch.randn(layer.out_features, rank, generator=generator))
    return made


def same(ours: dict[str, Update], theirs: dict[str, Update]) -> bool:
    def delta(update: Update) -> torch.Tensor:
        width = update.down.shape[1]
        probe = torch.randn(width, 2, generator=torch.Generator().manual_seed(1)) / width**0.5
        return update.up @ (update.down @ probe)  # about 1, whatever the width

    return set(ours) == set(theirs) and all((delta(ours[n]) - delta(theirs[n])).abs().max() <= 1e-5 for n in ours)


@pytest.mark.parametrize("family", ["wan", "hunyuan", "ltx"])
def test_the_keys_are_those_of_comfyui(family):
    network = network_of(family)
    updates = updates_for(network)
    tensors = comfyui_tensors(updates, family, network)
    expected = {f"{layer}.lora_{half}.weight" for layer in LISTED[family] for half in "AB"}
    assert set(tensors) == expected and LISTED["source"].startswith("Comfy-Org/ComfyUI, commit a125cd84")
    back = read_updates(tensors, family, network, "file")
    assert same(back, updates) and {update.rank for update in back.values()} == {2}


def test_fused_layers_through_the_converter_of_diffusers():
    """At HunyuanVideo's own width, 3072, where that converter cuts `linear1`; the text's refiner it cannot read."""
    from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers as convert

    network = network_of("hunyuan", heads=24, head=128)
    updates = updates_for(network)
    theirs = convert(comfyui_tensors(updates, "hunyuan", network))
    read = read_updates(theirs, "hunyuan", network, "converted")
    assert same(read, updates)
    assert sum("single_transformer_blocks" in name for name in read) == 6


def test_a_part_of_a_fused_layer():
    network = network_of("hunyuan")
    layer = "transformer.single_transformer_blocks.0.attn.to_k"
    only = {layer: updates_for(network)[layer]}
    tensors = comfyui_tensors(only, "hunyuan", network)
    assert list(tensors) == [f"transformer.single_blocks.0.linear1.lora_{half}.weight" for half in "AB"]
    assert tensors["transformer.single_blocks.0.linear1.lora_B.weight"].shape == (24 * 3 + 24 * 4, 2)
    assert same(read_updates(tensors, "hunyuan", network, "file"), only)


def test_matrices_that_fused_layers_share_are_kept_once():
    network = network_of("hunyuan")
    layers = [f"transformer.transformer_blocks.0.attn.to_{c}" for c in "qkv"]
    down = torch.randn(2, 24)
    shared = {name: Update(down, torch.randn(24, 2)) for name in layers}
    tensors = comfyui_tensors(shared, "hunyuan", network)
    assert tensors["transformer.double_blocks.0.img_attn_qkv.lora_A.weight"].shape == (2, 24)
    assert same(read_updates(tensors, "hunyuan", network, "file"), shared)


@pytest.mark.parametrize("family", ["wan", "hunyuan", "ltx"])
def test_names_of_comfyui_s_own_classes_and_of_kohya(family):
    network = network_of(family)
    updates = updates_for(network)
    dotted, flat = {}, {}
    for key, tensor in comfyui_tensors(updates, family, network).items():
        layer, role = key.removesuffix(".weight").split(".", 1)[1].rsplit(".", 1)
        own = layer
        if family == "hunyuan":
            own = layer.replace("_attn_qkv", "_attn.qkv").replace("_attn_proj", "_attn.proj").replace("fc1", "0")
            own = (
                own.replace("fc2", "2")
                .replace("_mod.linear", "_mod.lin")
                .replace("modulation.linear", "modulation.lin")
            )
        half, scale = ("down", 1.0) if role == "lora_A" else ("up", 8.0)
        dotted[f"diffusion_model.{own}.lora_{half}.weight"] = tensor
        flat[f"lora_unet_{layer.replace('.', '_')}.lora_{half}.weight"] = tensor * scale
        rank = tensor.shape[0 if half == "down" else 1]
        flat[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(rank / 8.0)
    for tensors in (dotted, flat):
        assert same(read_updates(tensors, family, network, "file"), updates)


@pytest.mark.parametrize("family", ["wan", "hunyuan"])
def test_kohya_s_files_and_back(family):
    network = network_of(family)
    updates = updates_for(network)
    tensors = kohya_tensors(updates, family, network)
    layers = {layer.split(".", 1)[1].replace(".", "_") for layer in LISTED[family]}
    expected = {
        f"lora_unet_{layer}.{part}" for layer in layers for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert set(tensors) == expected
    assert all(
        float(tensors[key]) == len(tensors[key.replace("alpha", "lora_down.weight")])
        for key in tensors
        if "alpha" in key
    )
    assert same(read_updates(tensors, family, network, "file"), updates)
    if family == "wan":
        from diffusers.loaders.lora_conversion_utils import _convert_musubi_wan_lora_to_diffusers as convert

        assert same(read_updates(convert(dict(tensors)), family, network, "converted"), updates)


def test_what_kohya_has_no_names_for():
    network = network_of("ltx")
    with pytest.raises(
        UsageError, match="--format kohya: its trainer, musubi-tuner, has no names for this model, only"
    ):
        kohya_tensors(updates_for(network), "ltx", network)
    scaled = {name: Update(u.down, u.up, torch.ones(len(u.up))) for name, u in updates_for(network_of("wan")).items()}
    with pytest.raises(UsageError, match="--format kohya: not for DoRA"):
        kohya_tensors(scaled, "wan", network_of("wan"))


def test_the_text_refiner_has_names_too():
    network = network_of("hunyuan")
    updates = {
        name: update
        for name, update in updates_for(network, "refiner_blocks.0.", refiner=True).items()
        if ".attn." in name or ".ff." in name
    }
    tensors = comfyui_tensors(updates, "hunyuan", network)
    assert "transformer.txt_in.individual_token_refiner.blocks.0.self_attn_qkv.lora_A.weight" in tensors
    assert same(read_updates(tensors, "hunyuan", network, "file"), updates) and len(updates) == 6


def test_what_comfyui_has_no_name_for():
    network = network_of("ltx")
    layer = "transformer.proj_in"
    update = updates_for(network, "proj_in")[layer]
    with pytest.raises(UsageError, match=r"no name for 1 of 1 layers \(transformer.proj_in\)"):
        comfyui_tensors({layer: update}, "ltx", network)
    scaled = {layer: Update(update.down, update.up, torch.ones(len(update.up)))}
    with pytest.raises(UsageError, match="not for DoRA"):
        comfyui_tensors(scaled, "ltx", network)
    for family, why in (("svd", "not those of SVD's temporal"), ("cogvideox", "no CogVideoX"), ("dit", "no model of")):
        with pytest.raises(UsageError, match=why):
            comfyui_tensors({layer: update}, family, network)


def test_foreign_keys_are_refused_with_their_counts():
    network = network_of("wan")
    tensors = diffusers_tensors(updates_for(network))
    strange = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(2, 2),
        "conv.weight": torch.ones(1),
    }
    with pytest.raises(UserError, match=r"style: 20 of its 22 tensors belong .* 2 do not \(lora_te_text_model"):
        read_updates({**tensors, **strange}, "wan", network, "style")
    with pytest.raises(UserError, match="0 of its 20 tensors belong"):
        read_updates(tensors, "ltx", network_of("ltx"), "style")
    half = {name: tensor for name, tensor in tensors.items() if "to_q.lora_B" not in name}
    with pytest.raises(UserError, match="to_q it has down alone; it is not whole"):
        read_updates(half, "wan", network, "style")
    with pytest.raises(UserError, match="made for another model: .* is 20 x 20"):
        read_updates(tensors, "wan", network_of("wan", head=10), "style")


@pytest.mark.parametrize("file", ["peft_style", "other_style"])
def test_real_files_in_two_older_namings(file):
    """Stable Diffusion 1.5's attention layers: 32 attentions of 4 layers each, none left over."""
    if not SD15.is_dir():
        pytest.skip("no LoRA files of Stable Diffusion 1.5 in ../shared")
    import diffusers

    tensors = load_file(SD15 / f"{file}.safetensors")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    updates = read_updates(tensors, "unet", nn.ModuleDict({"unet": unet}), file)
    assert len(tensors) == 256 and len(updates) == 128
    with pytest.raises(UserError, match="0 of its 256 tensors belong to layers of this model, 256 do not"):
        read_updates(tensors, "wan", network_of("wan"), file)


@pytest.mark.parametrize(
    ("family", "settings", "width", "layers", "trained"),
    [
        ("wan", {}, (16, 4096), 400, 153_354_240),
        ("wan", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, (16, 4096), 300, 43_745_280),
        ("ltx", {}, (128, 4096), 224, 29_360_128),
        ("hunyuan", {}, (16, 4096), 280, 55_050_240),
        ("cogvideox", {}, (16, 4096), 120, 14_745_600),
    ],
)
def test_presets_at_full_size(family, settings, width, layers, trained):
    """Counted on the meta device at rank 32: a layer gains 32 (in + out)."""
    with torch.device("meta"):
        denoiser: Any = FAMILIES[family].parse({"config": settings}).build(*width)
        names = add_lora(denoiser, LoraConfig(rank=32), denoiser.lora_targets)
    found = sum(p.numel() for p in denoiser.parameters() if p.requires_grad)
    sizes = linear_layers(denoiser)
    assert (len(names), found) == (layers, trained)
    assert found == sum(32 * (sizes[name].in_features + sizes[name].out_features) for name in names)
