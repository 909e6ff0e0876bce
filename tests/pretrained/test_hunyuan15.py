"""HunyuanVideo 1.5 against diffusers' own pipeline: its text encoders, codec, guidance and training; its settings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from family_parity import (
    CPU,
    NEGATIVE,
    family_recipe,
    load,
    noised_by_scheduler,
    open_pipeline,
    our_latents,
)
from reelwright.bundle import DenoisingLoss, build_text
from reelwright.config import to_yaml
from reelwright.data.dataset import pad_texts
from reelwright.generate import encode_prompts, walk_times
from reelwright.pretrained.base import check_class
from reelwright.pretrained.hunyuan import TEMPLATE as TEMPLATE_10
from reelwright.pretrained.hunyuan15 import TEMPLATE, Hunyuan15Config, words_in_quotes
from reelwright.training.lora import LoraConfig, add_lora
from reelwright.types import Size, Text, UsageError, UserError
from tiny_hunyuan import save_hunyuan
from tiny_hunyuan15 import GUIDANCE, PROMPTS, SHIFT, prefix_tokens, save_hunyuan15, text_group

torch.set_num_threads(1)
SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1, "num_refiner_layers": 1, "mlp_ratio": 2.0,
    "in_channels": 13, "out_channels": 6, "text_embed_dim": 12, "text_embed_2_dim": 8, "image_embed_dim": 8,
    "rope_axes_dim": [2, 4, 4],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_hunyuan15(tmp_path_factory.mktemp("hunyuan15"), TEMPLATE)


@pytest.fixture(scope="module")
def prefix(model) -> int:
    return prefix_tokens(model, TEMPLATE)


@pytest.fixture(scope="module")
def pipeline(model, prefix) -> Any:
    made = open_pipeline("HunyuanVideo15Pipeline", model)
    made.prompt_template_encode_start_idx = prefix
    made.vae.enable_slicing()  # it takes one clip at a time
    return made


@pytest.fixture
def recipe(model, prefix, tmp_path) -> Any:
    return family_recipe(tmp_path, "hunyuan15", model, text=text_group(prefix))


# -- text


def test_the_template_is_the_pipeline_s(pipeline):
    def chat(prompt: str) -> str:
        messages = [{"role": "system", "content": pipeline.system_message}, {"role": "user", "content": prompt}]
        return pipeline.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    assert chat("a {ball}") == TEMPLATE.format("a {ball}")


@pytest.mark.parametrize(
    "caption",
    [
        "no quotes", 'one "sign"', 'a "b" and “c d” and a "b" again', "“only” curly", 'an "open one', 'empty "" quotes',
        'over "two\nlines" and "one"', 'mixed "straight” “curly"', '"""', "", 'a "x" b "“y”" c',
    ],
)  # fmt: skip
def test_words_in_quotes_are_those_the_pipeline_finds(caption):
    from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import extract_glyph_texts

    assert (words_in_quotes(caption) or None) == extract_glyph_texts(caption)


def compare_embeddings(ours: Text, theirs: tuple[torch.Tensor, ...]) -> None:
    words, mask, quoted, quoted_mask = theirs
    marks = ours.values[..., -1]
    assert set(marks[ours.mask].tolist()) <= {0.0, 1.0}
    for row in range(len(words)):
        for kind, values, real in ((0, words, mask), (1, quoted, quoted_mask)):
            found = ours.values[row, ours.mask[row] & (marks[row] == kind), :-1]
            expected = values[row, real[row].bool()]
            assert len(found) == len(expected)
            if len(found):
                assert (found[:, : values.shape[2]] - expected).abs().max() <= 1e-5
                assert not found[:, values.shape[2] :].any()


def test_the_same_embeddings_as_the_pipeline(recipe, pipeline):
    prompts = [*PROMPTS, "", "“" + "long words " * 30 + "”"]  # more bytes in quotes than ByT5 is given
    with torch.no_grad():
        theirs = pipeline.encode_prompt(prompts, batch_size=4)
    assert theirs[3].sum(1).tolist() == [14.0, 0.0, 0.0, 256.0]
    compare_embeddings(encode_prompts(load(recipe), prompts, CPU), theirs)


