"""Stable Video Diffusion against diffusers' own pipeline, and its text mode through the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from family_parity import CPU, load, open_pipeline
from reelwright.bundle import DenoisingLoss, draw
from reelwright.data.decode import read_window
from reelwright.diffusion.sampler import karras_times
from reelwright.generate import denoise_latents, encode_pictures
from reelwright.loading import load_model
from reelwright.prepare import Engine, open_prepared, prepare
from reelwright.pretrained.svd import SVDConfig, shrink
from reelwright.randomness import keyed_normal
from reelwright.recipe import Recipe
from reelwright.training.lora import find_targets
from reelwright.types import Bundle, Size, Text, UsageError
from reelwright.video.write import read_frames, read_recipe
from tiny_clip import save_tiny_clip
from tiny_svd import save_svd

torch.set_num_threads(1)
SIZE = Size(3, 32, 64)
RECIPE = Path(__file__).parents[2] / "recipes" / "svd-finetune.yaml"
IMAGE_RECIPE = RECIPE.with_name("svd-image-lora.yaml")


@pytest.fixture(scope="module")
def svd(tmp_path_factory) -> Path:
    return save_svd(tmp_path_factory.mktemp("svd") / "model")


@pytest.fixture(scope="module")
def pipeline(svd) -> Any:
    return open_pipeline("StableVideoDiffusionPipeline", svd)


def picture(height: int = 300, width: int = 420) -> np.ndarray:
    """Smooth colours with a sharp edge, so that blur and resizing show."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + k) + np.cos(y / (7 + k)) for k in range(3)]
    pixels = np.stack(waves, axis=-1) * 50 + 128 + 40 * (x > width / 3)[..., None]
    return pixels.clip(0, 255).astype(np.uint8)


def svd_recipe(tmp_path: Path, svd: Path | None, mode: str = "image", **groups: Any) -> Recipe:
    values: dict[str, Any] = {
        "run_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache"),
        "data": {
            "path": str(tmp_path / "data"), "fps": 7,
            "frames": SIZE.frames, "height": SIZE.height, "width": SIZE.width,
        },
        **groups,
    }  # fmt: skip
    model = {"type": "svd", "mode": mode, **({"model": str(svd)} if svd else {})}
    return Recipe.parse({**values, "model": {**model, **groups.get("model", {})}})


@pytest.mark.parametrize(("first", "last"), [(1.0, 1.0), (1.0, 3.0)])
def test_the_same_latents_and_video_as_the_pipeline(svd, pipeline, tmp_path, monkeypatch, first, last):
    sampling = {"guidance": first, "guidance_end": last, "steps": 4}
    recipe = svd_recipe(tmp_path, svd, sampling=sampling, model={"motion_bucket": 90, "noise_augmentation": 0.1})
    assert recipe.sampling.spacing == "karras" and recipe.text.type == "clip_image"
    bundle = load(recipe)
    seeds = [3, 8]
    noise = torch.stack([keyed_normal((3, SIZE.height, SIZE.width), seed, "picture") for seed in seeds])
    import diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion as module

    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise)
    latents = torch.randn(2, 4, 3, 4, 8, generator=torch.Generator().manual_seed(0))

    def theirs(kind: str) -> torch.Tensor:
        with torch.no_grad():
            return pipeline(
                [Image.fromarray(picture())] * 2, height=32, width=64, num_frames=3, num_inference_steps=4,
                min_guidance_scale=first, max_guidance_scale=last, fps=7, motion_bucket_id=90, noise_aug_strength=0.1,
                latents=latents.transpose(1, 2).clone(), output_type=kind, decode_chunk_size=3,
            ).frames  # fmt: skip

    expected = theirs("latent").transpose(1, 2)
    times = karras_times(4, bundle.objective.schedule, *recipe.sampling.noise_levels)
    cond, uncond = encode_pictures(bundle, picture(), SIZE, seeds, CPU)
    ours = denoise_latents(
        bundle, latents, times, cond, uncond, recipe.sampling, CPU, draw_noise=lambda: torch.zeros_like(latents)
    )
    assert (ours - expected).abs().max() <= 1e-4 and (ours - latents).abs().max() > 0.1
    assert last == 1 or (ours[0] - ours[1]).abs().max() > 1e-3
    decoded = bundle.codec.decode(ours).transpose(1, 2) / 2 + 0.5  # b f c h w in [0, 1]
    assert (decoded - theirs("pt")).abs().max() <= 1e-4


