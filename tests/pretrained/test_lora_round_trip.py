"""Trained here, exported, loaded by diffusers' own pipeline: the same latents, under every naming; and back again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from family_parity import flow_times, our_latents
from lora_runs import LORA, NEGATIVE, PROMPTS, hunyuan_groups, latents_of, lora_recipe, train_run
from reelwright.bundle import build_bundle
from reelwright.export import export_model
from reelwright.loading import LoadedModel, load_model, with_loras
from reelwright.pretrained.hunyuan import TEMPLATE
from reelwright.recipe import Recipe
from reelwright.types import UsageError
from tiny_cogvideox import save_cogvideox
from tiny_families import save_wan
from tiny_hunyuan import save_hunyuan
from tiny_ltx import save_ltx

torch.set_num_threads(1)


@dataclass(frozen=True)
class Trained:
    family: str
    base: Path
    run: Path
    noise: torch.Tensor
    times: torch.Tensor


def trained(family: str, folder: Path, clips: Path) -> Trained:
    groups: dict[str, Any] = {}
    if family == "wan":
        base = save_wan(folder / "model")
    elif family == "hunyuan":
        base = save_hunyuan(folder, TEMPLATE)
        groups = hunyuan_groups(base)
    elif family == "cogvideox":
        base = save_cogvideox(folder / "model", "5b")
    else:
        base = save_ltx(folder / "model", "0.9.1")
    run = train_run(lora_recipe(folder / "lora", clips, {"type": family, "model": str(base)}, LORA, **groups))
    loaded = load_model(str(run))
    latent = loaded.bundle.codec.compression.latent_size(loaded.recipe.size)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, loaded.bundle.codec.channels, *latent.tuple, generator=generator)
    return Trained(family, base, run, noise, torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64))


@pytest.fixture(scope="module", params=["wan", "hunyuan", "cogvideox", "ltx"])
def lora(request, tmp_path_factory, shapes_clips) -> Trained:
    return trained(request.param, tmp_path_factory.mktemp(request.param), shapes_clips)


def pipeline_of(folder: Path) -> Any:
    import diffusers

    return diffusers.DiffusionPipeline.from_pretrained(folder)


def with_network(lora: Trained, network: torch.nn.Module) -> torch.Tensor:
    """Latents of our sampler and text, with a network of diffusers in the place of ours."""
    loaded = load_model(str(lora.run))
    loaded.bundle.denoiser.transformer = network.eval()
    return _sample(loaded, lora)


def _sample(loaded: Any, lora: Trained) -> torch.Tensor:
    loaded.bundle.denoiser.eval()
    return our_latents(loaded.bundle, loaded.recipe, PROMPTS, NEGATIVE, lora.noise, lora.times)


def test_diffusers_loads_what_was_trained(lora, tmp_path):
    ours = latents_of(str(lora.run), lora.noise, lora.times)
    exported = export_model(str(lora.run), tmp_path / "lora.safetensors", "lora")
    assert exported.files == ("lora.safetensors",)
    pipeline = pipeline_of(lora.base)
    bare = with_network(lora, pipeline.transformer)
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    theirs = with_network(lora, pipeline.transformer)
    assert (ours - theirs).abs().max() <= 1e-4 < 1e-2 < (ours - bare).abs().max()


def test_wan_s_own_pipeline_makes_the_same_latents(lora, tmp_path):
    """The whole of it: its tokenizer, text encoder, scheduler and loop."""
    if lora.family != "wan":
        pytest.skip("for one family: the others' pipelines are compared without LoRA, their networks with it")
    export_model(str(lora.run), tmp_path / "lora.safetensors", "lora")
    pipeline = pipeline_of(lora.base)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    with torch.no_grad():
        theirs = pipeline(
            PROMPTS, height=32, width=32, num_frames=5, num_inference_steps=2, guidance_scale=1.0,
            latents=lora.noise.clone(), output_type="latent", max_sequence_length=512,
        ).frames  # fmt: skip
    loaded = load_model(str(lora.run))
    times = flow_times(pipeline.scheduler.sigmas, loaded.bundle.objective.schedule)
    assert (latents_of(str(lora.run), lora.noise, times) - theirs).abs().max() <= 1e-4


def test_the_merged_export_is_a_pipeline(lora, tmp_path):
    ours = latents_of(str(lora.run), lora.noise, lora.times)
    export_model(str(lora.run), tmp_path / "merged")
    pipeline = pipeline_of(tmp_path / "merged")
    assert type(pipeline).__name__ == type(pipeline_of(lora.base)).__name__
    assert (ours - with_network(lora, pipeline.transformer)).abs().max() <= 1e-4
    assert (ours - latents_of(str(tmp_path / "merged"), lora.noise, lora.times)).abs().max() <= 1e-4  # `generate` too


def with_files(lora: Trained, *files: str) -> torch.Tensor:
    """Latents of the bare base with LoRA files added by us."""
    recipe = Recipe.load(lora.run / "recipe.yaml")
    bare = recipe.model_copy(update={"train": recipe.train.model_copy(update={"lora": None})})
    loaded = LoadedModel(build_bundle(bare), bare, str(lora.base), None, "")
    return _sample(with_loras(loaded, files), lora)


def kohya(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A file of ours as kohya's scripts would have named it, with an alpha that is not the rank."""
    renamed = {}
    for key, tensor in tensors.items():
        layer, _, role = key.removesuffix(".weight").rpartition(".")
        flat = "lora_unet_" + layer.split(".", 1)[1].replace(".", "_")
        alpha = 2.0
        if role == "lora_A":
            renamed[f"{flat}.lora_down.weight"] = tensor
            renamed[f"{flat}.alpha"] = torch.tensor(alpha)
        else:
            renamed[f"{flat}.lora_up.weight"] = tensor * (tensor.shape[1] / alpha)
    return renamed


