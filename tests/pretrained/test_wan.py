"""Wan against diffusers' own pipeline, and its training target against its scheduler."""

from pathlib import Path
from typing import Any

import pytest
import torch

from family_parity import (
    CPU,
    NEGATIVE,
    PROMPTS,
    family_recipe,
    flow_times,
    load,
    noised_by_scheduler,
    open_pipeline,
    our_latents,
)
from reelwright.bundle import DenoisingLoss
from reelwright.generate import encode_prompts, walk_times
from reelwright.pretrained.wan import WanConfig
from reelwright.types import Size, Text
from tiny_families import save_wan, unipc

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def pipeline(wan) -> Any:
    return open_pipeline("WanPipeline", wan)


def clip(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, 9, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_same_latents_and_video_as_the_pipeline(wan, pipeline, tmp_path, guidance):
    recipe = family_recipe(tmp_path, "wan", wan, sampling={"sampler": "euler", "guidance": guidance, "steps": 4})
    bundle = load(recipe)
    latents = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def theirs(kind: str) -> torch.Tensor:
        with torch.no_grad():
            return pipeline(
                PROMPTS, [NEGATIVE] * 2, height=32, width=32, num_frames=9, num_inference_steps=4,
                guidance_scale=guidance, latents=latents.clone(), output_type=kind, max_sequence_length=512,
            ).frames  # fmt: skip

    expected = theirs("latent")
    times = flow_times(pipeline.scheduler.sigmas, bundle.objective.schedule)
    ours = our_latents(bundle, recipe, PROMPTS, NEGATIVE, latents, times)
    assert (ours - expected).abs().max() <= 1e-4 and (ours - latents).abs().max() > 0.1
    decoded = bundle.codec.decode(ours).transpose(1, 2) / 2 + 0.5  # b f c h w in [0, 1]
    assert (decoded - theirs("pt")).abs().max() <= 1e-4


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_same_latents_as_published_with_unipc(tmp_path, guidance):
    """The scheduler of the published directories: nothing of the sampling but the guidance is named in the recipe."""
    model = save_wan(tmp_path / "model", unipc(3.0))
    recipe = family_recipe(tmp_path, "wan", model, sampling={"guidance": guidance})
    assert (recipe.sampling.sampler, recipe.sampling.spacing, recipe.sampling.steps) == ("unipc", "timesteps", 50)
    bundle, pipeline = load(recipe), open_pipeline("WanPipeline", model)
    latents = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = pipeline(
            PROMPTS, [NEGATIVE] * 2, height=32, width=32, num_frames=9, num_inference_steps=50,
            guidance_scale=guidance, latents=latents.clone(), output_type="latent", max_sequence_length=512,
        ).frames  # fmt: skip

    def ours(spacing: str) -> torch.Tensor:
        walk = recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"spacing": spacing})})
        times = walk_times(recipe.sampling, bundle.objective.schedule)
        return our_latents(bundle, walk, PROMPTS, NEGATIVE, latents, times)

    assert (ours("timesteps") - theirs).abs().max() <= 1e-4 and (theirs - latents).abs().max() > 0.1
    assert (ours("even") - theirs).abs().max() > 1e-4  # the same walk, but told of fractions of a timestep


@pytest.mark.parametrize(
    "groups",
    [
        {"sampling": {"sampler": "euler"}},
        {"sampling": {"sampler": "unipc", "shift_terminal": 0.1}},
        {"objective": {"schedule": "cosine", "prediction": "v", "shift": 1.0}},
        {"sampling": {"spacing": "even"}},
    ],
)
def test_a_recipe_that_walks_otherwise_walks_evenly(tmp_path, groups):
    """Whole timesteps are UniPC's on the flow: what a recipe said before there were any still holds."""
    model = save_wan(tmp_path / "model", unipc(3.0))
    assert family_recipe(tmp_path, "wan", model, **groups).sampling.spacing == "even"
    assert family_recipe(tmp_path, "wan", model, objective={"shift": 5.0}).sampling.spacing == "timesteps"


def test_the_same_embeddings_as_the_pipeline(wan, pipeline, tmp_path):
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=512)
    ours = encode_prompts(load(family_recipe(tmp_path, "wan", wan)), PROMPTS, CPU)
    for row, mask in enumerate(ours.mask):
        count = int(mask.sum())
        assert (ours.values[row, :count] - theirs[row, :count]).abs().max() <= 1e-5 and not theirs[row, count:].any()


def test_latents_are_normalised_as_the_model_knows_them(wan, pipeline, tmp_path):
    bundle = load(family_recipe(tmp_path, "wan", wan))
    with torch.no_grad():
        raw = pipeline.vae.encode(clip()).latent_dist
    config = pipeline.vae.config
    mean, std = (torch.tensor(values).view(1, 16, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    posterior = bundle.codec.encode(clip())
    assert posterior.logvar is not None and posterior.mean.shape == (2, 16, 3, 4, 4)
    assert (posterior.mean - (raw.mean - mean) / std).abs().max() <= 1e-4
    assert ((0.5 * posterior.logvar).exp() * std - raw.std).abs().max() <= 1e-4
    assert bundle.codec.compression.latent_size(Size(9, 32, 32)) == Size(3, 4, 4)
    with pytest.raises(ValueError, match="frames = 8 does not fit the codec.*use 5 or 9"):
        bundle.codec.compression.latent_size(Size(8, 32, 32))


def test_training_input_target_and_loss_are_those_of_flow_matching(wan, pipeline, tmp_path):
    """The scheduler's own corruption, the velocity noise - x0, mean squared error."""
    bundle = load(family_recipe(tmp_path, "wan", wan))
    at = noised_by_scheduler(pipeline, bundle, 16)
    text = encode_prompts(bundle, PROMPTS, CPU)
    with torch.no_grad():
        padded = torch.nn.functional.pad(text.values * text.mask[..., None], (0, 0, 0, 512 - text.values.shape[1]))
        prediction = pipeline.transformer(at.x_t, 1000 * at.sigmas, padded, return_dict=False)[0]
        ours = DenoisingLoss(bundle)(at.x0, at.noise, at.times.float(), text)
    assert torch.allclose(ours, ((prediction - (at.noise - at.x0)) ** 2).flatten(1).mean(1), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "count"),
    [({}, 14_288_491_584), ({"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, 1_418_996_800)],
)
def test_full_sizes(settings, count):
    with torch.device("meta"):
        model = WanConfig.parse({"config": settings}).build(channels=16, text_width=4096)
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_network_from_scratch_learns_and_checks_its_patches():
    small = {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 6, "out_channels": 6, "text_dim": 10,
        "freq_dim": 16, "ffn_dim": 16, "num_layers": 1,
    }  # fmt: skip
    model = WanConfig.parse({"config": small, "gradient_checkpointing": True}).build(channels=6, text_width=10).train()
    x = torch.randn(2, 6, 2, 4, 4)
    out = model(x, torch.rand(2), Text(torch.randn(2, 5, 10), torch.ones(2, 5).bool()))
    out.square().mean().backward()
    assert out.shape == x.shape and all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="width = 5 latents.*patches of 2; use 4 or 6"):
        model.check_size(Size(2, 4, 5))
