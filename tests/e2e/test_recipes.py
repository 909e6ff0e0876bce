"""Every recipe that is shipped, end to end at toy size, by overrides alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reelwright.recipe import Recipe
from reelwright.video.write import read_frames
from tiny_clip import save_tiny_clip
from tiny_vae import save_tiny_vae

RECIPES = Path(__file__).parents[2] / "recipes"
TOY = (
    "data.format=auto", "data.width=32", "data.height=32", "data.frames=8", "data.fps=8", "data.validation=0.2",
    "train.steps=2", "train.batch_size=4", "train.precision=fp32", "train.device=cpu", "train.save_every=2",
    "train.evaluate_every=2", "train.evaluate_samples=2", "train.sample_every=0", "train.sample_prompts=1",
    "train.warmup_steps=0", "train.tensorboard=false",
)  # fmt: skip
SMALL_DIT = ("model.width=24", "model.depth=2", "model.heads=2")
FRAME_PARTS = ("codec.model={vae}", "text.model={clip}")
SMALLER: dict[str, tuple[str, ...]] = {
    "shapes-cpu": (
        "codec.block=[8,16,16]",
        "codec.content=8",
        "codec.content_channels=6",
        "codec.motion_channels=8",
        "codec.patch_channels=24",
        "codec.width=24",
        "codec.heads=2",
        "codec.steps=3",
        "model.parts=[6,8]",
        *SMALL_DIT,
    ),
    "eight-clips": ("data.only=null", "codec.channels=32", *SMALL_DIT),
    "msrvtt-transformer": (*FRAME_PARTS, *SMALL_DIT),
    "msrvtt-unet3d": (*FRAME_PARTS, "model.width=8", "model.groups=4", "model.multipliers=[1,2]"),
    "dit-20s": (*FRAME_PARTS, *SMALL_DIT),
    "hunyuan-small": ("model.config.num_layers=1", "model.config.num_single_layers=1"),
}


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return {"vae": save_tiny_vae(folder / "vae"), "clip": save_tiny_clip(folder / "clip")}


@pytest.mark.parametrize("name", SMALLER)
def test_prepare_train_and_generate(name, parts, shapes_clips, tmp_path, run_cli):
    recipe = RECIPES / f"{name}.yaml"
    overrides: list[Any] = [
        f"run_dir={tmp_path / 'run'}",
        f"cache_dir={tmp_path / 'cache'}",
        f"data.path={shapes_clips}",
    ]
    overrides += [override.format(**parts) for override in (*TOY, *SMALLER[name])]
    if "epochs" in recipe.read_text(encoding="utf-8"):
        overrides.append("train.epochs=null")
    for command in ("prepare", "train"):
        done = run_cli(command, recipe, *overrides)
        assert done.code == 0, done.err
    video = tmp_path / "video.mp4"
    made = run_cli("generate", tmp_path / "run", "--prompt", "a red circle moves left", "--steps", 2, "--out", video)
    assert made.code == 0, made.err
    frames, _ = read_frames(video)
    assert frames.shape == (8, 32, 32, 3)


def test_every_recipe_parses_and_is_tried_somewhere():
    """Families are run with tiny pipelines of their own in tests/pretrained."""
    names = {path.stem for path in RECIPES.glob("*.yaml")}
    assert names >= set(SMALLER)
    for path in RECIPES.glob("*.yaml"):
        recipe = Recipe.load(path)
        assert path.stem in SMALLER or getattr(recipe.model, "diffusers_class", None), path
