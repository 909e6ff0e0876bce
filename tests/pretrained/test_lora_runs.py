"""A LoRA run from the recipe to the video: what its checkpoints hold, that it resumes, and whose weights it needs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import reelwright.bundle as bundle_room
from lora_runs import LORA, lora_recipe
from reelwright.loading import load_model
from reelwright.recipe import Recipe
from reelwright.train import train
from reelwright.types import UserError
from reelwright.video.write import read_frames, read_recipe
from tiny_families import save_wan
from tiny_ltx import save_ltx
from tiny_wan22 import save_experts

torch.set_num_threads(1)
WITH_EMA = ("train.ema=0.9", "train.save_every=2", "train.keep_checkpoints=9", "train.lora.dropout=0.2")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory, shapes_clips) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    path = lora_recipe(folder, shapes_clips, {"type": "wan", "model": str(base)}, LORA)
    said: list[str] = []
    run_dir = train(Recipe.load(path, WITH_EMA), say=said.append).run_dir
    assert any(line.startswith("LoRA beside 20 layers: 3,968 of 26,920 parameters train") for line in said), said
    return run_dir


def tensor_files(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:07d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_a_checkpoint_holds_the_adapters_alone(run):
    folder = run / "checkpoints" / "step-0000005"
    model, ema = load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors")
    assert model.keys() == ema.keys() and len(model) == 40 and all(".lora_" in name for name in model)
    assert len(load_file(folder / "optimizer.safetensors")) == 3 * 40
    assert len(json.loads((folder / "base.json").read_text())["sha256"]) == 64


def test_interrupted_equals_uninterrupted(run, base, tmp_path, shapes_clips):
    path = lora_recipe(tmp_path, shapes_clips, {"type": "wan", "model": str(base)}, LORA)

    def stop(done: int, *_: Any) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    first = train(Recipe.load(path, WITH_EMA), say=lambda _: None, on_step=stop)
    assert (first.step, first.interrupted) == (3, "SIGINT")
    second = train(Recipe.load(path, WITH_EMA), say=lambda _: None)
    assert second.step == 5 and tensor_files(second.run_dir, 5) == tensor_files(run, 5)


def test_generate_from_a_run_and_from_its_final_model(run, tmp_path, run_cli):
    videos = []
    for number, model in enumerate((run, run / "checkpoints" / "final", run / "checkpoints" / "step-0000005")):
        made = run_cli("generate", model, "--prompt", "a red ball falls", "--out", tmp_path / f"{number}.mp4")
        assert made.code == 0, made.err
        videos.append(read_frames(tmp_path / f"{number}.mp4")[0].tobytes())
    assert len(set(videos)) == 1
    scored = run_cli("evaluate", run, "--metrics", "heldout")
    assert scored.code == 0, scored.err


def test_generate_with_a_file_and_again_from_the_clip(run, tmp_path, run_cli):
    lora = tmp_path / "lora.safetensors"
    assert run_cli("export", run, lora, "--format", "lora").code == 0
    clip = tmp_path / "a.mp4"
    words = ("--prompt", "a red ball falls", "--steps", 2)
    made = run_cli("generate", run, *words, "--out", clip, "--lora", f"{lora}:0.5", "--lora", lora)
    assert made.code == 0, made.err
    named = read_recipe(clip)["loras"]
    assert [(entry["file"], entry["scale"], entry["layers"]) for entry in named] == [
        (str(lora), 0.5, 20),
        (str(lora), 1.0, 20),
    ]
    again = run_cli("generate", run, "--from", clip, "--out", tmp_path / "b.mp4")
    assert again.code == 0 and "other weights" not in again.err
    plain = run_cli("generate", run, *words, "--out", tmp_path / "c.mp4")
    assert plain.code == 0
    frames = [read_frames(tmp_path / f"{name}.mp4")[0].tobytes() for name in "abc"]
    assert frames[0] == frames[1] != frames[2]
    missing = run_cli("generate", run, *words, "--lora", tmp_path / "no.safetensors:0.5")
    assert missing.code == 2 and "no such file" in missing.err
    save_file({"conv.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    foreign = run_cli("generate", run, *words, "--lora", tmp_path / "other.safetensors")
    assert foreign.code == 1 and "0 of its 1 tensors belong to layers of this model" in foreign.err


def test_another_base_is_refused(run, base, tmp_path):
    """The very folder the recipe names, with one weight changed."""
    kept = tmp_path / "kept"
    shutil.copytree(base, kept)
    weights = base / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["blocks.0.attn1.to_q.weight"][0, 0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    try:
        with pytest.raises(UserError, match="its adapters were trained beside the weights"):
            load_model(str(run))
        with pytest.raises(UserError, match="its adapters were trained beside the weights"):
            train(Recipe.load(run / "recipe.yaml", ["train.steps=6"]), say=lambda _: None)
    finally:
        shutil.copyfile(kept / "transformer" / weights.name, weights)
    assert load_model(str(run)).step == 5


def test_a_model_from_scratch_has_nothing_to_adapt(write_recipe, run_cli):
    told = run_cli("train", write_recipe("train.lora.rank=4"))
    assert told.code == 2 and "train.lora: needs a trained model to adapt" in told.err


TOY = (
    "data.width=32", "data.height=32", "data.frames=5", "data.fps=8", "train.steps=2", "train.batch_size=2",
    "train.precision=fp32", "train.device=cpu", "train.save_every=2", "train.evaluate_every=2",
    "train.evaluate_samples=2", "train.sample_prompts=1", "train.warmup_steps=0", "train.tensorboard=false",
)  # fmt: skip


@pytest.mark.parametrize(("name", "save"), [("wan-1.3b-lora", save_wan), ("ltx-lora", save_ltx)])
def test_the_recipes_run_at_toy_size(name, save, shapes_clips, tmp_path, run_cli):
    recipe = Path(__file__).parents[2] / "recipes" / f"{name}.yaml"
    only = "data.only=[" + ",".join(sorted(p.name for p in (shapes_clips / "videos").glob("*.mp4"))[:6]) + "]"
    places = [f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}", f"data.path={shapes_clips}", only]
    model = f"model.model={save(tmp_path / 'model')}"
    for command in ("prepare", "train"):
        done = run_cli(command, recipe, *places, model, *TOY)
        assert done.code == 0, done.err
    video = tmp_path / "video.mp4"
    made = run_cli("generate", tmp_path / "run", "--prompt", "a red circle", "--steps", 2, "--out", video)
    assert made.code == 0, made.err
    assert read_frames(video)[0].shape == (5, 32, 32, 3)
    for form in ("lora", "comfyui"):
        assert run_cli("export", tmp_path / "run", tmp_path / f"{form}.safetensors", "--format", form).code == 0


@pytest.mark.full
def test_the_recipe_of_two_experts_runs_at_toy_size(shapes_clips, tmp_path, run_cli):
    """Its commands in their order: one run an expert, and a video by the adapters of both."""
    recipe = Path(__file__).parents[2] / "recipes" / "wan-2.2-a14b-lora.yaml"
    only = "data.only=[" + ",".join(sorted(p.name for p in (shapes_clips / "videos").glob("*.mp4"))[:6]) + "]"
    places = [f"cache_dir={tmp_path / 'cache'}", f"data.path={shapes_clips}", only]
    model = f"model.model={save_experts(tmp_path / 'model')}"
    assert run_cli("prepare", recipe, *places, model, *TOY).code == 0
    for expert in ("high", "low"):
        run = tmp_path / expert
        done = run_cli("train", recipe, *places, model, f"model.expert={expert}", f"run_dir={run}", *TOY)
        assert done.code == 0, done.err
        assert run_cli("export", run, tmp_path / f"{expert}.safetensors", "--format", "lora").code == 0
    frames = []
    for more in ([], ["--lora", f"{tmp_path / 'low.safetensors'}:10000"]):
        video = tmp_path / f"video{len(more)}.mp4"
        words = ["--prompt", "a red circle", "--steps", 8, "--out", video]
        made = run_cli("generate", tmp_path / "high", *words, *more)
        assert made.code == 0, made.err
        frames.append(read_frames(video)[0])
    assert frames[0].shape == frames[1].shape == (5, 32, 32, 3)
    assert (frames[0] != frames[1]).any(), "the other expert's adapters count"


def test_the_base_is_hashed_once_until_its_files_change(base, tmp_path, shapes_clips, monkeypatch):
    model = shutil.copytree(base, tmp_path / "model")
    path = lora_recipe(tmp_path, shapes_clips, {"type": "wan", "model": str(model)}, LORA)
    recipe = Recipe.load(path, ("train.steps=1",))
    train(recipe, say=lambda _: None)
    time.sleep(0.2)
    hashed: list[int] = []
    content_hash = bundle_room.content_hash
    monkeypatch.setattr(bundle_room, "content_hash", lambda *parts: hashed.append(1) or content_hash(*parts))
    train(recipe, say=lambda _: None)
    load_model(str(recipe.run_dir))
    assert len(hashed) <= 1, "by the first at most, where its files were new"
    hashed.clear()
    load_model(str(recipe.run_dir))
    assert hashed == []
    weights = next((model / "transformer").glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="its adapters were trained beside the weights"):
        load_model(str(recipe.run_dir))
    assert hashed == [1]