# -- text mode, by the shipped recipe


@pytest.fixture(scope="module")
def overrides(svd, tmp_path_factory) -> list[str]:
    clip = save_tiny_clip(tmp_path_factory.mktemp("clip"))
    return [
        f"model.model={svd}", f"codec.model={svd}", f"text.model={clip}", "codec.frames_per_chunk=2",
        "data.width=32", "data.height=32", "data.frames=4", "data.fps=8", "data.validation=0.2", "train.epochs=null",
        "train.steps=2", "train.batch_size=2", "train.precision=fp32", "train.device=cpu", "train.save_every=2",
        "train.evaluate_every=2", "train.evaluate_samples=2", "train.sample_prompts=1", "train.warmup_steps=0",
        "train.tensorboard=false",
    ]  # fmt: skip


DDPM = [
    "objective.schedule=scaled_linear", "objective.prediction=noise", "sampling.sampler=ddim", "sampling.spacing=even",
]  # fmt: skip


def test_half_precision_weights_work_with_and_without_autocast(svd, tmp_path):
    _, exact, objective = text_bundle(svd, tmp_path)
    _, half, _ = text_bundle(svd, tmp_path, model={"dtype": "bfloat16"})
    half.text_in.load_state_dict(exact.text_in.state_dict())
    exact.schedule = half.schedule = objective.schedule
    x, t = torch.randn(2, 4, 3, 4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.9])
    text = Text(torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1)), torch.ones(2, 5).bool())
    with torch.no_grad():
        expected, plain = exact(x, t, text), half(x, t, text).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = half(x, t, text).float()
    spread = expected.std()
    assert (plain - expected).std() < 0.1 * spread and (cast - expected).std() < 0.1 * spread


@pytest.mark.parametrize("objective", ["own", pytest.param("ddpm", marks=pytest.mark.full)])
def test_the_recipe_prepares_trains_and_generates(svd, overrides, shapes_clips, tmp_path, run_cli, objective):
    only = ",".join(sorted(p.name for p in (shapes_clips / "videos").glob("*.mp4"))[:4])
    given = [f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}", f"data.path={shapes_clips}"]
    given += [*overrides, f"data.only=[{only}]", *(DDPM if objective == "ddpm" else [])]
    for command in ("prepare", "train"):
        done = run_cli(command, RECIPE, *given)
        assert done.code == 0, done.err
    assert ("weights of" in done.err and "predict v" in done.err) == (objective == "ddpm")
    video = tmp_path / "video.mp4"
    made = run_cli("generate", tmp_path / "run", "--prompt", "a red circle moves left", "--steps", 2, "--out", video)
    assert made.code == 0, made.err
    frames, _ = read_frames(video)
    assert frames.shape == (4, 32, 32, 3) and frames.std() > 0
    if objective == "own":
        check_final(tmp_path / "run", svd, run_cli, tmp_path)


