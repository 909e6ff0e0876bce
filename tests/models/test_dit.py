"""The DiT: shapes, what influences what, invariances, and clear errors."""

import copy
import math

import pytest
import torch

from reelwright.config import Config
from reelwright.models.dit import DiT, DiTConfig, PartedDiT, sinusoids
from reelwright.models.layers import coordinate_features
from reelwright.types import Size, Text, UsageError
from tiny_denoisers import denoiser_inputs, wake

torch.set_num_threads(1)

CHANNELS, TEXT_WIDTH = 6, 10
VARIANTS = {
    "full": {},
    "factorised": {"layout": "factorised"},
    "joint": {"text_tokens": "joint"},
    "pooled": {"text_tokens": "pooled"},
    "patched": {"patch": (1, 2, 2)},
    "sinusoidal": {"positions": "sinusoidal"},
    "sinusoidal, factorised": {"positions": "sinusoidal", "layout": "factorised"},
    "factorised, text in space": {"layout": "factorised", "text_blocks": "spatial"},
    "sinusoidal, joint": {"positions": "sinusoidal", "text_tokens": "joint"},
}


def make(awake: bool = True, **settings) -> DiT:
    """A small model; `awake` gives its zero-initialised parts random weights, so that everything has an influence."""
    torch.manual_seed(0)
    model = DiTConfig.parse({"width": 24, "depth": 2, "heads": 2, **settings}).build(CHANNELS, TEXT_WIDTH)
    if awake:
        wake(model, std=0.2)
    return model


def inputs(size=(2, 4, 4), batch=2, length=5, dtype=torch.float32):
    return denoiser_inputs(size, CHANNELS, TEXT_WIDTH, batch, length, dtype=dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(1, 2, 2), (2, 4, 6), (5, 8, 2)])
def test_shapes_of_any_size(variant, size):
    x, t, text = inputs(size)
    out = make(**VARIANTS[variant])(x, t, text)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert out.isfinite().all() and out.std() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_untrained_prediction_is_exactly_zero_and_learns(variant):
    model = make(awake=False, **VARIANTS[variant])
    x, t, text = inputs()
    out = model(x, t, text)
    assert torch.equal(out, torch.zeros_like(x))
    (out - x).square().mean().backward()
    assert model.head.weight.grad is not None and model.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_and_input_has_an_influence(variant):
    model = make(**VARIANTS[variant])
    x, t, text = inputs()
    x.requires_grad_(), t.requires_grad_(), text.values.requires_grad_()
    (model(x, t, text) * torch.randn(x.shape)).sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent
    assert all(v.grad is not None and v.grad.abs().max() > 0 for v in (x, t, text.values))


def influence(model: DiT, place: tuple[int, int, int]) -> torch.Tensor:
    """Which latent positions `f h w` the output at `place` depends on."""
    x, t, text = inputs((3, 2, 2), batch=1)
    x.requires_grad_()
    model(x, t, text)[(0, slice(None), *place)].sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(0) > 1e-9


def test_factorised_blocks_mix_within_a_frame_then_across_frames():
    model = make(layout="factorised")
    blocks = model.blocks
    model.blocks = blocks[:1]
    within = influence(model, (1, 0, 1))
    assert within[1].all() and not within[0].any() and not within[2].any()
    model.blocks = torch.nn.ModuleList([IdentityBlock(), blocks[1]])
    across = influence(model, (1, 0, 1))
    assert across[:, 0, 1].all() and across.sum() == 3
    model.blocks = blocks
    assert influence(model, (1, 0, 1)).all()


