"""Every script of docs/extending.md does what its first line says."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from reelwright.diffusion.losses import LOSSES
from reelwright.diffusion.sampler import SAMPLERS
from reelwright.recipe import Recipe
from reelwright.video.write import read_frames

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
SCRIPTS = {
    re.match(r"# (\w+)\.py", code).group(1): code  # pyright: ignore[reportOptionalMemberAccess]
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
}


@pytest.fixture(autouse=True)
def _registries_as_before():
    losses, samplers, models = dict(LOSSES), dict(SAMPLERS), Recipe.model_fields["model"].annotation
    yield
    for registry, before in ((LOSSES, losses), (SAMPLERS, samplers)):
        registry.clear()
        registry.update(before)
    Recipe.model_fields["model"].annotation = models
    Recipe.model_rebuild(force=True)


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
    assert set(SCRIPTS) == {"charbonnier", "midpoint", "brightness", "convolution"}


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