def check_final(run: Path, svd: Path, run_cli: Any, folder: Path) -> None:
    """checkpoints/final: the network as diffusers reads it, the projection beside it; it generates, and is exported."""
    from diffusers import UNetSpatioTemporalConditionModel
    from safetensors.torch import load_file

    final = run / "checkpoints" / "final"
    network: Any = UNetSpatioTemporalConditionModel.from_pretrained(final, subfolder="unet")
    trained = load_file(next((run / "checkpoints").glob("step-*2")) / "model.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, trained[f"denoiser.unet.{name}"])
    beside = load_file(final / "denoiser" / "model.safetensors")
    assert set(beside) == {"text_in.weight", "text_in.bias"}
    assert all(torch.equal(beside[name], trained[f"denoiser.{name}"]) for name in beside)
    out, videos = folder / "exported", []
    done = run_cli("export", run, out)
    assert done.code == 0, done.err
    assert (out / "unet" / "config.json").is_file() and (out / "codec" / "config.json").is_file()
    assert json.loads((out / "model_index.json").read_text())["_class_name"] == "ReelwrightModel"  # no pipeline
    for number, model in enumerate((run, final, out)):
        video = folder / f"{number}.mp4"
        if model == out:  # which needs nothing else
            svd.rename(svd.with_name("away"))
        made = run_cli("generate", model, "--prompt", "a ball", "--steps", 1, "--out", video)
        if model == out:
            svd.with_name("away").rename(svd)
        assert made.code == 0, made.err
        videos.append(read_frames(video)[0])
    assert (videos[0] == videos[1]).all() and (videos[0] == videos[2]).all()


def text_bundle(svd: Path, tmp_path: Path, **groups: Any) -> Any:
    """With captions of width 6 that no encoder made, of which the recipe's native one is left unused."""
    recipe = svd_recipe(tmp_path, svd, "text", **groups)
    return recipe, recipe.model.build(channels=4, text_width=6), recipe.objective.build()


def test_training_input_target_and_loss_are_those_of_edm(svd, pipeline, tmp_path):
    """Karras et al. 2022, equations 7 and 8, with SVD's c_skip, c_out, c_in, c_noise and weight (appendix D)."""
    _, denoiser, objective = text_bundle(svd, tmp_path)
    denoiser.schedule, denoiser.fps = objective.schedule, 7.0
    bundle = Bundle(denoiser.eval(), None, None, objective)
    generator = torch.Generator().manual_seed(3)
    x0, noise = (torch.randn(2, 4, 3, 4, 8, generator=generator) for _ in range(2))
    captions = Text(torch.randn(2, 5, 6, generator=generator), torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
    s = torch.tensor([0.3, 12.0])
    times = objective.schedule.time(s)
    wide = s.view(-1, 1, 1, 1, 1)
    noised = x0 + wide * noise
    with torch.no_grad():
        real = captions.values * captions.mask[..., None]
        tokens = torch.nn.functional.linear(
            torch.cat([real, torch.zeros(2, 72, 6)], dim=1), denoiser.text_in.weight, denoiser.text_in.bias
        )
        seen = torch.cat([noised / (wide**2 + 1).sqrt(), torch.zeros_like(x0)], dim=1).transpose(1, 2)
        ids = torch.tensor([[6.0, 127.0, 0.02]] * 2)
        out = pipeline.unet(seen, 0.25 * s.log(), tokens, ids, return_dict=False)[0].transpose(1, 2)
        denoised = noised / (wide**2 + 1) - wide / (wide**2 + 1).sqrt() * out
        expected = ((s**2 + 1) / s**2) * ((denoised - x0) ** 2).flatten(1).mean(1)
        ours = DenoisingLoss(bundle)(x0, noise, times, captions)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_sampling_times_are_the_scheduler_s_noise_levels(pipeline, svd, tmp_path):
    recipe, denoiser, objective = text_bundle(svd, tmp_path)
    denoiser.schedule = objective.schedule
    pipeline.scheduler.set_timesteps(25)
    times = karras_times(25, objective.schedule, *recipe.sampling.noise_levels)
    ratio = objective.schedule.sigma(times) / objective.schedule.alpha(times)
    torch.testing.assert_close(ratio.float(), pipeline.scheduler.sigmas, rtol=1e-5, atol=0)
    told = denoiser.noise_level(times[:-1].float())  # as samplers tell it, in float32
    assert (told - pipeline.scheduler.timesteps).abs().max() < 1e-4
    assert torch.isfinite(denoiser.noise_level(torch.tensor([0.0, 1.0]))).all()
    with pytest.raises(UsageError, match="sampling.spacing = 'karras' wants objective.schedule = 'edm'"):
        text_bundle(svd, tmp_path, objective={"schedule": "scaled_linear"})
    with pytest.raises(UsageError, match="noise_levels = .* has no effect with spacing = 'even'"):
        text_bundle(svd, tmp_path, sampling={"spacing": "even", "noise_levels": [0.1, 80.0]})


@pytest.mark.parametrize(("height", "width"), [(576, 1024), (224, 224), (100, 650)])
def test_pictures_reach_clip_as_in_the_pipeline(height, width):
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    pixels = torch.tensor(picture(height, width) / 127.5 - 1).float().permute(2, 0, 1)[None]
    assert (shrink(pixels, 224) - _resize_with_antialiasing(pixels, (224, 224))).abs().max() < 1e-5


def test_latents_are_normalised_as_the_model_knows_them_and_chunks_are_the_pipeline_s(svd, pipeline, tmp_path):
    bundle = load(svd_recipe(tmp_path, svd, codec={"frames_per_chunk": 2}))
    clip = torch.rand(2, 3, 3, 32, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    posterior = bundle.codec.encode(clip)
    with torch.no_grad():
        for row in range(2):
            raw = pipeline.vae.encode(clip[row].transpose(0, 1)).latent_dist
            assert (posterior.mean[row].transpose(0, 1) - 0.18215 * raw.mean).abs().max() <= 1e-5
            assert ((0.5 * posterior.logvar[row]).exp().transpose(0, 1) - 0.18215 * raw.std).abs().max() <= 1e-5
            latents = posterior.mean[row : row + 1]
            theirs = pipeline.decode_latents(latents.transpose(1, 2), num_frames=3, decode_chunk_size=2)
            assert (bundle.codec.decode(latents) - theirs.clamp(-1, 1)).abs().max() <= 1e-5


def test_full_size():
    with torch.device("meta"):
        model = SVDConfig.parse({}).build(channels=4, text_width=512)
    assert sum(p.numel() for p in model.unet.parameters()) == 1_524_623_082
    assert sum(p.numel() for p in model.parameters()) == 1_524_623_082 + 512 * 1024 + 1024
    assert len(find_targets(model, model.lora_targets)) == 256


def test_the_published_configuration_is_the_default(tmp_path):
    """The network's own configuration file, where it is at hand."""
    place = Path(__file__).parents[3] / "shared/configs/stable-video-diffusion-img2vid-xt/unet/config.json"
    if not place.is_file():
        pytest.skip("shared/configs is not here")
    settings = {k: v for k, v in json.loads(place.read_text()).items() if not k.startswith("_")}
    with torch.device("meta"):
        model = SVDConfig.parse({"config": settings, "mode": "image"}).build(channels=4, text_width=1024)
    assert sum(p.numel() for p in model.parameters()) == 1_524_623_082


SMALL = {
    "block_out_channels": [32, 32], "layers_per_block": 1, "num_attention_heads": [2, 2], "cross_attention_dim": 16,
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
}  # fmt: skip


def test_a_network_from_scratch_learns_and_pads_its_text():
    model = SVDConfig.parse({"config": SMALL, "gradient_checkpointing": True}).build(channels=6, text_width=10).train()
    x, t = torch.randn(2, 6, 2, 4, 6), torch.rand(2)
    text = Text(torch.randn(2, 5, 10), torch.tensor([[True] * 5, [True] * 2 + [False] * 3]))
    out = model(x, t, text)
    out.square().mean().backward()
    assert out.shape == x.shape and all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        alone = model.eval()(x[1:], t[1:], Text(text.values[1:, :2], text.mask[1:, :2]))
    assert (alone - out[1:]).abs().max() < 1e-5
    odd = torch.randn(1, 6, 3, 5, 7)  # which halving does not divide
    assert model(odd, t[:1], Text(text.values[:1], text.mask[:1])).shape == odd.shape
    with pytest.raises(UsageError, match="takes 4 latent channels, but the codec makes 6"):
        SVDConfig.parse({"config": {**SMALL, "in_channels": 8, "out_channels": 4}}).build(channels=6, text_width=10)
    with pytest.raises(UsageError, match="takes 6 channels and makes 4"):
        SVDConfig.parse({"config": {**SMALL, "in_channels": 6, "out_channels": 4}}).build(channels=4, text_width=10)


def test_image_mode_by_the_command(svd, tmp_path, run_cli):
    """--image makes a clip that --from repeats; prompts are refused in one line."""
    from reelwright.config import to_yaml

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(svd_recipe(tmp_path, svd, sampling={"steps": 2}).plain()))
    start, video, again = tmp_path / "start.png", tmp_path / "video.mp4", tmp_path / "again.mp4"
    Image.fromarray(picture()).save(start)
    made = run_cli("generate", recipe, "--image", start, "--seed", 3, "--out", video)
    assert made.code == 0 and "random" not in made.err, made.err
    frames, fps = read_frames(video)
    assert frames.shape == (3, 32, 64, 3) and fps == 7
    assert read_recipe(video)["image"] == str(start) and read_recipe(video)["guidance_end"] == 3.0
    assert run_cli("generate", recipe, "--from", video, "--out", again).code == 0
    assert (read_frames(again)[0] == frames).all()
    for arguments, message in (
        (("--prompt", "a ball"), "this model makes videos from a picture: give --image"),
        (("--image", start, "--prompt", "a ball"), "this model sees a picture and no text"),
        (("--image", tmp_path / "none.png"), "cannot be read as a picture"),
        (("--image", recipe), "cannot be read as a picture"),
    ):
        refused = run_cli("generate", recipe, *arguments, "--out", again)
        assert refused.code == 2 and message in refused.err, refused.err


def test_pictures_for_models_of_text_are_refused(trained_run, tmp_path, run_cli):
    start = tmp_path / "start.png"
    Image.fromarray(picture()).save(start)
    refused = run_cli("generate", trained_run, "--image", start, "--out", tmp_path / "x.mp4")
    assert refused.code == 2 and "this model makes videos from text alone; leave --image out" in refused.err


# -- training in image mode: every clip's first frame is its picture


@pytest.fixture
def given(svd, overrides, shapes_clips, tmp_path) -> list[str]:
    only = ",".join(sorted(p.name for p in (shapes_clips / "videos").glob("*.mp4"))[:4])
    return [
        *(o for o in overrides if not o.startswith("text.")), "train.lora=null", "model.dtype=float32",
        f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}", f"data.path={shapes_clips}",
        f"data.only=[{only}]",
    ]  # fmt: skip


def test_training_on_first_frames_is_that_of_edm_beside_what_the_pipeline_makes_of_them(
    svd, pipeline, given, shapes_clips
):
    recipe = Recipe.load(IMAGE_RECIPE, [*given, "model.motion_bucket=90", "model.noise_augmentation=0.1"])
    prepare(recipe)
    prepared, bundle = open_prepared(recipe), load(recipe)
    indices = sorted(prepared.training.samples)[:2]
    batch = prepared.training.load([(index, 0) for index in indices], seed=0)
    drawn = draw(batch, bundle.objective, seed=0)
    with torch.no_grad():
        ours = DenoisingLoss(bundle)(drawn.latents, drawn.noise, drawn.t, batch.text)
    for row, index in enumerate(indices):
        sample = prepared.training.samples[index]
        pixels = read_window(shapes_clips / "videos" / sample.clip, sample.size, recipe.data.fps, sample.start_seconds)
        first = Image.fromarray(pixels[0])
        noise = keyed_normal((3, sample.size.height, sample.size.width), sample.latent_keys[0], "picture")
        s = (bundle.objective.schedule.sigma(drawn.t[row]) / bundle.objective.schedule.alpha(drawn.t[row])).float()
        x0, noised = drawn.latents[row], drawn.latents[row] + s * drawn.noise[row]  # c f h w
        with torch.no_grad():
            tokens = pipeline._encode_image(first, "cpu", 1, False)
            fitted = pipeline.video_processor.preprocess(first, sample.size.height, sample.size.width) + 0.1 * noise
            image = pipeline._encode_vae_image(fitted, "cpu", 1, False)  # 1 c h w
            seen = torch.cat([noised / (s**2 + 1).sqrt(), image[0, :, None].expand_as(x0)]).transpose(0, 1)[None]
            ids = torch.tensor([[recipe.data.fps - 1, 90, 0.1]])
            out = pipeline.unet(seen, 0.25 * s.log()[None], tokens, ids, return_dict=False)[0][0].transpose(0, 1)
        denoised = noised / (s**2 + 1) - s / (s**2 + 1).sqrt() * out
        expected = (s**2 + 1) / s**2 * ((denoised - x0) ** 2).mean()
        torch.testing.assert_close(ours[row], expected, rtol=1e-4, atol=1e-5)


def test_first_frames_are_dropped_as_captions_are_and_made_anew_with_other_noise(svd, given):
    recipe = Recipe.load(IMAGE_RECIPE, given)
    assert prepare(recipe).encoded == 4 and prepare(recipe).encoded == 0
    dataset = open_prepared(recipe).training
    items = [(index, 0) for index in sorted(dataset.samples)]
    kept, dropped = (dataset.load(items, 0, share).text for share in (0.0, 0.999999))
    assert kept.image is not None and kept.values.abs().amin() > 0 and kept.image.std() > 0.1
    assert kept.image.shape[1:] == (4, 4, 4, 4) and torch.equal(kept.image[:, :, 0], kept.image[:, :, 3])
    assert dropped.image is not None and not dropped.values.any() and not dropped.image.any()
    mixed = dataset.load(items * 8, 0, 0.5).text
    assert mixed.image is not None
    assert torch.equal(mixed.values.flatten(1).any(1), mixed.image.flatten(1).any(1))  # both or neither
    other = Recipe.load(IMAGE_RECIPE, [*given, "model.noise_augmentation=0.3"])
    assert prepare(other).encoded == 4 and prepare(recipe).encoded == 0
    assert not torch.equal(open_prepared(other).training.load(items, 0).text.image, kept.image)


@pytest.mark.full
def test_ray_keeps_the_same_first_frames(given, tmp_path):
    pytest.importorskip("ray")
    items = {}
    for engine in ("local", "ray"):
        recipe = Recipe.load(IMAGE_RECIPE, [*given, f"cache_dir={tmp_path / engine}"])
        prepare(recipe, engine=Engine(engine, workers=1))
        prepared = open_prepared(recipe)
        samples = [*prepared.training.samples.values(), *prepared.validation.samples.values()]
        items[engine] = {s.latent_keys[0]: prepared.cache.get(s.latent_keys[0]) for s in samples}
    assert items["local"].keys() == items["ray"].keys() and len(items["ray"]) == 4
    for key, item in items["local"].items():
        assert set(item) == {"mean", "logvar", "picture", "image"}
        assert all(torch.equal(tensor, items["ray"][key][name]) for name, tensor in item.items())


@pytest.mark.full
@pytest.mark.parametrize("lora", ["null", "{rank: 2}"])
def test_image_mode_trains_resumes_and_is_exported_to_the_pipeline(svd, given, lora, tmp_path, run_cli):
    given = [*given, f"train.lora={lora}", "train.caption_dropout=0.1", "sampling.steps=2"]
    done = run_cli("train", IMAGE_RECIPE, *given)
    assert done.code == 0, done.err
    assert read_frames(next((tmp_path / "run" / "samples").glob("*.mp4")))[0].shape == (4, 32, 32, 3)
    done = run_cli("train", IMAGE_RECIPE, *given, "train.steps=3")
    assert done.code == 0 and "resuming from step-0000002" in done.err, done.err
    start, video = tmp_path / "start.png", tmp_path / "video.mp4"
    Image.fromarray(picture()).save(start)
    made = run_cli("generate", tmp_path / "run", "--image", start, "--precision", "fp32", "--out", video)
    assert made.code == 0 and read_frames(video)[0].std() > 0, made.err
    refused = run_cli("generate", tmp_path / "run", "--prompt", "a ball", "--out", video)
    assert refused.code == 2 and "makes videos from a picture" in refused.err
    for out in ("pipeline", "whole.safetensors"):
        form = "safetensors" if out.endswith("safetensors") else "diffusers"
        exported = run_cli("export", tmp_path / "run", tmp_path / out, "--format", form)
        assert exported.code == 0, exported.err
        where = tmp_path / f"{form}.mp4"
        made = run_cli("generate", tmp_path / out, "--image", start, "--precision", "fp32", "--out", where)
        assert made.code == 0, made.err
        apart = np.abs(read_frames(where)[0].astype(int) - read_frames(video)[0])
        assert apart.mean() < 0.1  # last bits, which the file's compression spreads

    theirs = open_pipeline("StableVideoDiffusionPipeline", tmp_path / "pipeline")
    loaded = load_model(str(tmp_path / "run"))
    loaded.bundle.denoiser.eval()
    size = loaded.recipe.size
    noise = keyed_normal((3, size.height, size.width), 0, "picture")
    latents = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    import diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion as module

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "randn_tensor", lambda *_, **__: noise[None])
        expected = theirs(
            Image.fromarray(picture()), height=32, width=32, num_frames=4, num_inference_steps=4, fps=8,
            min_guidance_scale=1.0, max_guidance_scale=3.0, latents=latents.transpose(1, 2).clone(),
            output_type="latent",
        ).frames.transpose(1, 2)  # fmt: skip
    sampling = loaded.recipe.sampling.model_copy(update={"guidance": 1.0, "guidance_end": 3.0})
    times = karras_times(4, loaded.bundle.objective.schedule, *sampling.noise_levels)
    cond, uncond = encode_pictures(loaded.bundle, picture(), size, [0], CPU)
    ours = denoise_latents(loaded.bundle, latents, times, cond, uncond, sampling, CPU, lambda: latents)
    assert (ours - expected).abs().max() <= 1e-4


@pytest.mark.full
def test_lora_beside_the_network_and_the_projection_whole(svd, overrides, shapes_clips, tmp_path, run_cli):
    """The network alone is frozen: the projection, which no published weights have, trains, and comes back."""
    from safetensors.torch import load_file

    only = ",".join(sorted(p.name for p in (shapes_clips / "videos").glob("*.mp4"))[:4])
    given = [f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}", f"data.path={shapes_clips}"]
    given += [*overrides, f"data.only=[{only}]", "train.lora={rank: 2}", "model.dtype=bfloat16"]
    for command in ("prepare", "train"):
        done = run_cli(command, RECIPE, *given)
        assert done.code == 0, done.err
    trained = load_file(next((tmp_path / "run" / "checkpoints").glob("step-*2")) / "model.safetensors")
    assert {name for name in trained if "lora" not in name} == {"denoiser.text_in.weight", "denoiser.text_in.bias"}
    video = tmp_path / "video.mp4"
    made = run_cli("generate", tmp_path / "run", "--prompt", "a ball", "--steps", 2, "--out", video)
    assert made.code == 0 and read_frames(video)[0].std() > 0, made.err
