"""HunyuanVideo 1.5 trained here: LoRA under every naming, and whole runs up to diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from family_parity import NEGATIVE, flow_times, open_pipeline, our_latents
from lora_runs import LORA, lora_recipe, train_run
from reelwright.config import to_yaml
from reelwright.export import export_model
from reelwright.loading import load_model
from reelwright.pretrained.hunyuan15 import TEMPLATE
from reelwright.pretrained.lora_keys import read_updates
from reelwright.training.lora import linear_layers
from reelwright.types import UsageError
from reelwright.video.write import read_frames
from tiny_hunyuan15 import GUIDANCE, PROMPTS, SHIFT, prefix_tokens, save_hunyuan15, text_group

torch.set_num_threads(1)
NOISE, TIMES = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.6, 0.0])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_hunyuan15(tmp_path_factory.mktemp("hunyuan15"), TEMPLATE)


@pytest.fixture(scope="module")
def prefix(model) -> int:
    return prefix_tokens(model, TEMPLATE)


@pytest.fixture(scope="module")
def lora_run(model, prefix, tmp_path_factory, shapes_clips) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    group = {"type": "hunyuan15", "model": str(model)}
    return train_run(lora_recipe(folder, shapes_clips, group, LORA, text=text_group(prefix)))


def our_run(run: Path) -> torch.Tensor:
    loaded = load_model(str(run))
    loaded.bundle.denoiser.eval()
    return our_latents(loaded.bundle, loaded.recipe, PROMPTS[:1], NEGATIVE, NOISE, TIMES.double())


def with_network(run: Path, network: torch.nn.Module) -> torch.Tensor:
    loaded = load_model(str(run))
    loaded.bundle.denoiser.transformer = network.eval()
    return our_latents(loaded.bundle, loaded.recipe, PROMPTS[:1], NEGATIVE, NOISE, TIMES.double())


def test_the_peft_wrapped_network_of_diffusers_gives_equal_output(lora_run, model, tmp_path):
    """Its pipeline has no `load_lora_weights` in this version; its network has `load_lora_adapter`."""
    export_model(str(lora_run), tmp_path / "lora.safetensors", "lora")
    pipeline = open_pipeline("HunyuanVideo15Pipeline", model)
    assert not hasattr(pipeline, "load_lora_weights")
    ours = our_run(lora_run)
    bare = with_network(lora_run, pipeline.transformer)
    pipeline.transformer.load_lora_adapter(load_file(tmp_path / "lora.safetensors"), prefix="transformer")
    theirs = with_network(lora_run, pipeline.transformer)
    assert (ours - theirs).abs().max() <= 1e-4 < 1e-2 < (ours - bare).abs().max()


def test_the_merged_export_is_a_pipeline(lora_run, tmp_path):
    export_model(str(lora_run), tmp_path / "merged")
    merged = open_pipeline("HunyuanVideo15Pipeline", tmp_path / "merged")
    assert merged.guider.guidance_scale == GUIDANCE and merged.scheduler.config.shift == SHIFT
    assert (our_run(lora_run) - with_network(lora_run, merged.transformer)).abs().max() <= 1e-4


def test_comfyui_names_and_back(lora_run, tmp_path):
    """ComfyUI's HunyuanVideo15 is its HunyuanVideo with two-stream blocks alone; q, k and v are one layer there."""
    export_model(str(lora_run), tmp_path / "comfyui.safetensors", "comfyui")
    export_model(str(lora_run), tmp_path / "lora.safetensors", "lora")
    tensors = load_file(tmp_path / "comfyui.safetensors")
    layers = ("img_attn_qkv", "img_attn_proj", "txt_attn_qkv", "txt_attn_proj")
    assert set(tensors) == {
        f"transformer.double_blocks.{block}.{layer}.lora_{half}.weight"
        for block in (0, 1) for layer in layers for half in "AB"
    }  # fmt: skip
    network = load_model(str(lora_run)).bundle.denoiser
    ours = read_updates(load_file(tmp_path / "lora.safetensors"), "hunyuan15", network, "lora")
    back = read_updates(tensors, "hunyuan15", network, "comfyui")
    nothing = "transformer.transformer_blocks.1.attn.add_q_proj"  # of the last block: it never had a gradient
    assert len(ours) == 16 and set(ours) - set(back) == {nothing} and not ours[nothing].up.any()
    assert set(back) < set(ours) <= set(linear_layers(network))
    for name, update in back.items():
        assert torch.allclose(update.up @ update.down, ours[name].up @ ours[name].down, atol=1e-5)


