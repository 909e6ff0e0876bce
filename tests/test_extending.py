"""Every script of docs/extending.md does what its first line says."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from reelwright.bundle import build_codec
from reelwright.data.cache import Cache
from reelwright.data.config import DataConfig
from reelwright.data.dataset import read_manifest
from reelwright.data.decode import read_window
from reelwright.diffusion.losses import LOSSES
from reelwright.diffusion.sampler import SAMPLERS
from reelwright.prepare.encoding import encode_window
from reelwright.prepare.reading import manifest_key
from reelwright.recipe import Recipe
from reelwright.video.write import read_frames

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
SCRIPTS = {
    re.match(r"# (\w+)\.py", code).group(1): code  # pyright: ignore[reportOptionalMemberAccess]
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
}
REVERSED = ("data.augment=[{type: reverse}]", "data.variants=2")


@pytest.fixture(autouse=True)
def _registries_as_before():
    losses, samplers, models = dict(LOSSES), dict(SAMPLERS), Recipe.model_fields["model"].annotation
    augmentations = DataConfig.model_fields["augment"].annotation
    yield
    for registry, before in ((LOSSES, losses), (SAMPLERS, samplers)):
        registry.clear()
        registry.update(before)
    Recipe.model_fields["model"].annotation = models
    DataConfig.model_fields["augment"].annotation = augmentations
    for config in (DataConfig, Recipe):
        config.model_rebuild(force=True)


@pytest.fixture
def script(tmp_path, monkeypatch):
    def run(name: str, *arguments: object) -> Any:
        path = tmp_path / f"{name}.py"
        path.write_text(SCRIPTS[name], encoding="utf-8")
        monkeypatch.setattr(sys, "argv", [str(path), *(str(argument) for argument in arguments)])
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            return end.code or 0
        return 0

    return run


def test_no_script_is_left_out():
    assert set(SCRIPTS) == {"charbonnier", "midpoint", "brightness", "convolution", "reverse"}


def test_a_loss(script, write_recipe):
    recipe = write_recipe("train.steps=2", "train.save_every=2", "train.evaluate_every=0", "objective.loss=charbonnier")
    assert script("charbonnier", "train", recipe) == 0
    assert Recipe.load(recipe.parent / "run" / "recipe.yaml").objective.loss == "charbonnier"


def test_a_sampler(script, trained_run, tmp_path):
    out = tmp_path / "video.mp4"
    arguments = ("--prompt", "a red circle", "--sampler", "midpoint", "--steps", 2, "--out", out)
    assert script("midpoint", "generate", trained_run, *arguments) == 0
    assert read_frames(out)[0].shape == (8, 32, 32, 3)


def test_a_validation_loop(script, trained_run, capsys):
    assert script("brightness", trained_run) == 0
    assert re.findall(r"step-0+(\d+) \[[\d.]+, [\d.]+\]", capsys.readouterr().out) == ["4", "8"]


def test_a_base_model(script, write_recipe, tmp_path):
    recipe = write_recipe("train.steps=2", "train.save_every=2", "train.evaluate_every=2")
    values = recipe.read_text(encoding="utf-8")
    recipe.write_text(re.sub(r"model:\n(  .*\n)+", "model: {type: convolution, width: 8}\n", values), encoding="utf-8")
    assert script("convolution", "train", recipe) == 0
    out = tmp_path / "video.mp4"
    assert script("convolution", "generate", tmp_path / "run", "--prompt", "x", "--steps", 2, "--out", out) == 0
    assert read_frames(out)[0].shape == (8, 32, 32, 3)


def test_an_augmentation(script, write_recipe, tmp_path):
    path = write_recipe("train.steps=2", "train.save_every=2", "train.evaluate_every=0", cache=tmp_path / "cache")
    assert script("reverse", "prepare", path, *REVERSED) == 0
    assert script("reverse", "train", path, *REVERSED) == 0
    recipe = Recipe.load(tmp_path / "run" / "recipe.yaml")
    cache, codec, cpu = Cache(recipe.cache_dir), build_codec(recipe), torch.device("cpu")
    training = [sample for sample in read_manifest(cache, manifest_key(recipe)).samples if sample.split == "train"]
    assert len(training) > 10
    for sample in training:
        video = recipe.data.path / "videos" / sample.clip
        frames = read_window(video, sample.size, recipe.data.fps, sample.start_seconds)
        plain, backwards = (cache.get(key)["mean"] for key in sample.latent_keys)
        assert torch.equal(plain, encode_window(codec, frames, "float32", cpu)["mean"])
        assert torch.equal(backwards, encode_window(codec, frames[::-1].copy(), "float32", cpu)["mean"])
        assert not torch.equal(plain, backwards)
    out = tmp_path / "video.mp4"
    assert script("reverse", "generate", tmp_path / "run", "--prompt", "x", "--steps", 2, "--out", out) == 0
    assert read_frames(out)[0].shape == (8, 32, 32, 3)


def test_without_its_script_an_augmentation_is_refused(run_cli, write_recipe):
    path = write_recipe()
    for command in ("prepare", "train", "inspect"):
        said = run_cli(command, path, *REVERSED)
        assert (said.code, said.out) == (2, "")
        assert " ".join(said.err.split()).endswith(
            "data.augment.0.type: 'reverse' is not one of them; known types: flip, colour, hue, crop, speed"
        )
