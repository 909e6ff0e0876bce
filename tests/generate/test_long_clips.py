"""Videos longer than a model was trained on: in windows, with no more frames in a call than it was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reelwright.generate import Compute, Request, fitting_latent_size, generate_videos
from reelwright.loading import LoadedModel, load_model
from reelwright.pretrained.cogvideox import CogVideoXConfig
from reelwright.recipe import SamplingConfig
from reelwright.types import Size, UsageError
from reelwright.video.write import read_frames, read_recipe
from tiny_models import shake, tiny_bundle, tiny_recipe

torch.set_num_threads(1)

PROMPT = "a red circle moves left"
CPU = Compute(torch.device("cpu"))
TRANSFORMER = "model={type: video_transformer, width: 24, depth: 2, heads: 2, positions: [2, 2], temporal: %s}"


@pytest.fixture(scope="module")
def trained(trained_run: Path) -> Any:
    return load_model(str(trained_run))


def made(folder: Path, *overrides: str) -> LoadedModel:
    """A model of random weights that all matter."""
    recipe = tiny_recipe(folder, *overrides)
    bundle = tiny_bundle(recipe)
    shake(bundle.denoiser)
    return LoadedModel(bundle, recipe, "tiny", None, "random")


def videos(model: LoadedModel, frames: int, **sampling: Any) -> np.ndarray:
    config = SamplingConfig(steps=2, **sampling)
    size = replace(model.recipe.size, frames=frames)
    return generate_videos(model.bundle, [PROMPT], [0], size, config, CPU)[0]


def calls(model: LoadedModel) -> list[tuple[int, ...]]:
    """Filled with the shape of every x_t that the denoiser sees."""
    seen: list[tuple[int, ...]] = []
    model.bundle.denoiser.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    return seen


def test_120_frames_from_a_model_trained_on_8(run_cli, trained_run, tmp_path):
    out = tmp_path / "long.mp4"
    options = ("--prompt", PROMPT, "--frames", 120, "--width", 64, "--height", 64)
    done = run_cli("generate", trained_run, *options, "--out", out)
    assert done.code == 0, done.err
    assert "120 frames go through the model in 29 windows of 8, each blended over 1 of its 2 latent frames" in done.err
    frames, fps = read_frames(out)
    assert frames.shape == (120, 64, 64, 3) and fps == 8
    assert frames.astype(float).std(axis=(1, 2, 3)).min() > 0
    recipe = read_recipe(out)
    assert (recipe["frames"], recipe["window_frames"]) == (120, 8)
    again = tmp_path / "again.mp4"
    assert run_cli("generate", trained_run, "--from", out, "--out", again).code == 0
    assert again.read_bytes() == out.read_bytes()


def test_nothing_is_said_or_cut_where_the_model_knows_the_length(trained, tmp_path):
    request = Request((PROMPT,), frames=8)
    assert request.sampling(trained).window_frames == 0
    assert Request((PROMPT,), frames=12).sampling(trained).window_frames == 8
    assert Request((PROMPT,), frames=12, window_frames=0).sampling(trained).window_frames == 0


@pytest.mark.parametrize("window", [8, 12, 400])
def test_a_window_over_all_of_it_is_the_plain_video(trained, window):
    assert np.array_equal(videos(trained, 8, window_frames=window), videos(trained, 8))


@pytest.mark.parametrize("model", [
    "model={type: dit, width: 32, depth: 2, heads: 2}",
    "model={type: dit, width: 32, depth: 2, heads: 2, layout: factorised}",
    "model={type: dit, width: 32, depth: 2, heads: 2, patch: [2, 1, 1]}",
    TRANSFORMER % "true",
    TRANSFORMER % "false",
    "model={type: unet3d, width: 8, multipliers: [1], groups: 4}",
])  # fmt: skip
def test_no_call_is_longer_than_what_was_trained(tmp_path, model):
    """120 frames, 30 latents, of which a call sees the 2 that a training clip has (and those twice, for guidance)."""
    loaded = made(tmp_path, model)
    seen = calls(loaded)
    video = videos(loaded, 120, window_frames=8)
    assert video.shape == (120, 16, 16, 3)
    assert {shape[2] for shape in seen} == {2} and {shape[0] for shape in seen} == {2}


def test_frames_that_know_nothing_of_one_another_share_none(tmp_path):
    apart, mixing = (made(tmp_path, TRANSFORMER % temporal) for temporal in ("false", "true"))
    whole, seen = videos(apart, 64, window_frames=0), calls(apart)
    windows = videos(apart, 64, window_frames=16)
    assert len(seen) == 2 * 4 and np.abs(windows.astype(int) - whole).max() <= 1
    seen = calls(mixing)
    assert np.abs(videos(mixing, 64, window_frames=16).astype(int) - videos(mixing, 64)).max() > 1
    assert len([shape for shape in seen if shape[2] == 4]) == 2 * 7


def test_repeated_noise_is_another_video_and_repeats(trained):
    fresh, repeated = (videos(trained, 32, window_frames=8, window_noise=noise) for noise in ("fresh", "repeated"))
    assert not np.array_equal(fresh, repeated)
    assert np.array_equal(repeated, videos(trained, 32, window_frames=8, window_noise="repeated"))
    short = (videos(trained, 8, window_frames=8, window_noise=noise) for noise in ("fresh", "repeated"))
    assert np.array_equal(*short)


def test_the_window_has_to_fit_and_the_video_only_the_codec(tmp_path):
    """Latent patches of 4 frames: 5 latents fit in windows of 4, not by themselves."""
    model = made(tmp_path, "model={type: dit, width: 32, depth: 2, heads: 2, patch: [4, 1, 1]}", "data.frames=16")
    size = Size(20, 16, 16)
    with pytest.raises(UsageError, match="frames = 5 latents do not fit model.patch = 4"):
        fitting_latent_size(model.bundle, size)
    assert fitting_latent_size(model.bundle, size, SamplingConfig(window_frames=16)) == Size(5, 2, 2)
    assert videos(model, 20, window_frames=16).shape == (20, 16, 16, 3)
    with pytest.raises(UsageError, match="frames = 2 latents do not fit model.patch = 4"):
        fitting_latent_size(model.bundle, size, SamplingConfig(window_frames=8))
    with pytest.raises(UsageError, match="window_frames = 7: frames = 7 does not fit the codec"):
        fitting_latent_size(model.bundle, size, SamplingConfig(window_frames=7))


def test_learned_positions_take_their_own_number_of_frames():
    config = {
        "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "time_embed_dim": 8, "sample_frames": 9,
        "sample_height": 4, "sample_width": 4, "use_learned_positional_embeddings": True,
        "use_rotary_positional_embeddings": True,
    }  # fmt: skip
    denoiser = CogVideoXConfig.parse({"config": config}).build(channels=6, text_width=10)
    denoiser.check_size(Size(3, 4, 4))
    for other in (Size(4, 4, 4), Size(3, 4, 6)):
        with pytest.raises(ValueError, match="learned positions for 3x4x4 alone.*windows of so many frames"):
            denoiser.check_size(other)
