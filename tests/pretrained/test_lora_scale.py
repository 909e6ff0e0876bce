"""The alpha that a LoRA's file declares: what diffusers and peft save is as strong here as it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from family_parity import NEGATIVE, PROMPTS, family_recipe, our_latents
from reelwright.bundle import build_bundle
from reelwright.loading import LoadedModel, with_loras
from reelwright.pretrained.lora_scale import DeclaredScale, declared_scale
from reelwright.types import UserError
from tiny_families import save_wan

torch.set_num_threads(1)
NOISE = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64)
RULES = {
    "alpha": {"lora_alpha": 16},
    "rslora": {"lora_alpha": 6, "use_rslora": True},
    "patterns": {"lora_alpha": 8, "alpha_pattern": {"attn1.to_k": 20}, "rank_pattern": {"attn1.to_q": 2}},
    "whole name": {
        "lora_alpha": 8,
        "alpha_pattern": {"^blocks.0.attn1.to_k": 20, "^to_q": 40, "blocks.1.ffn.net.2$": 2},
    },
    "equal": {"lora_alpha": 4},
}


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "model")


def adapted(wan: Path, **rule: Any) -> Any:
    """diffusers' network with an adapter of random matrices."""
    import diffusers
    from peft import LoraConfig

    network = diffusers.WanTransformer3DModel.from_pretrained(wan, subfolder="transformer")
    torch.manual_seed(0)
    targets = ["attn1.to_q", "attn1.to_k", "ffn.net.2"]
    network.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **rule))
    return network.eval()


def sampled(wan: Path, folder: Path, network: Any = None, file: str = "") -> torch.Tensor:
    """Latents of our sampler, with a network of diffusers in the place of ours or a LoRA's file beside it."""
    recipe = family_recipe(folder, "wan", wan, sampling={"guidance": 2.0})
    loaded = LoadedModel(build_bundle(recipe), recipe, str(wan), None, "")
    if network is not None:
        loaded.bundle.denoiser.transformer = network
    loaded = with_loras(loaded, [file] if file else [])
    loaded.bundle.denoiser.eval()
    return our_latents(loaded.bundle, recipe, PROMPTS[:1], NEGATIVE, NOISE, TIMES)


def saved(network: Any, folder: Path, how: str) -> Path:
    """The adapter as a program of the field leaves it."""
    import diffusers
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    if how == "pipeline":
        state: Any = get_peft_model_state_dict(network)
        diffusers.WanPipeline.save_lora_weights(folder, state, **_collate_lora_metadata({"transformer": network}))
        return folder / "pytorch_lora_weights.safetensors"
    if how == "network":
        network.save_lora_adapter(folder)
        return folder / "pytorch_lora_weights.safetensors"
    state = {f"base_model.model.{name}": tensor for name, tensor in get_peft_model_state_dict(network).items()}
    folder.mkdir()
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    network.peft_config["default"].save_pretrained(folder)
    return folder / "adapter_model.safetensors"


@pytest.mark.parametrize("how", ["pipeline", "network", "peft"])
@pytest.mark.parametrize("rule", list(RULES))
def test_files_of_diffusers_and_peft_are_as_strong_as_there(wan, tmp_path, rule, how):
    network = adapted(wan, **RULES[rule])
    file = saved(network, tmp_path / "lora", how)
    theirs, ours = sampled(wan, tmp_path, network), sampled(wan, tmp_path, file=str(file))
    assert (theirs - ours).abs().max() <= 1e-4 < 1e-2 < (theirs - sampled(wan, tmp_path)).abs().max()
    assert file.parent.is_dir() and (declared_scale(file) is not None)
    if rule != "equal":  # without its settings the same file is another LoRA
        save_file(load_file(file), tmp_path / "bare.safetensors")
        bare = sampled(wan, tmp_path, file=str(tmp_path / "bare.safetensors"))
        assert (bare - theirs).abs().max() > 1e-2


def test_a_layer_s_own_alpha_comes_first(wan, tmp_path):
    network = adapted(wan, lora_alpha=4)  # alpha = rank
    tensors = load_file(saved(network, tmp_path / "lora", "network"))
    alphas = {f"{key.removesuffix('.lora_A.weight')}.alpha": torch.tensor(4.0) for key in tensors if ".lora_A." in key}
    file = tmp_path / "both.safetensors"
    save_file({**tensors, **alphas}, file, metadata={"lora_adapter_metadata": json.dumps({"lora_alpha": 400})})
    assert (sampled(wan, tmp_path, network) - sampled(wan, tmp_path, file=str(file))).abs().max() <= 1e-4


def test_scales_are_peft_s(wan):
    for rule in RULES.values():
        network = adapted(wan, **rule)
        declared = DeclaredScale(rule["lora_alpha"], rule.get("use_rslora", False), rule.get("alpha_pattern", {}))
        layers = {name: module for name, module in network.named_modules() if hasattr(module, "scaling")}
        assert len(layers) == 6
        for name, layer in layers.items():
            assert declared.of(name, layer.r["default"]) == pytest.approx(layer.scaling["default"])


STRANGE = {
    "no JSON": "{",
    "a number": "3",
    "a word": '{"lora_alpha": "many"}',
    "null": '{"transformer.lora_alpha": null}',
    "infinite": '{"lora_alpha": Infinity}',
    "huge": '{"lora_alpha": 1%s}' % ("0" * 400),
    "long": '{"lora_alpha": 4, "note": "%s"}' % ("x" * 1_000_000),
    "a list": '{"lora_alpha": 4, "alpha_pattern": [3]}',
    "slow": '{"lora_alpha": 4, "alpha_pattern": {"((\\\\w|\\\\.)+)+!": 4}}',  # as an expression it never ends
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=list(STRANGE))
def test_what_cannot_be_read_is_one_message(tmp_path, text):
    file = tmp_path / "x.safetensors"
    save_file({"a.lora_A.weight": torch.ones(1, 1)}, file, metadata={"lora_adapter_metadata": text})
    with pytest.raises(UserError, match="x.safetensors: what it says of its alpha cannot be read .*; save the LoRA"):
        declared_scale(file)
    beside = tmp_path / "adapter_model.safetensors"
    save_file({"a.lora_A.weight": torch.ones(1, 1)}, beside)
    assert declared_scale(beside) is None
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match="adapter_model.safetensors: what it says of its alpha"):
        declared_scale(beside)
