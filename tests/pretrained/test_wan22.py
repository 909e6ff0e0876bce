"""Wan 2.2 against diffusers' own pipeline: two experts that share the time, and 5B with its autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from family_parity import CPU, NEGATIVE, PROMPTS, family_recipe, flow_times, load, open_pipeline, our_latents
from reelwright.bundle import Bundle, DenoisingLoss, build_bundle, objective_of_step
from reelwright.generate import Compute, denoise_latents, encode_prompts, walk_times
from reelwright.models.offload import find_blocks
from reelwright.pretrained.wan import WanConfig, WanExperts
from reelwright.training.lora import LoraConfig, add_lora
from reelwright.types import Size, Text, UsageError, UserError
from tiny_families import save_wan, unipc
from tiny_wan22 import BOUNDARY, save_5b, save_experts

torch.set_num_threads(1)
CONFIGS = Path(__file__).parents[3] / "shared/configs/wan"
SHIFT = 3.0
CHANGE = 0.7  # the t at which sigma is BOUNDARY


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Path:
    return save_experts(tmp_path_factory.mktemp("a14b") / "model")


@pytest.fixture(scope="module")
def ti2v(tmp_path_factory) -> Path:
    return save_5b(tmp_path_factory.mktemp("5b") / "model")


def experts_recipe(folder: Path, model: Path, expert: str = "both", **groups: Any) -> Any:
    return family_recipe(folder, "wan", model, model={"expert": expert}, **groups)


def start(*shape: int) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


# -- two experts: generation


@pytest.mark.parametrize("expert", ["both", "high", "low"])
@pytest.mark.parametrize("scales", [(1.0, None), (4.0, None), (4.0, 3.0)])
def test_the_same_latents_as_the_pipeline(experts, tmp_path, scales, expert):
    sampling = {"sampler": "euler", "steps": 8, "guidance": scales[0], "guidance_low": scales[1]}
    recipe = experts_recipe(tmp_path, experts, expert, sampling=sampling)
    bundle, pipeline, latents = load(recipe), open_pipeline("WanPipeline", experts), start(16, 3, 4, 4)
    with torch.no_grad():
        theirs = pipeline(
            PROMPTS, [NEGATIVE] * 2, height=32, width=32, num_frames=9, num_inference_steps=8,
            guidance_scale=scales[0], guidance_scale_2=scales[1], latents=latents.clone(), output_type="latent",
        ).frames  # fmt: skip
    times = flow_times(pipeline.scheduler.sigmas, bundle.objective.schedule)
    assert [bool(sigma >= BOUNDARY) for sigma in pipeline.scheduler.sigmas] == [True] * 3 + [False] * 6
    ours = our_latents(bundle, recipe, PROMPTS, NEGATIVE, latents, times)
    assert (ours - theirs).abs().max() <= 1e-4 < 0.1 < (ours - latents).abs().max()


@pytest.mark.parametrize("steps", [9, 27])
def test_the_same_latents_with_unipc(experts, tmp_path, steps):
    """The pipeline compares whole timesteps with the boundary, and so do we."""
    sampling = {"sampler": "unipc", "spacing": "timesteps", "steps": steps, "guidance": 4.0, "guidance_low": 3.0}
    recipe = experts_recipe(tmp_path, experts, sampling=sampling)
    bundle, pipeline, latents = load(recipe), open_pipeline("WanPipeline", experts), start(16, 3, 4, 4)
    pipeline.scheduler = unipc(SHIFT)
    with torch.no_grad():
        theirs = pipeline(
            PROMPTS, [NEGATIVE] * 2, height=32, width=32, num_frames=9, num_inference_steps=steps,
            guidance_scale=4.0, guidance_scale_2=3.0, latents=latents.clone(), output_type="latent",
        ).frames  # fmt: skip
    times = walk_times(recipe.sampling, bundle.objective.schedule)
    ours = our_latents(bundle, recipe, PROMPTS, NEGATIVE, latents, times)
    assert (ours - theirs).abs().max() <= 1e-4 < 0.1 < (ours - latents).abs().max()


def test_each_expert_and_each_guidance_counts(experts, tmp_path):
    """What the comparison above would miss if the two networks or scales were interchangeable."""
    times, latents = torch.tensor([1.0, 0.8, 0.5, 0.0], dtype=torch.float64), start(16, 3, 4, 4)

    def made(low: float | None, swapped: bool = False) -> torch.Tensor:
        recipe = experts_recipe(tmp_path, experts, sampling={"sampler": "euler", "guidance": 4.0, "guidance_low": low})
        bundle = load(recipe)
        if swapped:
            denoiser: Any = bundle.denoiser
            denoiser.transformer, denoiser.transformer_2 = denoiser.transformer_2, denoiser.transformer
        return our_latents(bundle, recipe, PROMPTS, NEGATIVE, latents, times)

    plain = made(None)
    assert torch.equal(plain, made(4.0))
    assert (plain - made(1.0)).abs().max() > 1e-3 and (plain - made(None, swapped=True)).abs().max() > 1e-2


@pytest.mark.parametrize("offload", ["model", "block"])
def test_both_experts_are_where_they_work(experts, tmp_path, offload):
    """The one that does not train too: `block` has two blocks on the device, of whichever of them."""
    recipe = experts_recipe(tmp_path, experts, "low", sampling={"sampler": "euler", "guidance": 1.0})
    times, latents = torch.tensor([1.0, 0.8, 0.5, 0.0], dtype=torch.float64), start(16, 3, 4, 4)
    bundle = load(recipe)
    text, networks = encode_prompts(bundle, PROMPTS, CPU), cast(WanExperts, bundle.denoiser).whole()
    plain, moved = (
        denoise_latents(bundle, latents, times, text, text, recipe.sampling, compute, lambda: torch.zeros_like(latents))
        for compute in (CPU, Compute(torch.device("cpu"), offload=offload))
    )
    assert torch.equal(plain, moved)
    assert {name.split(".")[0] for name in find_blocks(networks)} == {"high", "low"}


def test_the_change_is_where_the_pipeline_has_it(experts, tmp_path):
    """A time at the boundary itself is high; so is what a float32 makes of it."""
    denoiser: Any = load(experts_recipe(tmp_path, experts)).denoiser
    assert denoiser.boundary == torch.tensor(CHANGE).item()
    asked: list[str] = []
    for name, network in denoiser.experts.items():
        network.register_forward_pre_hook(lambda *_, name=name: asked.append(name))
    text = Text(torch.randn(1, 3, 32), torch.ones(1, 3).bool())
    below = torch.nextafter(torch.tensor([CHANGE]), torch.zeros(1))
    for t in (torch.tensor([CHANGE]), torch.tensor([CHANGE], dtype=torch.float64), below):
        denoiser(start(16, 1, 2, 2)[:1], t, text)
    assert asked == ["high", "high", "low"]


def test_samples_on_both_sides_go_to_their_own_expert(experts, tmp_path):
    denoiser = load(experts_recipe(tmp_path, experts)).denoiser
    x = torch.randn(4, 16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    text = Text(torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(2)), torch.ones(4, 3).bool())
    t = torch.tensor([0.9, 0.1, 0.71, 0.69])
    together = denoiser(x, t, text)
    for row in range(4):
        one = denoiser(x[row : row + 1], t[row : row + 1], Text(text.values[row : row + 1], text.mask[row : row + 1]))
        assert (together[row] - one[0]).abs().max() <= 1e-5
    together.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in denoiser.parameters() if p.ndim > 1)


# -- two experts: training


@pytest.mark.parametrize("expert", ["high", "low", "both"])
def test_training_loads_what_trains_and_nothing_else(experts, tmp_path, expert, monkeypatch):
    loaded: list[str] = []
    load_network = WanConfig.load_network
    monkeypatch.setattr(WanConfig, "load_network", lambda self: loaded.append(self.subfolder) or load_network(self))
    wanted = {"high": ["transformer"], "low": ["transformer_2"], "both": ["transformer", "transformer_2"]}[expert]
    bundle = build_bundle(experts_recipe(tmp_path, experts, expert), frozen_text_width=32)
    assert loaded == wanted and bundle.denoiser.makes_videos == (expert == "both")
    assert {name.split(".")[1] for name in DenoisingLoss(bundle).state_dict()} == set(wanted)
    assert all(p.requires_grad for p in bundle.denoiser.parameters())
    whole = build_bundle(experts_recipe(tmp_path, experts, expert))
    assert sorted(loaded[len(wanted) :]) == ["transformer", "transformer_2"] and whole.denoiser.makes_videos
    assert whole.denoiser.state_dict().keys() == bundle.denoiser.state_dict().keys()
    for name in (expert,) if expert != "both" else ():  # the other one is not learned from
        other = cast(WanExperts, whole.denoiser).experts["low" if name == "high" else "high"]
        assert not other.training and not any(p.requires_grad for p in other.parameters())


@pytest.mark.parametrize(("expert", "sigmas"), [("high", [0.99, 0.88]), ("low", [0.86, 0.2]), ("both", [0.9, 0.5])])
def test_training_input_target_and_loss_are_those_of_flow_matching(experts, tmp_path, expert, sigmas):
    """x_t between data and noise, the velocity noise - x0, mean squared error, of the network at work there."""
    bundle = build_bundle(experts_recipe(tmp_path, experts, expert), frozen_text_width=32)
    text = encode_prompts(load(experts_recipe(tmp_path, experts)), PROMPTS, CPU)
    pipeline = open_pipeline("WanPipeline", experts)
    x0, noise = start(16, 3, 4, 4), torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    levels = torch.tensor(sigmas)
    times = flow_times(levels, bundle.objective.schedule).float()
    with torch.no_grad():
        ours = DenoisingLoss(bundle)(x0, noise, times, text)
        padded = torch.nn.functional.pad(text.values * text.mask[..., None], (0, 0, 0, 512 - text.values.shape[1]))
        for row, sigma in enumerate(sigmas):
            network = pipeline.transformer if sigma >= BOUNDARY else pipeline.transformer_2
            x_t = (1 - sigma) * x0[row : row + 1] + sigma * noise[row : row + 1]
            velocity = network(x_t, 1000 * levels[row : row + 1], padded[row : row + 1], return_dict=False)[0]
            loss = ((velocity - (noise - x0)[row : row + 1]) ** 2).mean()
            assert (ours[row] - loss).abs() <= 1e-4


TIMES = [{}, {"time_sampling": "logit_normal", "logit_mean": 0.5}]


@pytest.mark.parametrize("objective", TIMES)
@pytest.mark.parametrize("expert", ["high", "low"])
def test_times_stay_in_the_expert_s_interval(experts, tmp_path, expert, objective):
    bundle = build_bundle(experts_recipe(tmp_path, experts, expert, objective=objective), frozen_text_width=32)
    ends = torch.tensor([0.0, 2**-24, 1 - 2**-24], dtype=torch.float64)
    draws = torch.cat([ends, torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)])
    t = bundle.objective.sample_time(draws)
    told, boundary = t.float(), bundle.denoiser.boundary
    high = expert == "high"
    assert bool((told >= boundary).all() if high else (told < boundary).all())
    sigma = bundle.objective.schedule.sigma(t)
    assert sigma.min() < 0.02 + high * BOUNDARY and sigma.max() > (0.99 if high else BOUNDARY - 1e-3)
    everywhere = experts_recipe(tmp_path, experts, objective=objective).objective.build()
    whole = everywhere.sample_time(torch.linspace(0, 1, 400_001, dtype=torch.float64)[:-1])
    inside = whole[(whole >= boundary) == high]
    share = everywhere.share(bundle.objective.interval)
    assert abs(share - len(inside) / 400_000) < 1e-4
    levels = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    expected = inside.sort().values[(levels * len(inside)).long()]
    assert (bundle.objective.sample_time(levels) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("objective", TIMES)
def test_the_experts_take_turns_by_their_share_of_the_times(experts, tmp_path, objective):
    bundle: Bundle = build_bundle(experts_recipe(tmp_path, experts, objective=objective), frozen_text_width=32)
    steps = [objective_of_step(bundle, seed=5, step=step).interval for step in range(3000)]
    boundary = cast(WanExperts, bundle.denoiser).boundary
    assert set(steps) == {(boundary, 1.0), (0.0, boundary)}
    share = bundle.objective.share((boundary, 1.0))
    assert abs(share - 0.3) < 1e-7 if not objective else 0.3 < share < 0.7
    found = steps.count((boundary, 1.0)) / 3000
    assert abs(found - share) < 4 * (share * (1 - share) / 3000) ** 0.5
    assert steps[:50] == [objective_of_step(bundle, seed=5, step=step).interval for step in range(50)]
    assert steps[:50] != [objective_of_step(bundle, seed=6, step=step).interval for step in range(50)]
    one = build_bundle(experts_recipe(tmp_path, experts, "low", objective=objective), frozen_text_width=32)
    assert objective_of_step(one, seed=5, step=1) is one.objective


# -- two experts: what does not fit


def refused(folder: Path, model: Path, error: type[UserError], message: str, /, **groups: Any) -> None:
    with pytest.raises(error, match=message):
        build_bundle(family_recipe(folder, "wan", model, **groups), frozen_text_width=32)


def test_a_recipe_that_does_not_fit_its_directory_is_refused(experts, ti2v, tmp_path):
    one = save_wan(tmp_path / "one")
    for model in (one, ti2v):
        data = {"height": 64, "width": 64}
        refused(
            tmp_path, model, UsageError, "model.expert = low: .* has one network", model={"expert": "low"}, data=data
        )
    refused(tmp_path, experts, UsageError, "has two networks, .*: high, low or both")
    flow = {"schedule": "cosine", "prediction": "v", "shift": 1.0}
    refused(tmp_path, experts, UsageError, "share the time of flow", model={"expert": "high"}, objective=flow)
    index = json.loads((experts / "model_index.json").read_text())
    broken = save_experts(tmp_path / "broken")
    (broken / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": 1.5}))
    refused(tmp_path, broken, UserError, "boundary_ratio = 1.5", model={"expert": "both"})


def test_settings_that_have_no_effect_are_refused(experts, tmp_path):
    with pytest.raises(UsageError, match="expert = 'high': chooses between the two networks of a pipeline"):
        WanConfig.parse({"expert": "high"})
    with pytest.raises(UsageError, match="sampling.guidance_low = 3: is for models of two experts"):
        family_recipe(tmp_path, "wan", save_wan(tmp_path / "one"), sampling={"guidance_low": 3.0})
    plain = family_recipe(tmp_path, "wan", tmp_path / "one")
    bundle = load(plain)
    asked = plain.model_copy(update={"sampling": plain.sampling.model_copy(update={"guidance_low": 3.0})})
    with pytest.raises(UsageError, match="guidance_low = 3: belongs to models with a network of its own for low noise"):
        our_latents(bundle, asked, PROMPTS, NEGATIVE, start(16, 3, 4, 4), torch.tensor([1.0, 0.0]))


def test_settings_come_from_the_directory(experts, ti2v, tmp_path):
    assert experts_recipe(tmp_path, experts).objective.shift == 3.0
    assert experts_recipe(tmp_path, experts).sampling.steps == 40
    assert family_recipe(tmp_path, "wan", ti2v, data={"height": 64, "width": 64}).objective.shift == 5.0
    size = Size(81, 480, 832)
    named = {name: WanConfig.companions({"model": name}, size) for name in ("a/Wan2.2-TI2V-5B-Diffusers", "a/Wan2.1")}
    assert [groups["objective"]["shift"] for groups in named.values()] == [5.0, 3.0]
    assert {(groups["sampling"]["sampler"], groups["sampling"]["spacing"]) for groups in named.values()} == {
        ("unipc", "timesteps")
    }
    own = experts_recipe(tmp_path, experts).sampling  # its scheduler is Euler's method
    assert (own.sampler, own.spacing) == ("euler", "even")


# -- 5B


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_5b_makes_the_same_latents_and_video_as_its_pipeline(ti2v, tmp_path, guidance):
    groups = {"data": {"height": 64, "width": 96}, "sampling": {"sampler": "euler", "guidance": guidance, "steps": 4}}
    recipe = family_recipe(tmp_path, "wan", ti2v, **groups)
    bundle, pipeline, latents = load(recipe), open_pipeline("WanPipeline", ti2v), start(48, 3, 4, 6)
    assert pipeline.config.expand_timesteps

    def theirs(kind: str) -> torch.Tensor:
        with torch.no_grad():
            return pipeline(
                PROMPTS, [NEGATIVE] * 2, height=64, width=96, num_frames=9, num_inference_steps=4,
                guidance_scale=guidance, latents=latents.clone(), output_type=kind,
            ).frames  # fmt: skip

    expected = theirs("latent")
    times = flow_times(pipeline.scheduler.sigmas, bundle.objective.schedule)
    ours = our_latents(bundle, recipe, PROMPTS, NEGATIVE, latents, times)
    assert (ours - expected).abs().max() <= 1e-4 < 0.1 < (ours - latents).abs().max()
    decoded = bundle.codec.decode(ours).transpose(1, 2) / 2 + 0.5  # b f c h w in [0, 1]
    assert (decoded - theirs("pt")).abs().max() <= 1e-4


def test_5b_latents_are_normalised_as_the_model_knows_them(ti2v, tmp_path):
    bundle = load(family_recipe(tmp_path, "wan", ti2v, data={"height": 64, "width": 64}))
    pipeline = open_pipeline("WanPipeline", ti2v)
    clip = torch.rand(1, 3, 9, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        raw = pipeline.vae.encode(clip).latent_dist
    mean, std = (
        torch.tensor(pipeline.vae.config[name]).view(1, 48, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    posterior = bundle.codec.encode(clip)
    assert posterior.mean.shape == (1, 48, 3, 4, 6)
    assert (posterior.mean - (raw.mean - mean) / std).abs().max() <= 1e-4
    with pytest.raises(UsageError, match=r"height = 3 latents.*patches of 2; use 2 or 4"):
        load(family_recipe(tmp_path, "wan", ti2v, data={"height": 48, "width": 64}))


def test_5b_trains_on_one_time_a_sample(ti2v, tmp_path):
    """The loss of the pipeline's network when it is told the same time for every token, as the pipeline tells it."""
    bundle = load(family_recipe(tmp_path, "wan", ti2v, data={"height": 64, "width": 64}))
    pipeline = open_pipeline("WanPipeline", ti2v)
    x0, noise = start(48, 3, 4, 4), torch.randn(2, 48, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    sigmas = torch.tensor([0.9, 0.3])
    times = flow_times(sigmas, bundle.objective.schedule).float()
    text = encode_prompts(bundle, PROMPTS, CPU)
    padded = torch.nn.functional.pad(text.values * text.mask[..., None], (0, 0, 0, 512 - text.values.shape[1]))
    with torch.no_grad():
        ours = DenoisingLoss(bundle)(x0, noise, times, text)
        for row in range(2):
            x_t = (1 - sigmas[row]) * x0[row] + sigmas[row] * noise[row]
            told = (1000 * sigmas[row]).expand(1, 3 * 2 * 2)
            velocity = pipeline.transformer(x_t[None], told, padded[row : row + 1], return_dict=False)[0]
            assert (ours[row] - ((velocity[0] - (noise - x0)[row]) ** 2).mean()).abs() <= 1e-4


# -- full size


def published(name: str, folder: Path, *networks: str, **index: Any) -> str:
    """A directory without weights for a published configuration, which names its sizes as its authors do."""
    if not (CONFIGS / name).is_file():
        pytest.skip(f"{CONFIGS / name} is not there")
    theirs = json.loads((CONFIGS / name).read_text())
    heads = theirs["num_heads"]
    ours = {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": heads, "attention_head_dim": theirs["dim"] // heads,
        "in_channels": theirs["in_dim"], "out_channels": theirs["out_dim"], "ffn_dim": theirs["ffn_dim"],
        "freq_dim": theirs["freq_dim"], "num_layers": theirs["num_layers"], "eps": theirs["eps"],
    }  # fmt: skip
    for network in networks:
        (folder / network).mkdir(parents=True)
        (folder / network / "config.json").write_text(json.dumps(ours))
        (folder / network / "diffusion_pytorch_model.safetensors").touch()  # of the weights only the place
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", **index}))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "count", "layers", "trained"),
    [("t2v.json", 14_288_491_584, 400, 153_354_240), ("t2v_1.3B.json", 1_418_996_800, 300, 43_745_280)],
)
def test_published_sizes_and_what_lora_adds(tmp_path, name, count, layers, trained):
    model = published(name, tmp_path, "transformer")
    with torch.device("meta"):
        denoiser = WanConfig.parse({"model": model}).build(channels=16, text_width=4096)
        assert sum(p.numel() for p in denoiser.parameters()) == count
        assert len(add_lora(denoiser, LoraConfig(rank=32), denoiser.lora_targets)) == layers
    assert sum(p.numel() for p in denoiser.parameters() if p.requires_grad) == trained
    held = sum(p.numel() * p.element_size() for p in denoiser.to(torch.bfloat16).parameters())
    assert held == 2 * (count + trained)  # bytes of the weights in half precision


@pytest.mark.parametrize(("expert", "count"), [("high", 14_288_491_584), ("both", 2 * 14_288_491_584)])
def test_a14b_at_full_size(tmp_path, expert, count):
    model = published("t2v_2_2.json", tmp_path, "transformer", "transformer_2", boundary_ratio=BOUNDARY)
    with torch.device("meta"):
        denoiser = WanConfig.parse({"model": model, "expert": expert}).build(channels=16, text_width=4096)
    assert sum(p.numel() for p in denoiser.parameters()) == count


def test_5b_at_full_size(tmp_path):
    model = published("ti2v_2_2.json", tmp_path, "transformer", expand_timesteps=True)
    with torch.device("meta"):
        denoiser = WanConfig.parse({"model": model}).build(channels=48, text_width=4096)
    assert sum(p.numel() for p in denoiser.parameters()) == 4_999_787_712
