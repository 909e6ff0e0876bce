"""Networks of diffusers from scratch: what has to agree does, and what does not fit is said before any clip is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reelwright.pretrained.cogvideox import CogVideoXConfig
from reelwright.pretrained.hunyuan import HunyuanConfig
from reelwright.pretrained.hunyuan15 import Hunyuan15Config
from reelwright.pretrained.ltx import LTXConfig
from reelwright.pretrained.scratch import try_forward
from reelwright.pretrained.wan import WanConfig
from reelwright.types import Size, Text, UsageError

torch.set_num_threads(1)
CHANNELS, WIDTH, LATENT = 6, 20, Size(2, 4, 4)
HUNYUAN = {
    "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "num_single_layers": 2,
    "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1, "guidance_embeds": False, "rope_axes_dim": [4, 6, 6],
}  # fmt: skip
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "cogvideox": (CogVideoXConfig, {
        "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "time_embed_dim": 16,
        "sample_height": 4, "sample_width": 4, "sample_frames": 5,
    }),
    "hunyuan": (HunyuanConfig, HUNYUAN),
    "hunyuan15": (Hunyuan15Config, {
        "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "num_refiner_layers": 1, "patch_size": 1,
        "patch_size_t": 1, "rope_axes_dim": [4, 6, 6], "text_embed_2_dim": 8, "image_embed_dim": 8,
    }),
    "ltx": (LTXConfig, {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}),
    "wan": (WanConfig, {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "ffn_dim": 32}),
}  # fmt: skip


def config_of(family: str, **changes: Any) -> Any:
    cls, small = FAMILIES[family]
    return cls(config={**small, **changes})


@pytest.mark.parametrize("family", list(FAMILIES))
def test_channels_and_text_are_those_of_codec_and_encoder(family):
    """The config is silent about them, and its network fits codecs and texts of any width."""
    for channels, width in ((CHANNELS, WIDTH), (4, 32)):
        denoiser = config_of(family).build(channels, width).eval()
        text = Text(torch.randn(2, 3, width), torch.ones(2, 3, dtype=torch.bool))
        with torch.no_grad():
            made = denoiser(torch.randn(2, channels, *LATENT.tuple), torch.tensor([0.2, 0.9]), text)
        assert made.shape == (2, channels, *LATENT.tuple) and made.isfinite().all()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_fits_is_let_through_and_draws_nothing(family):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    try_forward(config_of(family), CHANNELS, LATENT)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("hunyuan", {"rope_axes_dim": [4, 4, 4]}, "not fit together: HunyuanVideoTransformer3DModel fails"),
        ("hunyuan", {"attention_head_dim": 18}, "numbers do not fit together"),
        ("hunyuan", {"out_channels": 5}, "takes 6 channels and makes 5"),
        ("hunyuan", {"num_layers": -1}, "num_layers = -1: must not be negative"),
        ("hunyuan", {"num_layer": 1}, "num_layer: HunyuanVideo.* has no such argument; did you mean num_layers"),
        ("wan", {"out_channels": 5}, "takes 6 channels and makes 5, as image-to-video networks do"),
        ("wan", {"attention_head_dim": 7}, "WanTransformer3DModel refuses it|numbers do not fit together"),
        ("ltx", {"out_channels": 5}, "takes 6 channels and makes 5"),
        ("ltx", {"cross_attention_dim": 20}, "LTXVideoTransformer3DModel fails on latents of 2x4x4"),
        ("cogvideox", {"ofs_embed_dim": 8}, "numbers do not fit together"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_message(family, changes, said):
    with pytest.raises(UsageError, match=said):
        try_forward(config_of(family, **changes), CHANNELS, LATENT)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_widths_that_the_config_sets_and_the_parts_do_not_have(family):
    """The way out is to leave them out."""
    text = {"ltx": "caption_channels", "wan": "text_dim"}.get(family, "text_embed_dim")
    with pytest.raises(UsageError, match="takes text of width 9.*leave the width of text out of model.config"):
        config_of(family, **{text: 9}).build(CHANNELS, WIDTH)
    channels = {"in_channels": 11 if family == "hunyuan15" else 5, "out_channels": 5}
    with pytest.raises(UsageError, match="takes 5 latent channels, but the codec makes 6; leave the channels out"):
        config_of(family, **channels).build(CHANNELS, WIDTH)


def test_layers_are_not_all_tried_and_large_networks_not_at_all(monkeypatch):
    built: list[int] = []
    plain = HunyuanConfig.build

    def counting(self: Any, channels: int, text_width: int) -> Any:
        denoiser = plain(self, channels, text_width)
        if next(denoiser.parameters()).device.type != "meta":
            built.append(len(denoiser.transformer.transformer_blocks))
        return denoiser

    monkeypatch.setattr(HunyuanConfig, "build", counting)
    try_forward(config_of("hunyuan", num_layers=5), CHANNELS, LATENT)
    assert built == [1]
    try_forward(HunyuanConfig(config={"patch_size": 1, "rope_axes_dim": [1, 1, 1]}), 16, LATENT)  # 13 billion, if whole
    assert built == [1]


def test_prepare_says_it_before_anything_is_made(shapes_clips, tmp_path, run_cli):
    recipe = tmp_path / "recipe.yaml"
    small = {**HUNYUAN, "rope_axes_dim": [4, 4, 4]}
    recipe.write_text(
        f"run_dir: {tmp_path}/run\ncache_dir: {tmp_path}/cache\n"
        f"data: {{path: {shapes_clips}, frames: 16, fps: 8, width: 64, height: 64}}\n"
        f"codec: {{type: pca, block: [4, 16, 16], channels: 6}}\nmodel: {{type: hunyuan, config: {small}}}\n"
    )
    done = run_cli("prepare", str(recipe))
    assert done.code == 2 and "model.config: its numbers do not fit together" in done.err, done.err
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