def test_the_text_is_attended_to_in_the_blocks_that_are_said_to():
    """Latte's temporal blocks do not; the mean of the text drives all of them."""
    full, spatial = (make(layout="factorised", text_blocks=name, depth=4) for name in ("all", "spatial"))
    assert [b.cross_attention is not None for b in spatial.blocks] == [True, False, True, False]
    assert spatial.text_kv is not None and spatial.text_kv.out_features * 2 == full.text_kv.out_features
    spatial.load_state_dict(
        {**full.state_dict(), **{f"text_kv.{k}": v.view(4, 48, -1)[::2].flatten(0, 1).squeeze(-1)
                                 for k, v in full.text_kv.state_dict().items()}},
        strict=False,
    )  # fmt: skip
    for block in full.blocks[1::2]:
        for parameter in block.cross_attention.out.parameters():
            torch.nn.init.zeros_(parameter)
    x, t, text = inputs()
    text = Text(text.values, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
    torch.testing.assert_close(spatial(x, t, text), full(x, t, text))


class IdentityBlock(torch.nn.Module):
    def forward(self, x, *_):
        return x


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant):
    model = make(**VARIANTS[variant]).double()
    x, t, text = inputs(dtype=torch.float64)
    padding = torch.full((2, 3, TEXT_WIDTH), 7.0, dtype=torch.float64)
    longer = Text(torch.cat([text.values, padding], 1), torch.cat([text.mask, torch.zeros(2, 3, dtype=torch.bool)], 1))
    torch.testing.assert_close(model(x, t, longer), model(x, t, text), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sample_does_not_depend_on_its_batch(variant):
    model = make(**VARIANTS[variant]).double()
    x, t, text = inputs(batch=3, dtype=torch.float64)
    together = model(x, t, text)
    for i in range(3):
        alone = model(x[i : i + 1], t[i : i + 1], Text(text.values[i : i + 1], text.mask[i : i + 1]))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("variant", ["full", "sinusoidal", "sinusoidal, factorised"])
def test_places_are_told_apart_even_where_all_latents_are_alike(variant):
    x, t, text = inputs()
    out = make(**VARIANTS[variant])(torch.zeros_like(x), t, text)[0].flatten(1).T  # n c
    assert (torch.cdist(out, out) + torch.eye(len(out))).min() > 1e-3


def test_sinusoids_are_those_of_every_axis():
    grid, width = (3, 4, 5), 26
    table = sinusoids(grid, width, torch.device("cpu")).view(*grid, width)
    for frame, row, column in ((0, 0, 0), (2, 1, 4), (1, 3, 2)):
        angles = [place / 10_000 ** (i / 4) for place in (frame, row, column) for i in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles] + [0.0] * 2
        assert table[frame, row, column].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_changes_no_gradient(variant):
    plain = make(**VARIANTS[variant])
    saving = make(gradient_checkpointing=True, **VARIANTS[variant])
    saving.load_state_dict(plain.state_dict())
    x, t, text = inputs()
    for model in (plain, saving):
        model(x, t, text).square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_autocast_is_close_to_float32():
    model = make()
    x, t, text = inputs()
    exact = model(x, t, text)
    with torch.autocast("cpu", torch.bfloat16):
        fast = model(x, t, text)
    assert fast.dtype == torch.float32
    assert (fast - exact).norm() / exact.norm() < 0.05


def test_sizes_that_do_not_fit_the_patch():
    model = make(patch=(1, 2, 4))
    assert model.check_size(Size(3, 4, 8)) == Size(3, 2, 2)
    with pytest.raises(ValueError, match=r"width = 6 latents do not fit model.patch = 4 along width.*use 4 or 8"):
        model.check_size(Size(3, 4, 6))
    with pytest.raises(ValueError, match=r"height = 1 .* use 2 latents"):
        model(*inputs((1, 1, 4)))


def test_wrong_inputs_name_what_was_expected():
    model = make()
    x, t, text = inputs()
    with pytest.raises(ValueError, match="x_t"):
        model(x[:, :3], t, text)
    with pytest.raises(ValueError, match="one time a sample"):
        model(x, t[:1], text)
    with pytest.raises(ValueError, match="text"):
        model(x, t, Text(text.values[..., :4], text.mask))
    with pytest.raises(ValueError, match="single real token"):
        model(x, t, Text(text.values, torch.zeros_like(text.mask)))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"width": 100, "heads": 3}, "head dimension"),
        ({"text_tokens": "joint", "layout": "factorised"}, "text_tokens = cross"),
        ({"layout": "factorised", "depth": 3}, "depth must be even"),
        ({"text_blocks": "spatial"}, "text_blocks = spatial needs layout = factorised .* got layout = full"),
        ({"text_blocks": "spatial", "layout": "factorised", "text_tokens": "pooled"}, "text_tokens = pooled"),
        ({"size": "S", "width": 256}, "size = S means width = 384"),
        ({"attention": "fast"}, "attention"),
    ],
)
def test_contradicting_settings(settings, words):
    with pytest.raises(UsageError, match=words):
        DiTConfig.parse(settings)


@pytest.mark.parametrize(
    ("size", "rope", "sinusoidal"),
    [
        ("S", 39_879_824, 39_866_000),
        ("M", 139_991_568, 139_973_136),
        ("B", 158_795_024, 158_767_376),
        ("L", 558_903_312, 558_866_448),
        ("XL", 824_034_704, 823_993_232),
    ],
)
def test_sizes(size, rope, sinusoidal):
    """On latents of 4 channels in patches of 1x2x2, beside text of width 512; sinusoidal positions have no weights."""
    for positions, count in (("rope", rope), ("sinusoidal", sinusoidal)):
        config = DiTConfig.parse({"size": size, "positions": positions, "patch": (1, 2, 2), "layout": "factorised"})
        with torch.device("meta"):
            model = config.build(channels=4, text_width=512)
        assert sum(p.numel() for p in model.parameters()) == count


def test_the_size_for_long_clips_is_512_by_24():
    config = DiTConfig.parse({"size": "M"})
    assert (config.width, config.depth, config.heads) == (512, 24, 8)