def test_a_long_caption_is_cut_where_the_pipeline_cuts_it(model, prefix, pipeline, tmp_path):
    text = build_text(family_recipe(tmp_path, "hunyuan15", model, text=text_group(prefix, length=9)))
    counts = text.count_tokens(PROMPTS)
    assert min(counts) > 9 and text.length == 9
    with torch.no_grad():
        words, mask = pipeline._get_mllm_prompt_embeds(
            pipeline.text_encoder, pipeline.tokenizer, PROMPTS, torch.device("cpu"), tokenizer_max_length=9,
            crop_start=prefix,
        )  # fmt: skip
        ours = text(text.tokenize(PROMPTS))
        quoted = pipeline.encode_prompt(PROMPTS, batch_size=2)[2:]
    assert mask.sum(1).tolist() == [9, 9]
    compare_embeddings(ours, (words, mask, *quoted))


def test_embeddings_depend_on_no_other_caption_and_survive_the_cache(recipe):
    """Each caption encoded alone and stored without padding, as `prepare` does, then batched: the same prediction."""
    bundle, prompts = load(recipe), ['"OPEN"', "two dots spin to the left and then stop"]
    together = encode_prompts(bundle, prompts, CPU)
    alone = [encode_prompts(bundle, [prompt], CPU) for prompt in prompts]
    stored = pad_texts([one.values[0][one.mask[0]] for one in alone], 0)
    assert stored.values.shape[1] < together.values.shape[1] and bundle.text.width == stored.values.shape[2] == 33
    generator = torch.Generator().manual_seed(4)
    x, t = torch.randn(2, 4, 2, 4, 4, generator=generator), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        first, second = bundle.denoiser(x, t, together), bundle.denoiser(x, t, stored)
        without = Text(stored.values, stored.mask & (stored.values[..., -1] < 0.5))
        assert (first - second).abs().max() <= 1e-5
        assert (first - bundle.denoiser(x, t, without))[0].abs().max() > 1e-3  # the words in quotes are seen


def test_captions_without_quotes_never_reach_byt5(recipe, monkeypatch):
    text = load(recipe).text
    monkeypatch.setattr(text.quotes_encoder, "forward", lambda *_, **__: pytest.fail("no caption has quotes"))
    found = text(text.tokenize(["a red ball", "nothing"]))
    assert not found.values[..., -1].any() and found.mask.any(1).all()


def test_the_fingerprint_knows_what_embeddings_depend_on(model, prefix, tmp_path):
    def fingerprint(**settings: Any) -> str:
        return build_text(
            family_recipe(tmp_path, "hunyuan15", model, text=text_group(prefix, **settings))
        ).fingerprint()

    assert fingerprint() == fingerprint() != fingerprint(length=10)
    assert fingerprint() != fingerprint(dtype="bfloat16")


# -- the pipeline


@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_the_same_latents_and_video_as_the_pipeline(recipe, pipeline, guidance):
    sampling = recipe.sampling.model_copy(update={"guidance": guidance, "steps": 3})
    recipe = recipe.model_copy(update={"sampling": sampling})
    bundle = load(recipe)
    latents = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pipeline.guider = pipeline.guider.new(guidance_scale=guidance)

    def theirs(kind: str) -> torch.Tensor:
        with torch.no_grad():
            return pipeline(
                PROMPTS, [NEGATIVE] * 2, height=32, width=32, num_frames=9, num_inference_steps=3,
                latents=latents.clone(), output_type=kind,
            ).frames  # fmt: skip

    expected = theirs("latent")
    assert expected.isfinite().all() and bundle.codec.compression.latent_size(recipe.size) == Size(3, 4, 4)
    times = walk_times(recipe.sampling, bundle.objective.schedule)
    ours = our_latents(bundle, recipe, PROMPTS, NEGATIVE, latents, times)
    assert (ours - expected).abs().max() <= 1e-4 and (ours - latents).abs().max() > 0.1
    if guidance == 1.0:
        decoded = bundle.codec.decode(ours).transpose(1, 2) / 2 + 0.5  # b f c h w in [0, 1]
        assert (decoded - theirs("pt")).abs().max() <= 1e-4