@pytest.mark.parametrize(
    "form", ["diffusion_model.double_blocks.{}.{}.lora_{}.weight", "lora_unet_double_blocks_{}_{}.lora_{}.weight"]
)
def test_files_with_the_published_names_are_read(lora_run, form):
    """There q, k and v are layers of their own: Tencent-Hunyuan/HunyuanVideo-1.5, and trainers built on it."""
    network = load_model(str(lora_run)).bundle.denoiser
    names = {
        "img_attn_q": "to_q",
        "img_attn_proj": "to_out.0",
        "txt_attn_v": "add_v_proj",
        "txt_attn_proj": "to_add_out",
    }
    down, up = ("A", "B") if "unet" not in form else ("down", "up")
    tensors = {}
    for number, name in enumerate(names):
        tensors[form.format(1, name, down)] = torch.full((2, 20), 1.0 + number)
        tensors[form.format(1, name, up)] = torch.full((20, 2), 0.5)
    read = read_updates(tensors, "hunyuan15", network, "file")
    assert {name: float(update.down.mean()) for name, update in read.items()} == {
        f"transformer.transformer_blocks.1.attn.{ours}": 1.0 + number for number, ours in enumerate(names.values())
    }


@pytest.mark.full
def test_prepare_train_resume_generate_and_export(model, prefix, shapes_clips, tmp_path, run_cli):
    only = sorted(path.name for path in (shapes_clips / "videos").glob("*.mp4"))[:4]
    values = {
        "run_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache"),
        "data": {"path": str(shapes_clips), "frames": 5, "fps": 8, "width": 32, "height": 32, "only": only},
        "model": {"type": "hunyuan15", "model": str(model)}, "text": text_group(prefix),
        "train": {
            "steps": 2, "batch_size": 2, "precision": "fp32", "device": "cpu", "save_every": 2, "evaluate_every": 2,
            "evaluate_samples": 2, "sample_every": 0, "sample_prompts": 1, "warmup_steps": 0, "tensorboard": False,
            "ema": None, "learning_rate": 1e-3,
        },
    }  # fmt: skip
    recipe, run, video = tmp_path / "recipe.yaml", tmp_path / "run", tmp_path / "video.mp4"
    recipe.write_text(to_yaml(values))
    for command in (("prepare", recipe), ("train", recipe), ("train", recipe, "train.steps=3")):
        done = run_cli(*command)
        assert done.code == 0, done.err
    assert "done: 3 steps" in done.err
    made = run_cli("generate", run, "--prompt", 'a circle, "GO"', "--steps", 2, "--out", video)
    assert made.code == 0, made.err
    frames, _ = read_frames(video)
    assert frames.shape == (5, 32, 32, 3) and frames.std() > 0
    assert run_cli("export", run, tmp_path / "exported").code == 0
    compare_with_pipeline(run, tmp_path / "exported", prefix)
    made = run_cli("generate", tmp_path / "exported", "--prompt", "a", "--steps", 1, "--out", tmp_path / "b.mp4")
    assert made.code == 0, made.err


def compare_with_pipeline(run: Path, exported: Path, prefix: int) -> None:
    """The exported directory's own loop, tokenizers and encoders against the run."""
    pipeline = open_pipeline("HunyuanVideo15Pipeline", exported)
    pipeline.prompt_template_encode_start_idx = prefix
    with torch.no_grad():
        theirs = pipeline(
            PROMPTS[:1], NEGATIVE, height=32, width=32, num_frames=5, num_inference_steps=2, latents=NOISE.clone(),
            output_type="latent",
        ).frames  # fmt: skip
    loaded = load_model(str(run))
    assert loaded.recipe.sampling.guidance == GUIDANCE
    times = flow_times(pipeline.scheduler.sigmas, loaded.bundle.objective.schedule)
    loaded.bundle.denoiser.eval()
    ours = our_latents(loaded.bundle, loaded.recipe, PROMPTS[:1], NEGATIVE, NOISE, times)
    assert (ours - theirs).abs().max() <= 1e-4


def test_two_text_encoders_do_not_go_into_one_file(lora_run, tmp_path):
    with pytest.raises(UsageError, match="text.type = hunyuan15: it is more than one network"):
        export_model(str(lora_run), tmp_path / "one.safetensors", "safetensors")
    assert not list(tmp_path.iterdir())
