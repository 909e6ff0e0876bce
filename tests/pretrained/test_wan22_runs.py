"""Wan 2.2 through the verbs: trained here, resumed, exported, and loaded by diffusers' own pipeline."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from family_parity import family_recipe, flow_times, open_pipeline
from lora_runs import LORA, NEGATIVE, PROMPTS, latents_of, lora_recipe, train_run
from reelwright.bundle import build_bundle, objective_of_step
from reelwright.children import child_environment
from reelwright.config import to_yaml
from reelwright.export import export_model
from reelwright.loading import LoadedModel, with_loras
from reelwright.pretrained.wan import EXPERTS
from reelwright.recipe import Recipe
from reelwright.train import train
from reelwright.types import UsageError, UserError
from reelwright.video.write import read_frames, read_recipe
from tiny_wan22 import save_5b, save_experts

torch.set_num_threads(1)
STEPS = 8  # of generation, three of them above the boundary
SEED = 3  # under which steps 0, 1 and 4 are the high expert's, 2 and 3 the low one's
EVERY_STEP = ("train.save_every=1", "train.keep_checkpoints=9", "train.ema=0.9", "train.lora.dropout=0.2")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_experts(tmp_path_factory.mktemp("a14b") / "model")


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory, shapes_clips) -> Callable[[str], Path]:
    """The run of an expert, trained once."""
    runs: dict[str, Path] = {}

    def run(expert: str) -> Path:
        if expert not in runs:
            model = {"type": "wan", "model": str(base), "expert": expert}
            runs[expert] = train_run(lora_recipe(tmp_path_factory.mktemp(expert), shapes_clips, model, LORA, seed=SEED))
        return runs[expert]

    return run


def noise() -> torch.Tensor:
    return torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def theirs(pipeline: Any) -> torch.Tensor:
    with torch.no_grad():
        return pipeline(
            PROMPTS, height=32, width=32, num_frames=5, num_inference_steps=STEPS, guidance_scale=1.0,
            latents=noise(), output_type="latent",
        ).frames  # fmt: skip


def times_of(pipeline: Any) -> torch.Tensor:
    from reelwright.diffusion.schedule import FlowSchedule

    pipeline.scheduler.set_timesteps(STEPS)
    return flow_times(pipeline.scheduler.sigmas, FlowSchedule(3.0))


def load_files(pipeline: Any, files: dict[str, Path]) -> None:
    for expert, path in files.items():
        pipeline.load_lora_weights(path, load_into_transformer_2=expert == "low")


def exported(run: Path, folder: Path, form: str = "lora") -> dict[str, Path]:
    """Expert -> file."""
    made = export_model(str(run), folder / f"{form}.safetensors", form)
    expert = Recipe.load(run / "recipe.yaml").model.plain()["expert"]
    if expert != "both":
        assert made.files == (f"{form}.safetensors",) and made.path == folder / f"{form}.safetensors"
        return {expert: made.path}
    assert made.files == (f"{form}-high.safetensors", f"{form}-low.safetensors") and made.path == folder
    assert made.num_bytes == sum((folder / name).stat().st_size for name in made.files)
    return {name: folder / f"{form}-{name}.safetensors" for name in EXPERTS}


@pytest.mark.parametrize("expert", ["high", pytest.param("low", marks=pytest.mark.full), "both"])
@pytest.mark.parametrize("form", ["lora", "comfyui"])
def test_diffusers_loads_what_was_trained(lora, base, tmp_path, expert, form):
    pipeline = open_pipeline("WanPipeline", base)
    bare, times = theirs(pipeline), times_of(pipeline)
    load_files(pipeline, exported(lora(expert), tmp_path, form))
    ours = latents_of(str(lora(expert)), noise(), times)
    assert (ours - theirs(pipeline)).abs().max() <= 1e-4 < 1e-2 < (ours - bare).abs().max()


@pytest.mark.parametrize("expert", ["high", "low", "both"])
def test_the_merged_export_is_a_pipeline(lora, base, tmp_path, expert):
    export_model(str(lora(expert)), tmp_path / "merged")
    pipeline = open_pipeline("WanPipeline", tmp_path / "merged")
    ours = latents_of(str(lora(expert)), noise(), times_of(pipeline))
    assert (ours - theirs(pipeline)).abs().max() <= 1e-4
    assert (ours - latents_of(str(tmp_path / "merged"), noise(), times_of(pipeline))).abs().max() <= 1e-4
    for name, folder in EXPERTS.items():
        place = Path(folder) / "diffusion_pytorch_model.safetensors"
        same = (tmp_path / "merged" / place).read_bytes() == (base / place).read_bytes()
        assert same == (expert not in (name, "both"))


def bare_model(base: Path, folder: Path, expert: str) -> LoadedModel:
    recipe = family_recipe(
        folder, "wan", base, model={"expert": expert}, data={"frames": 5},
        sampling={"guidance": 1.0, "sampler": "euler", "steps": STEPS},
    )  # fmt: skip
    return LoadedModel(build_bundle(recipe), recipe, str(base), None, "")


@pytest.mark.parametrize("form", ["lora", "comfyui"])
@pytest.mark.parametrize("loaded_for", ["both", "high", "low"])
def test_files_are_read_back_for_their_expert(lora, base, tmp_path, form, loaded_for):
    """Whichever expert the model at hand is set up to train."""
    from family_parity import our_latents

    times = times_of(open_pipeline("WanPipeline", base))
    files = exported(lora("both"), tmp_path, form)
    loaded = with_loras(bare_model(base, tmp_path, loaded_for), [str(path) for path in files.values()])
    assert [entry["file"] for entry in loaded.loras] == [f"{path}:{name}" for name, path in files.items()]
    loaded.bundle.denoiser.eval()
    made = our_latents(loaded.bundle, loaded.recipe, PROMPTS, NEGATIVE, noise(), times)
    assert (made - latents_of(str(lora("both")), noise(), times)).abs().max() <= 1e-4


def test_a_file_of_others_needs_the_expert_named(lora, base, tmp_path):
    path = exported(lora("low"), tmp_path)["low"]
    foreign = tmp_path / "foreign.safetensors"
    save_file(load_file(path), foreign)
    with pytest.raises(UsageError, match=r"give .*foreign.safetensors:high or .*foreign.safetensors:low, or both"):
        with_loras(bare_model(base, tmp_path, "both"), [f"{foreign}:0.5"])
    both = with_loras(bare_model(base, tmp_path, "both"), [f"{foreign}:low:0.5", f"{foreign}:high", f"{path}:0.5"])
    assert [(entry["file"], entry["scale"]) for entry in both.loras] == [
        (f"{foreign}:low", 0.5),
        (f"{foreign}:high", 1.0),
        (f"{path}:low", 0.5),
    ]
    with pytest.raises(UsageError, match="no such file"):
        with_loras(bare_model(base, tmp_path, "both"), [f"{tmp_path}/none.safetensors:low"])


# -- both experts in turns


def both_recipe(base: Path, folder: Path, clips: Path) -> Path:
    return lora_recipe(folder, clips, {"type": "wan", "model": str(base), "expert": "both"}, LORA, seed=SEED)


@pytest.fixture(scope="module")
def both(base, tmp_path_factory, shapes_clips) -> Path:
    return train_run(both_recipe(base, tmp_path_factory.mktemp("turns"), shapes_clips), *EVERY_STEP)


def tensors_at(run: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:07d}" / f"{name}.safetensors")


def test_a_step_trains_the_expert_whose_turn_it_is_and_leaves_the_other(both, base, tmp_path):
    recipe = Recipe.load(both / "recipe.yaml")
    bundle = build_bundle(recipe, frozen_text_width=32)
    order = []
    for step in range(1, 5):  # what checkpoint `step` holds and what the next step makes of it
        before, after = (tensors_at(both, number) for number in (step, step + 1))
        moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
        high = objective_of_step(bundle, recipe.seed, step).interval[1] == 1.0
        assert moved == {"transformer" if high else "transformer_2"}
        counts = tensors_at(both, step + 1, "optimizer")
        taken = {name.split(".")[2]: int(v) for name, v in counts.items() if name.startswith("step.")}
        assert sum(taken.values()) == step + 1
        order += moved
    assert order == ["transformer", "transformer_2", "transformer_2", "transformer"]


def test_interrupted_equals_uninterrupted(both, base, tmp_path, shapes_clips):
    path = both_recipe(base, tmp_path, shapes_clips)

    def stop(done: int, *_: Any) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    first = train(Recipe.load(path, EVERY_STEP), say=lambda _: None, on_step=stop)
    assert (first.step, first.interrupted) == (3, "SIGINT")
    second = train(Recipe.load(path, EVERY_STEP), say=lambda _: None)
    for step in range(1, 6):
        folders = [run / "checkpoints" / f"step-{step:07d}" for run in (second.run_dir, both)]
        for file in sorted(folders[1].glob("*.safetensors")):
            assert file.read_bytes() == (folders[0] / file.name).read_bytes(), (step, file.name)


@pytest.mark.full
def test_two_processes_take_the_same_turns(both, base, tmp_path, shapes_clips):
    path = both_recipe(base, tmp_path, shapes_clips)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "reelwright"]
    environment = {**child_environment(), "OMP_NUM_THREADS": "1"}
    overrides = [word for word in EVERY_STEP if "dropout" not in word]  # drawn by each process for itself
    done = subprocess.run(
        [*command, "train", str(path), *overrides], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "2 processes" in done.stderr, done.stderr
    alone = train_run(both_recipe(base, tmp_path / "alone", shapes_clips), *overrides)
    for step in range(1, 6):
        one, two = tensors_at(alone, step), tensors_at(tmp_path / "run", step)
        # AdamW makes a whole step, 0.02, of a gradient however small, and of its rounding too: few values may take one
        apart = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
        assert (apart > 1e-3).float().mean() <= 0.01 and apart.max() <= 2 * 0.02 * step, step


# -- the commands


def full_recipe(folder: Path, clips: Path, model: dict[str, Any], side: int) -> Path:
    """Full fine-tuning of 2 steps."""
    path = lora_recipe(folder, clips, model, {})
    values = Recipe.load(path).plain()
    values["train"] |= {"lora": None, "steps": 2, "save_every": 1, "evaluate_every": 2, "evaluate_samples": 2}
    values["data"] |= {"width": side, "height": side}
    path.write_text(to_yaml(values))
    return path


@pytest.mark.parametrize("expert", ["high", pytest.param("low", marks=pytest.mark.full)])
def test_an_expert_alone_from_the_clips_to_the_pipeline(expert, base, shapes_clips, tmp_path, run_cli):
    recipe = full_recipe(tmp_path, shapes_clips, {"type": "wan", "model": str(base), "expert": expert}, 32)
    for command in (("prepare", recipe), ("train", recipe), ("train", recipe, "train.steps=3")):
        done = run_cli(*command)
        assert done.code == 0, done.err
    assert "done: 3 steps" in done.err and "the other expert is not loaded" in done.err
    run, video = tmp_path / "run", tmp_path / "video.mp4"
    assert not list((run / "samples").glob("*.mp4")) and (run / "checkpoints" / "final").is_dir()
    for model in (run, run / "checkpoints" / "final"):
        video = tmp_path / f"{model.name}.mp4"
        made = run_cli("generate", model, "--prompt", "a red circle moves left", "--steps", 3, "--out", video)
        assert made.code == 0, made.err
        assert read_frames(video)[0].shape == (5, 32, 32, 3)
    assert run_cli("evaluate", run, "--metrics", "heldout").code == 0
    out = tmp_path / "pipeline"
    assert run_cli("export", run, out).code == 0
    trained, other = (EXPERTS[name] for name in (("high", "low") if expert == "high" else ("low", "high")))
    place = "diffusion_pytorch_model.safetensors"
    assert (out / other / place).read_bytes() == (base / other / place).read_bytes()
    assert (out / trained / place).read_bytes() != (base / trained / place).read_bytes()
    pipeline = open_pipeline("WanPipeline", out)
    times = times_of(pipeline)
    assert (latents_of(str(run), noise(), times) - theirs(pipeline)).abs().max() <= 1e-4
    assert (latents_of(str(out), noise(), times) - theirs(pipeline)).abs().max() <= 1e-4


def test_both_experts_trained_whole_are_a_pipeline(base, shapes_clips, tmp_path):
    recipe = full_recipe(tmp_path, shapes_clips, {"type": "wan", "model": str(base), "expert": "both"}, 32)
    run = train_run(recipe, "train.steps=4", "train.save_every=4")
    assert list((run / "samples").glob("*.mp4"))
    export_model(str(run), tmp_path / "pipeline")
    pipeline = open_pipeline("WanPipeline", tmp_path / "pipeline")
    assert (latents_of(str(run), noise(), times_of(pipeline)) - theirs(pipeline)).abs().max() <= 1e-4


def test_5b_from_the_clips_to_a_video(shapes_clips, tmp_path, run_cli):
    recipe = full_recipe(tmp_path, shapes_clips, {"type": "wan", "model": str(save_5b(tmp_path / "model"))}, 64)
    for command in (("prepare", recipe), ("train", recipe)):
        done = run_cli(*command)
        assert done.code == 0, done.err
    video = tmp_path / "video.mp4"
    made = run_cli("generate", tmp_path / "run", "--prompt", "a red circle moves left", "--steps", 2, "--out", video)
    assert made.code == 0, made.err
    assert read_frames(video)[0].shape == (5, 64, 64, 3)
    export_model(str(tmp_path / "run"), tmp_path / "pipeline")
    assert open_pipeline("WanPipeline", tmp_path / "pipeline").config.expand_timesteps


def test_generate_with_loras_and_again_from_the_clip(lora, base, tmp_path, run_cli):
    files = exported(lora("both"), tmp_path)
    recipe = family_recipe(
        tmp_path, "wan", base, model={"expert": "both"}, data={"frames": 5}, sampling={"steps": 3, "sampler": "euler"}
    )
    recipe.save(tmp_path / "bare.yaml")
    foreign = tmp_path / "foreign.safetensors"
    save_file(load_file(files["low"]), foreign)
    clip = tmp_path / "a.mp4"
    words = ("--prompt", "a red ball falls", "--lora", f"{files['high']}:0.5", "--lora", f"{foreign}:low:0.5")
    made = run_cli("generate", tmp_path / "bare.yaml", *words, "--out", clip)
    assert made.code == 0, made.err
    assert [entry["layers"] for entry in read_recipe(clip)["loras"]] == [20, 20]
    again = run_cli("generate", tmp_path / "bare.yaml", "--from", clip, "--out", tmp_path / "b.mp4")
    assert again.code == 0 and "other weights" not in again.err, again.err
    frames = [read_frames(tmp_path / f"{name}.mp4")[0].tobytes() for name in "ab"]
    assert frames[0] == frames[1]


def test_the_other_expert_must_be_there_to_generate(lora, base, tmp_path):
    """The very folder the recipe names, without the network that did not train."""
    kept = tmp_path / "kept"
    shutil.move(base / "transformer_2", kept)
    try:
        with pytest.raises(UserError, match="transformer_2"):
            latents_of(str(lora("high")), noise(), torch.tensor([1.0, 0.0], dtype=torch.float64))
    finally:
        shutil.move(kept, base / "transformer_2")