def test_files_of_every_naming_are_read_back(lora, tmp_path):
    ours = latents_of(str(lora.run), lora.noise, lora.times)
    forms = ["lora"] if lora.family == "cogvideox" else ["lora", "comfyui"]
    for form in forms:
        path = tmp_path / f"{form}.safetensors"
        export_model(str(lora.run), path, form)
        assert (ours - with_files(lora, str(path))).abs().max() <= 1e-4, form
        save_file(kohya(load_file(path)), tmp_path / "kohya.safetensors")
        assert (ours - with_files(lora, str(tmp_path / "kohya.safetensors"))).abs().max() <= 1e-4, f"{form}, kohya"


def test_kohya_s_file_of_a_run(lora, tmp_path):
    path = tmp_path / "kohya.safetensors"
    if lora.family not in ("wan", "hunyuan"):
        with pytest.raises(UsageError, match="musubi-tuner, has no names for this model"):
            export_model(str(lora.run), path, "kohya")
        return
    export_model(str(lora.run), path, "kohya")
    assert all(key.startswith("lora_unet_") for key in load_file(path))
    ours = latents_of(str(lora.run), lora.noise, lora.times)
    assert (ours - with_files(lora, str(path))).abs().max() <= 1e-4


def test_several_at_once_with_scales(lora, tmp_path):
    ours = latents_of(str(lora.run), lora.noise, lora.times)
    path = tmp_path / "lora.safetensors"
    export_model(str(lora.run), path, "lora")
    halves = with_files(lora, f"{path}:0.25", f"{path}:0.75")
    assert (ours - halves).abs().max() <= 1e-4 < (ours - with_files(lora, f"{path}:0.25")).abs().max()


def test_comfyui_names_are_read_by_the_converters_of_diffusers(lora, tmp_path):
    """HunyuanVideo's fused layers of a tiny network are cut by that converter at 3072 rows: see the next test."""
    if lora.family == "cogvideox":
        with pytest.raises(UsageError, match="ComfyUI itself has no CogVideoX model"):
            export_model(str(lora.run), tmp_path / "comfyui.safetensors", "comfyui")
        return
    path = tmp_path / "comfyui.safetensors"
    export_model(str(lora.run), path, "comfyui")
    tensors = load_file(path)
    single = {key for key in tensors if "single_blocks" in key}
    pipeline = pipeline_of(lora.base)
    pipeline.load_lora_weights({key: value for key, value in tensors.items() if key not in single})
    theirs = with_network(lora, pipeline.transformer)
    save_file({key: value for key, value in tensors.items() if key not in single}, tmp_path / "rest.safetensors")
    ours = with_files(lora, str(tmp_path / "rest.safetensors"))
    bare = with_network(lora, pipeline_of(lora.base).transformer)
    assert (ours - theirs).abs().max() <= 1e-4 < 1e-2 < (ours - bare).abs().max()
    assert bool(single) == (lora.family == "hunyuan")
    if not single:
        assert (latents_of(str(lora.run), lora.noise, lora.times) - theirs).abs().max() <= 1e-4