def test_size_presets_survive_saving():
    config = DiTConfig.parse({"size": "B"})
    assert (config.width, config.depth, config.heads) == (768, 12, 12)
    assert DiTConfig.parse(config.plain()) == config
    assert isinstance(config, Config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_targets_name_linear_layers(variant):
    model = make(**VARIANTS[variant])
    linears = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {"qkv", "out", "up", "down"} <= set(model.lora_targets) <= linears
    assert ("q" in model.lora_targets) == ("q" in linears)


@pytest.mark.parametrize("variant, equal", [("pooled", True), ("full", False), ("joint", False)])
def test_pooled_sees_the_mean_of_the_text_alone(variant, equal):
    model = make(**VARIANTS[variant])
    model.text_norm = torch.nn.Identity()  # what follows is linear
    x, t, text = inputs()
    share = text.mask[..., None] / text.mask.sum(1)[:, None, None]
    mean = Text((text.values * share).sum(1, keepdim=True).expand_as(text.values), text.mask)
    assert torch.allclose(model(x, t, mean), model(x, t, text), atol=1e-5) == equal


def test_copies_predict_the_same():
    model = make()
    assert torch.equal(copy.deepcopy(model)(*inputs()), model(*inputs()))


def test_a_part_of_a_longer_video_knows_its_time_in_the_whole():
    """The times of a clip are spread over the longer video; the length of what is attended to stays the clip's."""
    model = make(patch=(2, 1, 1))
    x, t, text = inputs((4, 2, 2))
    alone = model(x, t, text)
    model.within = (0, 4)
    assert torch.equal(model(x, t, text), alone)
    places = {}
    for start in (0, 4, 12):
        model.within = (start, 16)
        places[start] = model(x, t, text)
    assert all((a - b).abs().max() > 1e-3 for a, b in ((places[0], places[4]), (places[4], places[12])))
    single, one = make(), inputs((1, 2, 2))
    still = single(*one)
    single.within = (5, 9)  # a clip of one latent frame has no course that could be spread
    assert torch.equal(single(*one), still)


def test_times_of_a_part():
    """Four windows of two frames go evenly from the time of a clip's first frame to that of its last."""
    parts = [coordinate_features((2, 1, 1), 1, "cpu", (start, 8)) for start in range(0, 8, 2)]
    table = torch.cat(parts)  # n 6: sines of the three axes, cosines of them
    times = torch.atan2(table[:, 0], table[:, 3]) / math.pi
    torch.testing.assert_close(times, torch.linspace(0.25, 0.75, 8))
    own = coordinate_features((2, 1, 1), 1, "cpu")
    torch.testing.assert_close(table[:, [1, 2, 4, 5]], own[:1, [1, 2, 4, 5]].expand(8, 4))


def test_parts_are_networks_of_their_own():
    torch.manual_seed(0)
    settings = {"width": 24, "depth": 2, "heads": 2, "patch": (1, 2, 2)}
    model = DiTConfig.parse({**settings, "parts": (4, 2)}).build(CHANNELS, TEXT_WIDTH)
    assert isinstance(model, PartedDiT)
    wake(model, std=0.2)
    x, t, text = inputs()
    out = model(x, t, text)
    assert out.shape == x.shape
    for part, network in zip((slice(0, 4), slice(4, 6)), model.parts.values(), strict=True):
        torch.testing.assert_close(out[:, part], network(x[:, part], t, text))
        changed = x.clone()
        changed[:, part] += 1
        others = [c for c in range(CHANNELS) if not part.start <= c < part.stop]
        assert torch.equal(model(changed, t, text)[:, others], out[:, others])
        assert not torch.allclose(model(changed, t, text)[:, part], out[:, part], atol=1e-3)
    assert model.check_size(Size(3, 4, 8)) == Size(3, 2, 4) and model.lora_targets == make().lora_targets
    assert model.within is None
    model.within = (2, 9)
    assert [network.within for network in model.parts.values()] == [(2, 9)] * 2 and model.within == (2, 9)
    with pytest.raises(UsageError, match=r"parts = \[6\]: two or more"):
        DiTConfig.parse({**settings, "parts": (6,)})
    with pytest.raises(
        ValueError, match=r"parts = \[4, 3\]: 7 channels in all, but the codec's latents have 6; give parts that make 6"
    ):
        DiTConfig.parse({**settings, "parts": (4, 3)}).build(CHANNELS, TEXT_WIDTH)


def test_weights_of_tokens_mix_what_pooled_captions_say():
    """A caption and another at half weight each are the mean of what both say alone."""
    model = make(text_tokens="pooled").double()
    x, t, text = inputs(batch=2, dtype=torch.float64)
    x, t = x[:1].expand_as(x), t[:1].expand_as(t)
    pooled = []
    model.pooled_in.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
    model(x, t, text)
    weights = text.mask / text.mask.sum(1, keepdim=True) / 2
    both = Text(
        torch.cat([text.values, text.values.flip(0)], 1),
        torch.cat([text.mask, text.mask.flip(0)], 1),
        weights=torch.cat([weights, weights.flip(0)], 1),
    )
    model(x, t, both)
    torch.testing.assert_close(pooled[1], pooled[0].mean(0, keepdim=True).expand(2, -1))
