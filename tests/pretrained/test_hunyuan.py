"""HunyuanVideo against diffusers' own pipeline: embedded guidance, true guidance, and its two text encoders."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from family_parity import (
    CPU,
    NEGATIVE,
    PROMPTS,
    family_recipe,
    load,
    noised_by_scheduler,
    open_pipeline,
    our_latents,
)
from reelwright.bundle import DenoisingLoss
from reelwright.diffusion.objective import ObjectiveConfig
from reelwright.generate import encode_prompts, walk_times
from reelwright.pretrained.hunyuan import TEMPLATE, HunyuanConfig
from reelwright.types import UsageError
from tiny_hunyuan import save_hunyuan

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory) -> Path:
    return save_hunyuan(tmp_path_factory.mktemp("hunyuan"), TEMPLATE)


@pytest.fixture(scope="module")
def pipeline(hunyuan) -> Any:
    return open_pipeline("HunyuanVideoPipeline", hunyuan)


@pytest.fixture
def recipe(hunyuan, pipeline, tmp_path) -> Any:
    """The template's length depends on the tokenizer; with the model's own it is 95."""
    prefix = len(pipeline.tokenizer(TEMPLATE.split("{}")[0])["input_ids"])
    return family_recipe(tmp_path, "hunyuan", hunyuan, text={"template_tokens": prefix, "type": "hunyuan"})


def template_of(recipe) -> dict[str, Any]:
    return {"template": TEMPLATE, "crop_start": recipe.text.template_tokens}


def test_the_same_embeddings_as_the_pipeline(recipe, pipeline):
    with torch.no_grad():
        words, pooled, mask = pipeline.encode_prompt(PROMPTS, prompt_template=template_of(recipe))
    ours = encode_prompts(load(recipe), PROMPTS, CPU)
    assert (ours.values[:, 0, :16] - pooled).abs().max() <= 1e-5 and not ours.values[:, 0, 16:].any()
    assert ours.mask[:, 1:].sum(1).tolist() == mask.sum(1).tolist()
    for row in range(2):
        real = words[row][mask[row].bool()]
        assert (ours.values[row, 1:][ours.mask[row, 1:]] - real).abs().max() <= 1e-5


@pytest.mark.parametrize("true_guidance", [1.0, 4.0])
def test_the_same_latents_and_video_as_the_pipeline(recipe, pipeline, true_guidance):
    sampling = recipe.sampling.model_copy(update={"guidance": true_guidance, "steps": 3})
    recipe = recipe.model_copy(update={"sampling": sampling})
    bundle = load(recipe)
    latents = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def theirs(kind: str) -> torch.Tensor:
        with torch.no_grad():
            return pipeline(
                PROMPTS, negative_prompt=[NEGATIVE] * 2, true_cfg_scale=true_guidance, height=32, width=32,
                num_frames=9, num_inference_steps=3, guidance_scale=6.0, latents=latents.clone(), output_type=kind,
                prompt_template=template_of(recipe),
            ).frames  # fmt: skip

    expected = theirs("latent")
    times = walk_times(recipe.sampling, bundle.objective.schedule)
    ours = our_latents(bundle, recipe, PROMPTS, NEGATIVE, latents, times)
    assert (ours - expected).abs().max() <= 1e-4 and (ours - latents).abs().max() > 0.1
    decoded = bundle.codec.decode(ours).transpose(1, 2) / 2 + 0.5  # b f c h w in [0, 1]
    assert (decoded - theirs("pt")).abs().max() <= 1e-4


def test_guidance_is_told_as_1_while_training_and_as_set_while_generating(recipe, monkeypatch):
    from reelwright.pretrained.base import generating

    bundle, told = load(recipe), []
    inner = bundle.denoiser.transformer.forward
    monkeypatch.setattr(
        bundle.denoiser.transformer, "forward", lambda *a, **k: told.append(a[5].tolist()) or inner(*a, **k)
    )
    x, t = torch.zeros(1, 4, 1, 4, 4), torch.full((1,), 0.5)
    text = encode_prompts(bundle, PROMPTS[:1], CPU)
    bundle.denoiser(x, t, text)
    with generating(bundle.denoiser):
        bundle.denoiser(x, t, text)
    assert told == [[1000.0], [6000.0]] and not bundle.denoiser.generating


def test_training_input_target_and_loss_are_those_of_flow_matching(recipe, pipeline):
    """The scheduler's own corruption, the velocity noise - x0, a guidance of 1, mean squared error."""
    bundle = load(recipe)
    at = noised_by_scheduler(pipeline, bundle, 4)
    with torch.no_grad():
        words, pooled, mask = pipeline.encode_prompt(PROMPTS, prompt_template=template_of(recipe))
        prediction = pipeline.transformer(
            at.x_t, 1000 * at.sigmas, words, mask, pooled, guidance=torch.full((2,), 1000.0), return_dict=False
        )[0]
        ours = DenoisingLoss(bundle)(at.x0, at.noise, at.times.float(), encode_prompts(bundle, PROMPTS, CPU))
    assert torch.allclose(ours, ((prediction - (at.noise - at.x0)) ** 2).flatten(1).mean(1), atol=1e-4)
    assert ours.min() > 0.1