@pytest.mark.parametrize(("count", "width"), [(2, 48), (1, 288)])  # tiles only where a side is above 256 pixels
def test_encoded_and_decoded_as_the_pipeline_does_it_in_tiles(recipe, pipeline, count, width):
    """Latents are the autoencoder's times its factor; two clips one after the other, as it takes no second one."""
    bundle = load(recipe)
    clips = torch.rand(count, 3, 5, 32, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = bundle.codec.encode(clips)
    factor = pipeline.vae.config.scaling_factor
    pipeline.vae.enable_tiling()
    with torch.no_grad():
        raw = pipeline.vae.encode(clips).latent_dist
        decoded = pipeline.vae.decode(raw.mean).sample.clamp(-1, 1)
        pipeline.vae.use_tiling = False
        whole = pipeline.vae.encode(clips).latent_dist.mean * factor
    assert found.logvar is not None and (found.mean - raw.mean * factor).abs().max() <= 1e-5
    assert ((found.mean - whole).abs().max() > 1e-3) == (width > 256)
    assert (found.logvar - raw.logvar - 2 * math.log(factor)).abs().max() <= 1e-5
    assert (bundle.codec.decode(found.mean) - decoded).abs().max() <= 1e-5


def test_training_input_target_and_loss_are_those_of_the_pipeline(recipe, pipeline):
    """Velocity noise - x0 on the scheduler's own line between them, told as 1000 sigma; texts and picture padded."""
    bundle = load(recipe)
    at = noised_by_scheduler(pipeline, bundle, 4)
    with torch.no_grad():
        words, mask, quoted, quoted_mask = pipeline.encode_prompt(PROMPTS, batch_size=2)
        prediction = pipeline.transformer(
            torch.cat([at.x_t, torch.zeros(2, 5, 3, 4, 4)], dim=1), 1000 * at.sigmas, words, mask,
            encoder_hidden_states_2=quoted, encoder_attention_mask_2=quoted_mask,
            image_embeds=torch.zeros(2, 729, 8), return_dict=False,
        )[0]  # fmt: skip
        ours = DenoisingLoss(bundle)(at.x0, at.noise, at.times.float(), encode_prompts(bundle, PROMPTS, CPU))
    expected = ((prediction - (at.noise - at.x0)) ** 2).flatten(1).mean(1)
    assert torch.allclose(ours, expected, atol=1e-4) and ours.min() > 0.1


def test_half_precision_weights_are_told_time_in_their_own(model, prefix, tmp_path):
    recipe = family_recipe(tmp_path, "hunyuan15", model, text=text_group(prefix), model={"dtype": "bfloat16"})
    bundle, exact = load(recipe), load(family_recipe(tmp_path, "hunyuan15", model, text=text_group(prefix)))
    text = encode_prompts(exact, PROMPTS, CPU)
    x, t = torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(6)), torch.tensor([0.25, 0.75])
    with torch.no_grad():
        rough, fine = bundle.denoiser(x, t, text).float(), exact.denoiser(x, t, text)
    assert (rough - fine).norm() < 0.1 * fine.norm()


# -- settings


def test_a_recipe_names_only_the_family_and_its_place(recipe, model):
    plain = recipe.plain()
    assert plain["objective"]["shift"] == SHIFT and plain["sampling"]["guidance"] == GUIDANCE
    assert plain["codec"] == {**plain["codec"], "type": "video_autoencoder", "model": str(model), "tiling": True}
    assert plain["text"]["length"] == 1000 and plain["model"]["marked_text"] is True
    assert type(recipe).parse(plain) == recipe and recipe.warnings == ()


@pytest.mark.parametrize(
    ("name", "shift", "guidance"),
    [
        ("480p_t2v", 5.0, 6.0), ("720p_t2v", 9.0, 6.0), ("720p_i2v", 7.0, 6.0), ("480p_t2v_distilled", 5.0, 1.0),
        ("480p_i2v_step_distilled", 7.0, 1.0),
    ],
)  # fmt: skip
def test_published_shifts_and_guidance_by_the_hub_s_names(name, shift, guidance):
    """The table of Tencent-Hunyuan/HunyuanVideo-1.5, README.md."""
    groups = Hunyuan15Config.companions({"model": f"hunyuanvideo-community/HunyuanVideo-1.5-{name}"}, Size(9, 32, 32))
    assert (groups["objective"]["shift"], groups["sampling"]["guidance"]) == (shift, guidance)


