"""LTX-Video against diffusers' own pipeline, for both kinds of decoder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from family_parity import CPU, NEGATIVE, PROMPTS, family_recipe, flow_times, load, open_pipeline, our_latents
from reelwright.bundle import DenoisingLoss, build_bundle
from reelwright.generate import encode_prompts, walk_times
from reelwright.pretrained.ltx import LTXConfig
from reelwright.types import Compression, Size, Text, UsageError
from tiny_ltx import DECODERS, save_ltx

torch.set_num_threads(1)
FPS = 24.0
SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ltx")
    return {decoder: save_ltx(folder / decoder, decoder) for decoder in DECODERS}


@pytest.fixture(scope="module")
def pipelines(saved) -> dict[str, Any]:
    return {decoder: open_pipeline("LTXPipeline", path) for decoder, path in saved.items()}


def recipe_of(tmp_path: Path, model: Path, **groups: Any) -> Any:
    data = {"fps": FPS, "width": 64, **groups.pop("data", {})}
    return family_recipe(tmp_path, "ltx", model, data=data, **groups)


def published_mu(latents: int) -> float:
    from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

    return calculate_shift(latents, 1024, 4096, 0.95, 2.05)


def packed(latents: torch.Tensor) -> torch.Tensor:
    """`b c f h w` -> `b f*h*w c`, as the pipeline wants them."""
    return latents.flatten(2).mT.contiguous()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_same_latents_and_video_as_the_pipeline(saved, pipelines, tmp_path, decoder, guidance):
    shift = math.exp(published_mu(3 * 4 * 8))  # of these latents: the recipe's own counts those of the published codec
    sampling = {"guidance": guidance, "steps": 4}
    recipe = recipe_of(tmp_path, saved[decoder], sampling=sampling, objective={"shift": shift})
    bundle, pipeline = load(recipe), pipelines[decoder]
    latents = torch.randn(2, 8, 3, 4, 8, generator=torch.Generator().manual_seed(0))

    def theirs(kind: str) -> torch.Tensor:
        with torch.no_grad():
            torch.manual_seed(0)  # of the decoder's own noise
            return pipeline(
                PROMPTS, [NEGATIVE] * 2, height=32, width=64, num_frames=9, frame_rate=FPS, num_inference_steps=4,
                guidance_scale=guidance, latents=packed(latents), output_type=kind,
                generator=torch.Generator().manual_seed(9),
            ).frames  # fmt: skip

    expected = theirs("latent")
    times = walk_times(recipe.sampling, bundle.objective.schedule)
    ours = our_latents(bundle, recipe, PROMPTS, NEGATIVE, latents, times)
    assert (packed(ours) - expected).abs().max() <= 1e-4 and (ours - latents).abs().max() > 0.1
    video = theirs("pt")
    decoded = bundle.codec.decode(ours).transpose(1, 2) / 2 + 0.5  # b f c h w in [0, 1]
    assert decoded.shape == video.shape == (2, 9, 3, 32, 64) and (decoded - video).abs().max() <= 1e-4


def test_a_decoder_that_denoises(saved, pipelines, tmp_path):
    """It is told a time and given noise; the same latents give the same video, whatever was drawn before."""
    settings = {"decode_timestep": 0.05, "decode_noise": 0.025}
    codec = load(recipe_of(tmp_path, saved["0.9.1"], codec=settings)).codec
    plain = load(recipe_of(tmp_path, saved["0.9.1"])).codec
    latents = torch.randn(1, 8, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    ours = codec.decode(latents)
    with torch.no_grad():
        vae = pipelines["0.9.1"].vae
        raw = pipelines["0.9.1"]._denormalize_latents(latents, vae.latents_mean, vae.latents_std)
        noise = torch.randn(raw.shape, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        theirs = vae.decode(0.975 * raw + 0.025 * noise, torch.tensor([0.05])).sample.clamp(-1, 1)
    assert (ours - theirs).abs().max() <= 1e-5 and (ours - plain.decode(latents)).abs().max() > 1e-3
    before = torch.get_rng_state()
    assert torch.equal(codec.decode(latents), ours) and torch.equal(torch.get_rng_state(), before)
    assert (codec.decode(latents.expand(2, -1, -1, -1, -1)) - ours).abs().max() <= 1e-6
    with pytest.raises(UsageError, match="codec.decode_timestep, codec.decode_noise: .* removes no noise"):
        load(recipe_of(tmp_path, saved["0.9.0"], codec=settings))


def test_the_same_embeddings_as_the_pipeline(saved, pipelines, tmp_path):
    """The encoder sees the padding, the transformer does not."""
    ours = encode_prompts(load(recipe_of(tmp_path, saved["0.9.0"])), PROMPTS, CPU)
    with torch.no_grad():
        theirs, mask, _, _ = pipelines["0.9.0"].encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    assert torch.equal(ours.mask, mask) and ours.values.shape == (2, 128, 32) and not mask.all()
    assert (ours.values - theirs).abs().max() <= 1e-5


def test_padding_that_is_cut_off_changes_nothing(saved, tmp_path):
    """What the cache keeps of a caption is enough."""
    bundle = load(recipe_of(tmp_path, saved["0.9.0"]))
    text = encode_prompts(bundle, PROMPTS[:1], CPU)
    x, t = torch.randn(1, 8, 3, 4, 8), torch.tensor([0.6])
    with torch.no_grad():
        whole = bundle.denoiser(x, t, text)
        cut = bundle.denoiser(x, t, Text(text.values[:, text.mask[0]], text.mask[:, text.mask[0]]))
    assert (whole - cut).abs().max() <= 1e-5


def test_training_input_target_and_loss_are_those_of_flow_matching(saved, pipelines, tmp_path):
    bundle, pipeline = load(recipe_of(tmp_path, saved["0.9.0"])), pipelines["0.9.0"]
    generator = torch.Generator().manual_seed(3)
    x0, noise = (torch.randn(2, 8, 3, 4, 8, generator=generator) for _ in range(2))
    sigmas = torch.tensor([0.3, 0.9])
    times = flow_times(sigmas, bundle.objective.schedule)
    weight = sigmas.view(-1, 1, 1, 1, 1)
    x_t = (1 - weight) * x0 + weight * noise
    assert (bundle.objective.corrupt(x0, noise, times) - x_t).abs().max() <= 1e-6
    text = encode_prompts(bundle, PROMPTS, CPU)
    with torch.no_grad():
        velocity = pipeline.transformer(
            packed(x_t), text.values, 1000 * sigmas, text.mask, 3, 4, 8, (4 / FPS, 8, 8), return_dict=False
        )[0]
        ours = DenoisingLoss(bundle)(x0, noise, times, text)
    assert torch.allclose(ours, ((velocity - packed(noise - x0)) ** 2).flatten(1).mean(1), atol=1e-4)


def test_latents_are_normalised_as_the_model_knows_them(saved, pipelines, tmp_path):
    codec, pipeline = load(recipe_of(tmp_path, saved["0.9.0"])).codec, pipelines["0.9.0"]
    clip = torch.rand(2, 3, 9, 32, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        raw = pipeline.vae.encode(clip).latent_dist
    mean, std = pipeline.vae.latents_mean, pipeline.vae.latents_std
    posterior = codec.encode(clip)
    assert (posterior.mean - pipeline._normalize_latents(raw.mean, mean, std)).abs().max() <= 1e-4
    assert ((0.5 * posterior.logvar).exp() * std.view(1, -1, 1, 1, 1) - raw.std).abs().max() <= 1e-4


@pytest.mark.parametrize("size", [(9, 256, 256), (49, 512, 768), (121, 480, 704)])
def test_the_shift_is_that_of_the_models_scheduler_at_the_recipes_size(saved, pipelines, tmp_path, size):
    frames, height, width = size
    recipe = recipe_of(tmp_path, saved["0.9.0"], data={"frames": frames, "height": height, "width": width})
    latents = (1 + (frames - 1) // 8) * (height // 32) * (width // 32)  # the published autoencoder's
    mu = published_mu(latents)
    assert math.isclose(recipe.objective.shift, math.exp(mu), rel_tol=1e-9)
    scheduler = pipelines["0.9.0"].scheduler
    even = torch.linspace(1, 0.25, 4)
    theirs = torch.as_tensor(scheduler.time_shift(mu, 1.0, even))
    assert torch.allclose(recipe.objective.build().schedule.sigma(even).float(), theirs, atol=1e-6)
    assert recipe_of(tmp_path, saved["0.9.0"], objective={"shift": 2.0}).objective.shift == 2.0


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dynamic_shifting": True, "shift_terminal": 0.1},
        {"use_dynamic_shifting": False, "shift": 1.0, "shift_terminal": 0.1},
        {"use_dynamic_shifting": False, "shift": 2.5},
        {"use_dynamic_shifting": True, "shift_terminal": 0.2, "time_shift_type": "linear"},
    ],
)
@pytest.mark.parametrize("steps", [1, 8, 30])
def test_the_sigmas_are_those_of_the_directorys_scheduler(tmp_path, settings, steps):
    from diffusers import FlowMatchEulerDiscreteScheduler

    published = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
    scheduler = FlowMatchEulerDiscreteScheduler(**published, **settings)
    scheduler.save_pretrained(tmp_path / "model" / "scheduler")
    size = {"frames": 49, "height": 512, "width": 768}
    recipe = recipe_of(tmp_path, tmp_path / "model", data=size, sampling={"steps": steps})
    assert recipe.sampling.shift_terminal == settings.get("shift_terminal")
    schedule = recipe.objective.build().schedule
    sigmas = schedule.sigma(walk_times(recipe.sampling, schedule)).float()
    if steps == 1:  # where theirs divides by zero
        assert sigmas.tolist() == [1.0, 0.0]
        return
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=published_mu(7 * 16 * 24))
    assert (sigmas - scheduler.sigmas).abs().max() <= 1e-6


def test_what_is_published_stands_for_a_hub_id():
    groups = LTXConfig.companions({"model": "someone/LTX-Video"}, Size(49, 512, 768))
    assert groups["sampling"]["shift_terminal"] == 0.1
    assert math.isclose(groups["objective"]["shift"], math.exp(published_mu(7 * 16 * 24)))
    assert "shift_terminal" not in LTXConfig.companions({}, Size(49, 512, 768))["sampling"]


def test_the_frame_rate_of_the_data_reaches_the_positions(saved, tmp_path):
    bundles = [load(recipe_of(tmp_path, saved["0.9.0"], data={"fps": fps})) for fps in (FPS, 8.0)]
    assert [bundle.denoiser.fps for bundle in bundles] == [FPS, 8.0]
    assert bundles[0].denoiser.compression == Compression(4, 8, 8, causal=True)
    x, t = torch.randn(1, 8, 3, 4, 8), torch.tensor([0.6])
    text = encode_prompts(bundles[0], PROMPTS[:1], CPU)
    with torch.no_grad():
        fast, slow = (bundle.denoiser(x, t, text) for bundle in bundles)
    assert (fast - slow).abs().max() > 1e-4


def test_frames_that_do_not_fit_are_refused(saved, tmp_path):
    with pytest.raises(UsageError, match="10x32x64.*frames = 10 does not fit the codec.*use 9 or 13"):
        build_bundle(recipe_of(tmp_path, saved["0.9.0"], data={"frames": 10}))


def test_full_size():
    with torch.device("meta"):
        model = LTXConfig().build(channels=128, text_width=4096)
    assert sum(p.numel() for p in model.parameters()) == 1_923_385_472
    assert len([name for name, _ in model.named_modules() if name.endswith(model.lora_targets)]) == 28 * 2 * 4


def test_a_network_from_scratch_takes_its_widths_from_codec_and_text():
    model = LTXConfig.parse({"config": SMALL, "gradient_checkpointing": True}).build(6, 10).train()
    assert model.check_size(Size(2, 3, 5)) == Size(2, 3, 5)
    x = torch.randn(2, 6, 2, 3, 5)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    out = model(x, torch.rand(2), Text(torch.randn(2, 5, 10), mask))
    out.square().mean().backward()
    assert out.shape == x.shape and all(p.grad is not None for p in model.parameters())
    with pytest.raises(UsageError, match="patch_size = 2, patch_size_t = 1: LTX-Video takes its latents one by one"):
        LTXConfig.parse({"config": {**SMALL, "patch_size": 2}}).build(6, 10)
    with pytest.raises(UsageError, match="takes 5 latent channels, but the codec makes 6"):
        LTXConfig.parse({"config": {**SMALL, "in_channels": 5, "out_channels": 5}}).build(6, 10)
    with pytest.raises(UsageError, match="takes text of width 9, but text.type makes 10"):
        LTXConfig.parse({"config": {**SMALL, "caption_channels": 9}}).build(6, 10)
