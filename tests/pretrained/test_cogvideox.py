"""CogVideoX 2B, 5B and 1.5 against diffusers' own pipeline and scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from family_parity import CPU, NEGATIVE, PROMPTS, family_recipe, load, open_pipeline, our_latents
from reelwright.bundle import DenoisingLoss, build_bundle
from reelwright.config import parse_yaml, to_yaml
from reelwright.diffusion.sampler import sample_times
from reelwright.generate import denoise_latents, encode_prompts
from reelwright.pretrained.cogvideox import CogVideoXConfig
from reelwright.recipe import Recipe
from reelwright.types import Size, Text, UsageError
from reelwright.video.write import read_frames
from tiny_cogvideox import SNR_SHIFT, TEXT_LENGTH, VARIANTS, save_cogvideox

torch.set_num_threads(1)
RECIPE = Path(__file__).parents[2] / "recipes" / "cogvideox-small.yaml"
LATENT_FRAMES = {"2b": 3, "5b": 3, "1.5": 4}  # of 9 pictures
SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "time_embed_dim": 8}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cogvideox")
    return {variant: save_cogvideox(folder / variant, variant) for variant in VARIANTS}


@pytest.fixture(scope="module")
def pipelines(saved) -> dict[str, Any]:
    return {variant: open_pipeline("CogVideoXPipeline", path) for variant, path in saved.items()}


def clip(frames: int = 9, width: int = 32) -> torch.Tensor:
    return torch.rand(1, 3, frames, 32, width, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("guidance", [1.0, 6.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_latents_and_video_as_the_pipeline(saved, pipelines, tmp_path, variant, guidance):
    """With the recipe's own steps; pictures wider than the model's, so that positions are stretched."""
    recipe = family_recipe(
        tmp_path, "cogvideox", saved[variant], sampling={"guidance": guidance, "steps": 4}, data={"width": 48}
    )
    bundle, pipeline = load(recipe), pipelines[variant]
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, LATENT_FRAMES[variant], 4, 6, generator=generator)
    assert bundle.codec.compression.latent_size(Size(9, 32, 48)) == Size(*latents.shape[2:])

    def theirs(kind: str) -> torch.Tensor:
        with torch.no_grad():
            return pipeline(
                PROMPTS, [NEGATIVE] * 2, height=32, width=48, num_frames=9, num_inference_steps=4,
                guidance_scale=guidance, latents=latents.transpose(1, 2).clone(), output_type=kind,
                max_sequence_length=TEXT_LENGTH,
            ).frames  # fmt: skip

    times = sample_times(recipe.sampling.steps, grid=bundle.objective.schedule.grid)
    ours = our_latents(bundle, recipe, PROMPTS, NEGATIVE, latents, times)
    expected = theirs("latent").transpose(1, 2)
    assert (ours - expected).abs().max() <= 1e-4 and (ours - latents).abs().max() > 0.1
    decoded = bundle.codec.decode(ours).transpose(1, 2) / 2 + 0.5  # b f c h w in [0, 1]
    video = theirs("pt")
    assert decoded.shape == video.shape == (2, 9, 3, 32, 48) and (decoded - video).abs().max() <= 1e-4


@pytest.mark.parametrize("guidance", [1.0, 6.0])
@pytest.mark.parametrize("variant", ["5b", "1.5"])
def test_the_stochastic_scheduler_of_a_directory_is_followed_with_its_noise(tmp_path, variant, guidance):
    """Of every step but the first theirs uses the second of two draws; the last has no noise."""
    model = save_cogvideox(tmp_path / "model", variant, "CogVideoXDPMScheduler")
    recipe = family_recipe(tmp_path, "cogvideox", model, sampling={"guidance": guidance, "steps": 5})
    assert recipe.sampling.sampler == "dpmpp_2m_sde"
    bundle, pipeline = load(recipe), open_pipeline("CogVideoXPipeline", model)
    latents = torch.randn(2, 4, LATENT_FRAMES[variant], 4, 4, generator=torch.Generator().manual_seed(0))
    theirs = latents.transpose(1, 2).contiguous()
    with torch.no_grad():
        expected = pipeline(
            PROMPTS, [NEGATIVE] * 2, height=32, width=32, num_frames=9, num_inference_steps=5,
            guidance_scale=guidance, latents=theirs.clone(), output_type="latent",
            max_sequence_length=TEXT_LENGTH, generator=torch.Generator().manual_seed(7),
        ).frames.transpose(1, 2)  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randn(theirs.shape, generator=generator) for _ in range(7)]
    noises = iter(drawn[::2])
    positive, negative = (encode_prompts(bundle, texts, CPU) for texts in (PROMPTS, [NEGATIVE] * 2))
    times = sample_times(5, grid=bundle.objective.schedule.grid)
    ours = denoise_latents(
        bundle, latents, times, positive, negative, recipe.sampling, CPU,
        draw_noise=lambda: next(noises).transpose(1, 2),
    )  # fmt: skip
    assert (ours - expected).abs().max() <= 1e-4 and (ours - latents).abs().max() > 0.1
    assert next(noises, None) is None


@pytest.mark.parametrize("variant", ["5b", "1.5"])
def test_rotary_positions_of_any_shape_are_those_of_the_pipeline(saved, pipelines, tmp_path, variant):
    denoiser = load(family_recipe(tmp_path, "cogvideox", saved[variant])).denoiser
    for height, width in ((4, 4), (4, 6), (2, 8), (6, 2), (6, 8)):  # latents; the model's own are 6 x 8
        theirs = pipelines[variant]._prepare_rotary_positional_embeddings(8 * height, 8 * width, 4, torch.device("cpu"))
        grid = denoiser.check_size(Size(4, height, width))
        ours = denoiser._rotary(grid, torch.zeros(1))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_same_embeddings_as_the_pipeline(saved, pipelines, tmp_path):
    ours = encode_prompts(load(family_recipe(tmp_path, "cogvideox", saved["5b"])), PROMPTS, CPU)
    with torch.no_grad():
        theirs, _ = pipelines["5b"].encode_prompt(
            PROMPTS, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH
        )
    assert ours.mask.all() and ours.values.shape == theirs.shape == (2, TEXT_LENGTH, 32)
    assert (ours.values - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_training_input_target_and_loss_are_those_of_the_scheduler(saved, pipelines, tmp_path, variant):
    """As the authors write it: the error of x0, weighted by 1 / (1 - alpha_bar), from a predicted velocity."""
    bundle, pipeline = load(family_recipe(tmp_path, "cogvideox", saved[variant])), pipelines[variant]
    generator = torch.Generator().manual_seed(3)
    x0, noise = (torch.randn(3, 4, 3, 4, 4, generator=generator) for _ in range(2))
    index = torch.tensor([0, 400, 998])
    t = (index + 1).double() / 1000
    x_t = pipeline.scheduler.add_noise(x0, noise, index)
    assert (bundle.objective.corrupt(x0, noise, t) - x_t).abs().max() <= 1e-5
    target = pipeline.scheduler.get_velocity(x0, noise, index)
    assert (bundle.objective.target(x0, noise, t) - target).abs().max() <= 1e-5
    text = encode_prompts(bundle, [*PROMPTS, NEGATIVE], CPU)
    rotary = pipeline._prepare_rotary_positional_embeddings(32, 32, 3, x0.device) if variant == "5b" else None
    with torch.no_grad():
        velocity = pipeline.transformer(
            x_t.transpose(1, 2), text.values, index, image_rotary_emb=rotary, return_dict=False
        )[0].transpose(1, 2)
        found_x0 = pipeline.scheduler.get_velocity(velocity, x_t, index)
        weight = (1 / (1 - pipeline.scheduler.alphas_cumprod[index])).view(-1, 1, 1, 1, 1)
        theirs = (weight * (found_x0 - x0) ** 2).flatten(1).mean(1)
        ours = DenoisingLoss(bundle)(x0, noise, t, text)
    assert torch.allclose(ours, theirs.float(), rtol=1e-3)


def test_times_weigh_alike_and_the_last_is_pure_noise(saved, tmp_path):
    objective = load(family_recipe(tmp_path, "cogvideox", saved["2b"])).objective
    t = objective.sample_time((torch.arange(1000).double() + 0.5) / 1000)
    assert (objective.weight(t) == 1).all() and objective.schedule.alpha(t[-1:]).item() == 0
    assert torch.equal((t * 1000).round().long(), torch.arange(1, 1001))


def test_latents_are_scaled_as_the_model_knows_them(saved, pipelines, tmp_path):
    codec, vae = load(family_recipe(tmp_path, "cogvideox", saved["2b"])).codec, pipelines["2b"].vae
    with torch.no_grad():
        raw = vae.encode(clip()).latent_dist
    posterior = codec.encode(clip())
    assert (posterior.mean - 0.7 * raw.mean).abs().max() <= 1e-5
    assert ((0.5 * posterior.logvar).exp() - 0.7 * raw.std).abs().max() <= 1e-5


@pytest.mark.parametrize("frames", [1, 5, 9, 13])
def test_every_number_of_frames_of_the_codec_comes_back(saved, pipelines, tmp_path, frames):
    """Of an even number of latents diffusers makes three pictures too many, in front."""
    codec = load(family_recipe(tmp_path, "cogvideox", saved["2b"])).codec
    latents = codec.encode(clip(frames)).mean
    assert latents.shape[2:] == codec.compression.latent_size(Size(frames, 32, 32)).tuple
    with torch.no_grad():
        theirs = pipelines["2b"].vae.decode(latents / 0.7).sample.clamp(-1, 1)
    ours = codec.decode(latents)
    assert ours.shape[2] == frames and theirs.shape[2] == frames + (3 if latents.shape[2] % 2 == 0 else 0)
    assert (ours - theirs[:, :, -frames:]).abs().max() <= 1e-5


def test_1_5_repeats_the_first_latent_and_takes_pairs(saved, tmp_path):
    recipe = family_recipe(tmp_path, "cogvideox", saved["1.5"])
    codec = load(recipe).codec
    latents = codec.encode(clip()).mean
    assert latents.shape[2] == 4 and torch.equal(latents[:, :, 0], latents[:, :, 1])
    assert codec.compression.pixel_size(Size(4, 4, 4)) == Size(9, 32, 32)
    assert codec.decode(latents).shape == clip().shape
    for frames, message in ((5, "frames = 5 does not fit the codec.*use 1 or 9"), (12, "use 9 or 17")):
        with pytest.raises(UsageError, match=message):
            build_bundle(family_recipe(tmp_path, "cogvideox", saved["1.5"], data={"frames": frames}))
    with pytest.raises(UsageError, match="frames = 3 latents: the model takes them in patches of 2"):
        build_bundle(family_recipe(tmp_path, "cogvideox", saved["1.5"], codec={"frame_group": 1}))
    with pytest.raises(UsageError, match="9x32x80.*positions up to 6x8; use no more"):
        build_bundle(family_recipe(tmp_path, "cogvideox", saved["1.5"], data={"width": 80}))


def test_companions_come_from_the_directory_or_the_published_name(saved, tmp_path):
    for variant, path in saved.items():
        recipe = family_recipe(tmp_path, "cogvideox", path)
        assert recipe.objective.snr_shift == SNR_SHIFT[variant] and recipe.objective.zero_terminal_snr
        assert recipe.sampling.sampler == "ddim"
        assert recipe.text.length == TEXT_LENGTH and recipe.text.padding == "kept"
        assert recipe.codec.frame_group == (2 if variant == "1.5" else 1)
    for name, shift, length, group in (("2b", 3.0, 226, 1), ("5b", 1.0, 226, 1), ("1.5-5B", 1.0, 224, 2)):
        joint = "" if name.startswith("1.5") else "-"
        groups = CogVideoXConfig.companions({"model": f"someone/CogVideoX{joint}{name}"}, Size(49, 480, 720))
        assert (groups["objective"]["snr_shift"], groups["text"]["length"]) == (shift, length)
        assert groups["codec"]["frame_group"] == group
    assert "codec" not in CogVideoXConfig.companions({}, Size(49, 480, 720))


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 1_693_783_872),
        ({"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}, 5_570_283_072),
    ],
)
def test_full_sizes(settings, count):
    with torch.device("meta"):
        model = CogVideoXConfig.parse({"config": settings}).build(channels=16, text_width=4096)
    assert sum(p.numel() for p in model.parameters()) == count
    assert len([name for name, _ in model.named_modules() if name.endswith(model.lora_targets)]) == 4 * len(
        model.transformer.transformer_blocks
    )


def test_what_does_not_fit_is_one_clear_error():
    def build(channels: int = 6, **settings: Any):
        return CogVideoXConfig.parse({"config": {**SMALL, **settings}}).build(channels=channels, text_width=10)

    with pytest.raises(UsageError, match="takes 5 latent channels, but the codec makes 6"):
        build(in_channels=5, out_channels=5)
    with pytest.raises(UsageError, match="takes text of width 9, but text.type makes 10"):
        build(text_embed_dim=9)
    with pytest.raises(UsageError, match="takes 12 channels and makes 6.*use a text-to-video one"):
        build(in_channels=12)
    with pytest.raises(UsageError, match="attention_head_dim = 24: rotary positions need a multiple of 16"):
        build(attention_head_dim=24, use_rotary_positional_embeddings=True)
    with pytest.raises(UsageError, match="model.config.num_layer: .* did you mean num_layers"):
        build(num_layer=2)
    model = build(max_text_seq_length=4)
    with pytest.raises(ValueError, match="height = 5 latents.*patches of 2; use 4 or 6"):
        model.check_size(Size(2, 5, 4))
    with pytest.raises(UsageError, match="a caption of 5 tokens, but the model takes 4.*use text.length = 4"):
        model(torch.randn(1, 6, 2, 4, 4), torch.rand(1), Text(torch.randn(1, 5, 10), torch.ones(1, 5).bool()))


@pytest.mark.parametrize("rotary", [False, True])
def test_a_network_from_scratch_takes_its_widths_from_codec_and_text(rotary):
    config = {**SMALL, "use_rotary_positional_embeddings": rotary, "max_text_seq_length": 7}
    model = CogVideoXConfig.parse({"config": config, "gradient_checkpointing": True}).build(6, 10).train()
    x = torch.randn(2, 6, 3, 4, 8)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    out = model(x, torch.rand(2), Text(torch.randn(2, 5, 10), mask))
    out.square().mean().backward()
    assert out.shape == x.shape and all(p.grad is not None for p in model.parameters())


def test_the_recipe_trains_native_parts_from_scratch(shapes_clips, tmp_path, run_cli):
    values = parse_yaml(RECIPE.read_text(encoding="utf-8"), str(RECIPE))
    recipe = Recipe.parse(values)
    with torch.device("meta"):
        model = recipe.model.build(channels=recipe.codec.channels, text_width=recipe.text.width)
    count = sum(p.numel() for p in model.parameters())
    assert 2.5e6 < count < 3.5e6 and len(model.transformer.transformer_blocks) == 2
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(values))
    toy = [
        f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}", f"data.path={shapes_clips}", "data.frames=8",
        "data.width=32", "data.height=32", "codec.block=[4, 8, 8]", "codec.channels=16", "train.steps=2",
        "train.batch_size=4", "train.device=cpu", "train.sample_every=0", "train.evaluate_every=2",
        "train.save_every=2", "train.warmup_steps=0", "train.tensorboard=false", "text.vocab_size=300",
    ]  # fmt: skip
    done = run_cli("train", path, *toy)
    assert done.code == 0 and "done: 2 steps" in done.err, done.err
    made = run_cli("generate", tmp_path / "run", "--prompt", "a red circle", "--steps", 2, "--out", tmp_path / "x.mp4")
    assert made.code == 0, made.err
    frames, _ = read_frames(tmp_path / "x.mp4")
    assert frames.shape == (8, 32, 32, 3)