def test_weights_that_continue_a_picture_are_warned_of(tmp_path):
    network = tmp_path / "transformer"
    network.mkdir()
    (network / "config.json").write_text(
        json.dumps({"_class_name": "HunyuanVideo15Transformer3DModel", "task_type": "i2v"})
    )
    (warning,) = family_recipe(tmp_path, "hunyuan15", tmp_path).warnings
    assert "task_type = i2v" in warning and "the t2v ones" in warning


def test_full_size():
    with torch.device("meta"):
        built = Hunyuan15Config.parse({"marked_text": True}).build(channels=32, text_width=3585)
        names = add_lora(built, LoraConfig(rank=32), built.lora_targets)
    adapters = sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert sum(p.numel() for p in built.parameters()) - adapters == 8_326_608_160
    assert (len(names), adapters) == (432, 432 * 32 * 2 * 2048)


def test_a_network_from_scratch_takes_any_text_and_trains():
    config = Hunyuan15Config.parse({"config": SMALL, "gradient_checkpointing": True})
    network = config.build(channels=6, text_width=12).train()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    out = network(torch.randn(2, 6, 2, 4, 4), torch.rand(2), Text(torch.randn(2, 5, 12), mask))
    out.square().mean().backward()
    assert out.shape == (2, 6, 2, 4, 4) and out.isfinite().all()
    silent = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    last = "transformer.transformer_blocks.0."  # what it makes of the text leads nowhere
    layers = ("attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2")
    assert silent == {f"{last}{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert config.in_turns and all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert network.check_size(Size(2, 4, 5)) == Size(2, 4, 5)


def test_what_does_not_fit_is_named():
    def build(channels: int = 6, width: int = 12, **settings: Any) -> None:
        marked = settings.pop("marked_text", False)
        Hunyuan15Config.parse({"config": {**SMALL, **settings}, "marked_text": marked}).build(channels, width)

    with pytest.raises(UsageError, match="takes 6 latent channels, but the codec makes 4"):
        build(channels=4)
    with pytest.raises(UsageError, match="takes 12 channels and makes 6, but a network of HunyuanVideo 1.5"):
        build(in_channels=12)
    with pytest.raises(UsageError, match="takes text of width 13, but text.type makes 12"):
        build(marked_text=True)
    with pytest.raises(UsageError, match="text_embed_2_dim = 16 is above text_embed_dim = 12"):
        build(width=13, marked_text=True, text_embed_2_dim=16)
    with pytest.raises(UsageError, match=r"model.config.layers: .* no such argument; did you mean num_layers"):
        build(layers=2)


# -- the other generation


def test_a_checkpoint_of_the_other_generation_names_the_right_type(model, tmp_path, run_cli):
    older = save_hunyuan(tmp_path / "older", TEMPLATE_10)
    for place, said, right in ((older, "hunyuan15", "hunyuan"), (model, "hunyuan", "hunyuan15")):
        with pytest.raises(UsageError, match=f"can be used here; use model.type = {right}$"):
            family_recipe(tmp_path, said, place)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        to_yaml({
            "run_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache"), "data": {"path": str(tmp_path)},
            "model": {"type": "hunyuan", "model": str(model)},
        })
    )  # fmt: skip
    told = run_cli("prepare", recipe)
    assert told.code == 2 and "use model.type = hunyuan15" in told.err and "Traceback" not in told.err
    assert not (tmp_path / "cache").exists()


def test_so_does_one_whose_class_is_only_known_when_it_is_there(model):
    """As of a hub id, whose config.json has to be fetched."""
    with pytest.raises(UserError, match="only HunyuanVideoTransformer3DModel can be used here; use model.type = hun"):
        check_class(str(model), "transformer", ("HunyuanVideoTransformer3DModel",), "model.model")


def test_text_of_the_other_generation_is_refused(tmp_path, model, prefix):
    older = save_hunyuan(tmp_path / "older", TEMPLATE_10)
    text = text_group(prefix, model=str(older))
    with pytest.raises(UserError, match="its text_encoder is a llama, but text.type = hunyuan15 takes a qwen2_5_vl"):
        build_text(family_recipe(tmp_path, "hunyuan15", model, text=text))
