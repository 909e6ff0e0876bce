"""LoRA where it is more than two float32 matrices: DoRA, half precision and 8-bit bases, and SVD's projection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from family_parity import our_latents
from lora_runs import LORA, NEGATIVE, PROMPTS, latents_of, lora_recipe, train_run
from reelwright.export import export_model
from reelwright.loading import load_model, with_loras
from reelwright.recipe import Recipe
from reelwright.types import UsageError
from tiny_clip import save_tiny_clip
from tiny_families import save_wan
from tiny_svd import save_svd

torch.set_num_threads(1)
NOISE = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "model")


def trained(
    folder: Path, clips: Path, model: dict[str, Any], lora: dict[str, Any], *overrides: str, **groups: Any
) -> Path:
    return train_run(lora_recipe(folder, clips, model, lora, **groups), *overrides)


@pytest.mark.parametrize("lora", [{**LORA, "dora": True}, {**LORA, "rslora": True, "targets": ["attn1.to_q", "ffn.*"]}])
def test_other_rules_give_diffusers_the_same_too(wan, lora, tmp_path, shapes_clips):
    import diffusers

    run = trained(tmp_path, shapes_clips, {"type": "wan", "model": str(wan)}, lora)
    ours = latents_of(str(run), NOISE, TIMES)
    export_model(str(run), tmp_path / "lora.safetensors", "lora")
    pipeline = diffusers.WanPipeline.from_pretrained(wan)
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    loaded = load_model(str(run))
    loaded.bundle.denoiser.transformer = pipeline.transformer.eval()
    theirs = our_latents(loaded.bundle, loaded.recipe, PROMPTS, NEGATIVE, NOISE, TIMES)
    assert (ours - theirs).abs().max() <= 1e-4
    export_model(str(run), tmp_path / "merged")
    again = diffusers.WanPipeline.from_pretrained(tmp_path / "merged")
    loaded.bundle.denoiser.transformer = again.transformer.eval()
    assert (ours - our_latents(loaded.bundle, loaded.recipe, PROMPTS, NEGATIVE, NOISE, TIMES)).abs().max() <= 1e-4
    if lora.get("dora"):
        with pytest.raises(UsageError, match="not for DoRA"):
            export_model(str(run), tmp_path / "comfyui.safetensors", "comfyui")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_base_in_half_precision(wan, precision, tmp_path, shapes_clips):
    model = {"type": "wan", "model": str(wan), "dtype": "bfloat16"}
    run = trained(tmp_path, shapes_clips, model, LORA, f"train.precision={precision}")
    held = load_file(run / "checkpoints" / "step-0000005" / "model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.float32}
    denoiser = load_model(str(run)).bundle.denoiser
    assert {p.dtype for p in denoiser.parameters() if not p.requires_grad} >= {torch.bfloat16}


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_base_in_eight_bits(wan, kind, tmp_path, shapes_clips):
    pytest.importorskip("torchao")
    run = trained(tmp_path, shapes_clips, {"type": "wan", "model": str(wan), "quantize": kind}, LORA)
    ours = latents_of(str(run), NOISE, TIMES)
    export_model(str(run), tmp_path / "merged")  # beside the weights as they were before
    values = Recipe.load(run / "recipe.yaml").plain()
    values["model"] |= {"model": str(tmp_path / "merged"), "quantize": None}
    values["train"]["lora"] = None
    (tmp_path / "merged.yaml").write_text("")
    from reelwright.config import to_yaml

    (tmp_path / "merged.yaml").write_text(to_yaml(values))
    exact = latents_of(str(tmp_path / "merged.yaml"), NOISE, TIMES)
    assert 0 < (ours - exact).abs().max() < 0.1 * exact.abs().max()


def test_quantised_weights_cannot_be_trained(tmp_path, shapes_clips, wan):
    path = lora_recipe(tmp_path, shapes_clips, {"type": "wan", "model": str(wan), "quantize": "int8"}, LORA)
    with pytest.raises(UsageError, match="model.quantize: 8-bit weights cannot be trained.*set train.lora"):
        Recipe.load(path, ["train.lora=null"])


@pytest.mark.full
def test_svd_s_module_wrapped_by_peft_and_its_projection(tmp_path, shapes_clips):
    """SVD's UNet has no LoRA loader in diffusers: peft itself puts the file's matrices in."""
    import diffusers
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    base, clip = save_svd(tmp_path / "model"), save_tiny_clip(tmp_path / "clip")
    text = {"type": "clip", "model": str(clip)}
    run = trained(tmp_path / "lora", shapes_clips, {"type": "svd", "model": str(base)}, LORA, text=text)
    held = load_file(run / "checkpoints" / "step-0000005" / "model.safetensors")
    assert {name for name in held if ".lora_" not in name} == {"denoiser.text_in.weight", "denoiser.text_in.bias"}
    loaded = load_model(str(run))
    loaded.bundle.denoiser.eval()
    latent = loaded.bundle.codec.compression.latent_size(loaded.recipe.size)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, loaded.bundle.codec.channels, *latent.tuple, generator=generator)

    def latents(model: Any) -> torch.Tensor:
        model.bundle.denoiser.eval()
        return our_latents(model.bundle, model.recipe, PROMPTS, NEGATIVE, noise, TIMES)

    ours = latents(loaded)
    export_model(str(run), tmp_path / "lora.safetensors", "lora")
    tensors = load_file(tmp_path / "lora.safetensors")
    unet = diffusers.UNetSpatioTemporalConditionModel.from_pretrained(base, subfolder="unet")
    matrices = {name.removeprefix("unet."): value for name, value in tensors.items() if name.startswith("unet.")}
    names = sorted({name.rsplit(".lora_", 1)[0] for name in matrices})
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=names), unet)
    set_peft_model_state_dict(unet, matrices)
    loaded.bundle.denoiser.unet = unet.eval()
    assert (ours - latents(loaded)).abs().max() <= 1e-4

    bare = load_model(str(_bare(run, tmp_path)))
    other = latents(bare)
    again = latents(with_loras(bare, [str(tmp_path / "lora.safetensors")]))
    assert (ours - again).abs().max() <= 1e-4 < (ours - other).abs().max()
    with pytest.raises(UsageError, match="Stable Diffusion's spatial layers only"):
        export_model(str(run), tmp_path / "comfyui.safetensors", "comfyui")


def _bare(run: Path, folder: Path) -> Path:
    """The recipe of a run without its LoRA."""
    from reelwright.config import to_yaml

    values = Recipe.load(run / "recipe.yaml").plain()
    values["train"]["lora"] = None
    path = folder / "bare.yaml"
    path.write_text(to_yaml(values), encoding="utf-8")
    return path
