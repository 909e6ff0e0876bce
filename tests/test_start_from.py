"""A run that begins with another's weights: all of them trained, some of them, or adapters beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reelwright.export import export_model
from reelwright.generate import Compute, generate_videos
from reelwright.loading import load_model
from reelwright.recipe import Recipe
from reelwright.train import train
from reelwright.types import UsageError

torch.set_num_threads(1)


def frames(model: Any) -> bytes:
    loaded = load_model(str(model))
    sampling = loaded.recipe.sampling.model_copy(update={"steps": 2, "guidance": 1.0})
    compute = Compute(torch.device("cpu"), "fp32")
    return np.stack(
        generate_videos(loaded.bundle, ["a red circle"], [3], loaded.recipe.size, sampling, compute)
    ).tobytes()


def weights(run: Path, step: int, stem: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:07d}" / f"{stem}.safetensors")


@pytest.fixture
def begin(write_recipe, trained_run, tmp_path) -> Any:
    """`begin("train.freeze=[text]", run="a")` trains 4 steps from the tiny run's weights, on fewer clips."""

    def go(*overrides: str, run: str = "second", say: Any = lambda _: None) -> Path:
        folder = tmp_path / run
        only = "data.only=[" + ",".join(f"{number:05d}.mp4" for number in range(12)) + "]"
        settings = (f"train.start_from={trained_run}", "train.steps=4", only, *overrides)
        path = write_recipe(*settings, folder=folder, cache=tmp_path / "cache")
        return train(Recipe.load(path), say=say).run_dir

    return go


def test_all_weights_go_on_from_there(begin, trained_run):
    run = begin("train.learning_rate=0", "train.ema=null")
    before, after = load_model(str(trained_run)), load_model(str(run))
    for name in ("denoiser", "text"):
        old, new = getattr(before.bundle, name).state_dict(), getattr(after.bundle, name).state_dict()
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert torch.equal(before.bundle.codec.state_dict()["mean"], after.bundle.codec.state_dict()["mean"])
    assert before.bundle.text.tokenizer_json() == after.bundle.text.tokenizer_json()
    assert frames(run) == frames(trained_run)


def test_lora_beside_a_native_model(begin, trained_run, tmp_path):
    said: list[str] = []
    run = begin("train.lora.rank=2", "train.learning_rate=0.05", say=said.append)
    assert any(line.startswith("LoRA beside ") for line in said)
    held = weights(run, 4)
    assert held and all(".lora_" in name for name in held)
    adapted = frames(run)
    assert adapted != frames(trained_run) and adapted == frames(run / "checkpoints" / "final")
    export_model(str(run), tmp_path / "whole")
    assert load_model(str(tmp_path / "whole")).recipe.train.lora is None
    merged = np.frombuffer(frames(tmp_path / "whole"), dtype=np.uint8).astype(int)
    assert abs(merged - np.frombuffer(adapted, dtype=np.uint8)).max() <= 1  # a value on the edge of rounding
    export_model(str(run), tmp_path / "lora.safetensors", "lora")
    assert len(load_file(tmp_path / "lora.safetensors")) == len(held) // 2 * 2
    with pytest.raises(UsageError, match="ComfyUI knows no model of this architecture"):
        export_model(str(run), tmp_path / "comfyui.safetensors", "comfyui")


@pytest.mark.parametrize(
    ("setting", "still"),
    [
        ("train.freeze=[text,denoiser.blocks.0]", ("text.", "denoiser.blocks.0.")),
        ("train.train_only=[denoiser.blocks.1]", None),
    ],
)
def test_frozen_weights_stay_and_are_kept(begin, trained_run, setting, still):
    run = begin(setting, "train.learning_rate=0.01")
    held, averages = weights(run, 4), weights(run, 4, "ema")
    origin = weights(trained_run, 8, "ema")
    moved = {name for name in held if not torch.equal(held[name], origin[name])}
    expected = {n for n in held if (n.startswith("denoiser.blocks.1.") if still is None else not n.startswith(still))}
    assert moved == expected == set(averages) and held.keys() == origin.keys()
    loaded = load_model(str(run))
    for name, value in loaded.bundle.denoiser.state_dict().items():
        full = f"denoiser.{name}"
        assert torch.equal(value, averages.get(full, held[full]))
    again = begin(setting, "train.learning_rate=0.01", "train.steps=5")  # resumes
    assert (again / "checkpoints" / "step-0000005").is_dir()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.width=24",), "train.start_from: .* of another shape .*model and text must be as they were there"),
        (("model.depth=3",), "train.start_from: .*missing .*denoiser.blocks.2"),
        (("codec.channels=16",), "its codec is .*not .*'channels': 16"),
        (("text.width=16",), "its text is .*not .*'width': 16"),
        (("train.start_from=nowhere",), "'nowhere': not a model"),
        (("train.freeze=[encoder]",), "train.freeze: 'encoder' fits no weight of the model; its parts are denoiser"),
        (("train.freeze=[denoiser,text]",), "no weight is left to train"),
        (("train.freeze=[text]", "train.train_only=[denoiser]"), "freeze and train_only: give one"),
        (("train.freeze=[text]", "train.lora.rank=2"), "no effect with lora"),
        (("train.lora.rank=2", "train.lora.targets=[to_q]"), "'to_q' fits no linear layer of the model; it has"),
    ],
)
def test_what_does_not_fit(begin, overrides, message):
    with pytest.raises(UsageError, match=message):
        begin(*overrides)