def test_what_the_directory_says_and_what_has_no_effect(hunyuan, recipe, tmp_path):
    """The shift is its scheduler's; a guidance that a network is not told of is warned of."""
    assert recipe.objective.shift == 7.0
    other = shutil.copytree(hunyuan, tmp_path / "other")
    settings = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps({**settings, "shift": 17.0}))
    assert family_recipe(tmp_path, "hunyuan", other, text={"type": "hunyuan"}).objective.shift == 17.0
    told_nothing = shutil.copytree(hunyuan, tmp_path / "told_nothing")
    network = told_nothing / "transformer" / "config.json"
    network.write_text(json.dumps({**json.loads(network.read_text()), "guidance_embeds": False}))
    deaf, objective = {"guidance_embeds": False}, ObjectiveConfig()
    for field in ("embedded_guidance", "training_guidance"):
        (said,) = HunyuanConfig.parse({"config": deaf, field: 3}).warnings(objective)
        assert f"model.{field} = 3 has no effect: this network is not told" in said
        (of_weights,) = HunyuanConfig.parse({"model": str(told_nothing), field: 3}).warnings(objective)
        assert of_weights == said
        assert HunyuanConfig.parse({"config": {}, field: 3}).warnings(objective) == ()
    assert HunyuanConfig.parse({"config": deaf}).warnings(objective) == ()


def test_full_size():
    with torch.device("meta"):
        model = HunyuanConfig().build(channels=16, text_width=4096)
    assert sum(p.numel() for p in model.parameters()) == 12_821_012_544


def test_a_network_from_scratch_takes_any_text(tmp_path):
    small = {
        "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1, "num_single_layers": 1,
        "num_refiner_layers": 1, "in_channels": 6, "out_channels": 6, "patch_size": 1, "text_embed_dim": 12,
        "pooled_projection_dim": 12, "rope_axes_dim": [2, 4, 4],
    }  # fmt: skip
    from reelwright.types import Text

    model = HunyuanConfig.parse({"config": small}).build(channels=6, text_width=12)
    out = model(torch.randn(2, 6, 2, 4, 4), torch.rand(2), Text(torch.randn(2, 5, 12), torch.ones(2, 5).bool()))
    assert out.shape == (2, 6, 2, 4, 4) and out.isfinite().all()
    with pytest.raises(UsageError, match="pooled_projection_dim = 13"):
        HunyuanConfig.parse({"config": {**small, "pooled_projection_dim": 13}}).build(6, 12)
    with pytest.raises(UsageError, match=r"model.config.layers: .* no such argument; did you mean num_layers"):
        HunyuanConfig.parse({"config": {"layers": 2}}).build(6, 12)
    with pytest.raises(UsageError, match="takes 6 latent channels, but the codec makes 4"):
        HunyuanConfig.parse({"config": small}).build(4, 12)
