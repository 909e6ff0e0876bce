"""Attention, positions, modulation and patches, as properties in float64."""

import pytest
import torch
import torch.nn.functional as F

from reelwright.models import layers

torch.set_num_threads(1)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def rope64(extents: tuple[int, ...], head_dim: int) -> layers.Rope:
    cos, sin = layers.rope_table(extents, head_dim, "cpu")
    return cos.double(), sin.double()


@pytest.mark.parametrize("name", ["sdpa", "products", "auto"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [7, layers.FEW_KEYS + 1])
def test_attention_is_softmax_of_scaled_products(name, masked, keys):
    q, k, v = normal(2, 3, 5, 8), normal(2, 3, keys, 8), normal(2, 3, keys, 8) + 1
    mask = torch.tensor([[True] * keys, [True] * 4 + [False] * (keys - 4)]) if masked else None
    scores = torch.einsum("bhne,bhme->bhnm", q, k) / 8**0.5
    if mask is not None:
        scores[1, :, :, 4:] = -torch.inf
    expected = torch.einsum("bhnm,bhme->bhne", scores.exp() / scores.exp().sum(-1, keepdim=True), v)
    torch.testing.assert_close(layers.attend(q, k, v, mask, name), expected, atol=1e-12, rtol=1e-12)


def test_auto_takes_products_only_for_half_precision_that_fits_on_a_cpu(monkeypatch):
    q = torch.zeros(1, 2, 8, 4)
    assert layers.best_attention(q, 8) == "sdpa"
    assert layers.best_attention(q.bfloat16(), 8) == "products"
    monkeypatch.setattr(layers, "MAX_PRODUCT_SCORES", 127)
    assert layers.best_attention(q.bfloat16(), 8) == "sdpa"


def test_backends_agree_in_bfloat16():
    q, k, v = (normal(2, 4, 16, 16, dtype=torch.bfloat16) for _ in range(3))
    exact = layers.attend(q.double(), k.double(), v.double(), None, "sdpa")
    for name in ("sdpa", "products"):
        torch.testing.assert_close(layers.attend(q, k, v, None, name).double(), exact, atol=0.03, rtol=0.03)


def test_missing_backend_says_what_to_install():
    with pytest.raises(ValueError, match="xformers.*install"):
        layers.check_attention("xformers")
    with pytest.raises(ValueError, match="known backends are auto, sdpa"):
        layers.check_attention("einsum")


@pytest.mark.parametrize("name", ["flash", "xformers"])
def test_gpu_backends_refuse_a_cpu(name):
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match=f"attention = {name} runs on CUDA"):
        layers.attend(q, q, q, None, name)


@pytest.mark.parametrize("extents", [(9,), (3, 4, 5)])
def test_rope_products_depend_on_relative_position_only(extents):
    head_dim = 16
    table = rope64(extents, head_dim)
    q, k = normal(head_dim), normal(head_dim) + 1
    index = torch.arange(torch.Size(extents).numel()).reshape(extents)

    def product(a: tuple[int, ...], b: tuple[int, ...]) -> torch.Tensor:
        at = [(table[0][index[p]], table[1][index[p]]) for p in (a, b)]
        return layers.apply_rope(q, at[0]) @ layers.apply_rope(k, at[1])

    zero, one = (0,) * len(extents), (1,) * len(extents)
    two = tuple(2 for _ in extents)
    torch.testing.assert_close(product(zero, one), product(one, two), atol=1e-6, rtol=1e-6)  # the table is float32
    for axis in range(len(extents)):
        moved = tuple(int(axis == a) for a in range(len(extents)))
        assert abs(product(zero, zero) - product(zero, moved)) > 1e-3


def test_rope_keeps_lengths():
    x = normal(2, 3, 24, 12)
    turned = layers.apply_rope(x, rope64((2, 3, 4), 12))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])


def test_coordinates_tell_every_place_apart():
    features = layers.coordinate_features((4, 5, 6), 6, "cpu")
    distances = torch.cdist(features, features) + torch.eye(120) * 9
    assert features.shape == (120, 36)
    assert distances.min() > 0.1


@pytest.mark.parametrize("tokens", [1, 5])
def test_self_attention_against_torch(tokens):
    """Our fused projections and head order are those of torch's own attention on the same weights."""
    module = layers.SelfAttention(24, 2).double()
    x = normal(2, tokens, 24)
    q, k, v = module.qkv(x).view(2, tokens, 3, 2, 12).permute(2, 0, 3, 1, 4)
    rope = rope64((tokens,), 12)
    q, k = (layers.apply_rope(F.layer_norm(part, (12,)), rope) for part in (q, k))
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, tokens, 24) @ module.out.weight.T
    torch.testing.assert_close(module(x, rope), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("frames, places", [(3, 4), (3, 1), (1, 4)])
def test_grouped_attention_is_attention_of_each_group(across, frames, places):
    module = layers.SelfAttention(24, 2).double()
    x = normal(2, frames * places, 24)
    rope = rope64((frames,) if across else (places,), 12)
    grouped = module(x, rope, frames=frames, across=across).view(2, frames, places, 24)
    rows = x.view(2, frames, places, 24)
    for i in range(places if across else frames):
        alone = module(rows[:, :, i] if across else rows[:, i], rope)
        torch.testing.assert_close(grouped[:, :, i] if across else grouped[:, i], alone, atol=1e-12, rtol=1e-12)


def test_modulated_norm_is_the_paper_formula():
    x, shift, scale = normal(2, 3, 8), normal(2, 1, 8), normal(2, 1, 8)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift
    torch.testing.assert_close(layers.modulated_norm(x, shift, scale), expected)


def test_timestep_embedding_tells_near_times_apart():
    embedding = layers.TimestepEmbedding(32)
    t = torch.linspace(0, 1, 101)
    out = embedding(t)
    assert out.shape == (101, 32)
    assert (out[1:] - out[:-1]).norm(dim=1).min() > 0.01
    # the waves of t = 0.5 are those of DDPM's step 500
    waves = torch.exp(torch.arange(128) * (-torch.tensor(10000.0).log() / 128)) * 500.0
    torch.testing.assert_close(embedding.frequencies * layers.TIME_SCALE * 0.5, waves, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 1, 3), (4, 4, 6)])
def test_patches_round_trip(patch):
    x = normal(2, 3, 4, 4, 6)
    tokens = layers.patchify(x, patch)
    grid = (4 // patch[0], 4 // patch[1], 6 // patch[2])
    assert tokens.shape == (2, grid[0] * grid[1] * grid[2], 3 * patch[0] * patch[1] * patch[2])
    assert torch.equal(layers.unpatchify(tokens, patch, grid), x)
    first = x[:, :, : patch[0], : patch[1], : patch[2]].reshape(2, -1)
    assert torch.equal(tokens[:, 0], first)
