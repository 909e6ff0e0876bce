from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reelwright.bundle import (
    DenoisingLoss,
    build_bundle,
    draw,
    fitted_key,
    fitted_path,
    mixed,
)
from reelwright.randomness import keyed_normal
from reelwright.types import Text, UsageError
from tiny_models import CAPTIONS, fitted_parts, shake, tiny_batch, tiny_bundle, tiny_recipe

OBJECTIVES = [
    ("objective.schedule=flow", "objective.shift=3.0", "objective.prediction=velocity"),
    ("objective.schedule=cosine", "objective.prediction=v", "objective.weighting=min_snr"),
    ("objective.schedule=scaled_linear", "objective.prediction=noise", "objective.loss=huber"),
    ("objective.schedule=flow", "objective.prediction=x0", "objective.time_sampling=logit_normal"),
]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Draws


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_draw_depends_on_its_sample_alone(tmp_path: Path, objective: tuple[str, ...]) -> None:
    bundle = tiny_bundle(tiny_recipe(tmp_path, *objective))
    together = draw(tiny_batch(bundle, (3, 1, 2)), bundle.objective, seed=0)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    turned = draw(tiny_batch(bundle, (2, 3, 1)), bundle.objective, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("latents", "noise", "t"):
        assert torch.equal(getattr(together, name), getattr(turned, name)[[1, 2, 0]]), name
        for row, index in enumerate((3, 1, 2)):
            alone = draw(tiny_batch(bundle, (index,)), bundle.objective, seed=0)
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row]), name


def test_samples_are_mixed_with_their_neighbours_latents_and_captions_alike(tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_recipe(tmp_path, "model.text_tokens=pooled"))
    batch = tiny_batch(bundle, (3, 1, 2, 5))
    assert draw(batch, bundle.objective, 0).own is None
    own = draw(batch, bundle.objective, 0, mixup=(1.0,)).own
    assert own is not None and own.shape == (4, 1) and len(own.unique()) == 4
    all_mixed = draw(tiny_batch(bundle, tuple(range(64))), bundle.objective, 0, mixup=(1.0,)).own
    assert all_mixed is not None and -0.2 <= all_mixed.min() < 0 and 1 < all_mixed.max() <= 1.2
    again = draw(tiny_batch(bundle, (1, 3)), bundle.objective, 0, mixup=(1.0,)).own
    assert again is not None and torch.equal(again, own[[1, 0]]), "shares depend on the sample alone"
    many = draw(tiny_batch(bundle, tuple(range(64))), bundle.objective, 0, mixup=(0.5,)).own
    assert many is not None and 16 < int((many == 1).sum()) < 48

    cond, x = bundle.text(batch.text), batch.latents.mean
    latents, both = mixed(x, cond, own)
    torch.testing.assert_close(latents[0], own[0] * x[0] + (1 - own[0]) * x[1])
    torch.testing.assert_close(latents[3], own[3] * x[3] + (1 - own[3]) * x[2])
    assert both.weights is not None
    torch.testing.assert_close(both.weights.sum(1), torch.ones(4))
    means = (cond.values * (cond.mask / cond.mask.sum(1, keepdim=True))[..., None]).sum(1)  # b d
    torch.testing.assert_close(
        (both.values * both.weights[..., None]).sum(1)[2], own[2] * means[2] + (1 - own[2]) * means[3]
    )
    with pytest.raises(ValueError, match="3 samples cannot be mixed two by two"):
        mixed(x[:3], bundle.text(tiny_batch(bundle, (3, 1, 2)).text), own[:3])


def test_parts_are_mixed_with_the_shares_of_each(tmp_path: Path) -> None:
    """A part that is not mixed is trained as if nothing were, and the other as if all were."""
    bundle = tiny_bundle(tiny_recipe(tmp_path, "model.text_tokens=pooled", "model.parts=[1,5]"))
    module = DenoisingLoss(bundle)
    shake(bundle.denoiser)
    batch = tiny_batch(bundle, (3, 1))
    drawn, whole = (draw(batch, bundle.objective, 0, mixup=shares) for shares in ((1.0, 0.0), (1.0,)))
    assert drawn.own is not None and whole.own is not None
    assert torch.equal(drawn.own, torch.cat([whole.own, torch.ones(2, 1)], 1))

    seen: list[tuple[Tensor, Tensor]] = []

    def predict(own: Tensor | None) -> tuple[Tensor, Tensor]:
        seen.clear()
        hook = bundle.denoiser.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        module(drawn.latents, drawn.noise, drawn.t, batch.text, own)
        hook.remove()
        return seen[0]

    (x, made), (mixed_x, of_mixed), (plain_x, of_plain) = (predict(own) for own in (drawn.own, whole.own, None))
    for one, all_mixed, unmixed in ((x, mixed_x, plain_x), (made, of_mixed, of_plain)):
        torch.testing.assert_close(one[:, :1], all_mixed[:, :1])
        torch.testing.assert_close(one[:, 1:], unmixed[:, 1:])
        assert not torch.allclose(all_mixed, unmixed, atol=1e-3)

    own = torch.tensor([[0.3, 0.8], [1.0, -0.1]])
    cond = module.condition(batch.text)
    latents, both = mixed(drawn.latents, cond, own, (1, 5))
    for part, channels in enumerate((slice(0, 1), slice(1, 6))):
        alone, text = mixed(drawn.latents[:, channels], cond, own[:, part : part + 1])
        torch.testing.assert_close(latents[:, channels], alone)
        assert text.weights is not None and torch.equal(both.of_part(part).weights, text.weights)


def test_parts_that_do_not_fit_the_codec_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.parts = \[2, 3\]: 5 channels in all, but the codec's latents have"):
        tiny_bundle(tiny_recipe(tmp_path, "model.parts=[2,3]"))


def test_a_mixed_loss_is_that_of_the_mix(tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_recipe(tmp_path, "model.text_tokens=pooled"))
    module = DenoisingLoss(bundle)
    shake(bundle.denoiser)
    batch = tiny_batch(bundle, (3, 1))
    drawn = draw(batch, bundle.objective, 0, mixup=(1.0,))
    plain = module(drawn.latents, drawn.noise, drawn.t, batch.text)
    alone = module(drawn.latents, drawn.noise, drawn.t, batch.text, torch.ones(2, 1))
    torch.testing.assert_close(alone, plain)
    assert drawn.own is not None
    latents, cond = mixed(drawn.latents, module.condition(batch.text), drawn.own)
    objective = bundle.objective
    predicted = bundle.denoiser(objective.corrupt(latents, drawn.noise, drawn.t), drawn.t.to(latents), cond)
    expected = objective.loss(predicted, objective.target(latents, drawn.noise, drawn.t), drawn.t)
    torch.testing.assert_close(module(drawn.latents, drawn.noise, drawn.t, batch.text, drawn.own), expected)


def test_seed_epoch_sample_and_purpose_each_change_a_draw(tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_recipe(tmp_path))
    batch = tiny_batch(bundle, (3, 3))
    assert torch.equal(*draw(batch, bundle.objective, 0).noise), "the same sample twice"
    others = draw(tiny_batch(bundle, (3, 4), stochastic=False), bundle.objective, 0)
    assert not torch.equal(*others.noise) and not torch.equal(*others.t)
    first, later = draw(batch, bundle.objective, 0), draw(batch, bundle.objective, 1)
    epochs = type(batch)(batch.indices, (7, 8), batch.latents, batch.text, batch.captions)
    by_epoch = draw(epochs, bundle.objective, 0)
    for name in ("latents", "noise", "t"):
        assert not torch.equal(getattr(first, name), getattr(later, name)), f"{name} by seed"
        assert not torch.equal(getattr(by_epoch, name)[0], getattr(by_epoch, name)[1]), f"{name} by epoch"
    assert batch.latents.logvar is not None
    posterior_noise = (first.latents - batch.latents.mean) / (0.5 * batch.latents.logvar).exp()
    assert (posterior_noise - first.noise).abs().max() > 0.1, "the posterior's noise is not the diffusion's"


def test_a_deterministic_codec_gives_its_latents_as_they_are(tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_recipe(tmp_path))
    batch = tiny_batch(bundle, stochastic=False)
    assert torch.equal(draw(batch, bundle.objective, 0).latents, batch.latents.mean)


# The loss


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_its_formula_in_float64(tmp_path: Path, objective: tuple[str, ...]) -> None:
    bundle = tiny_bundle(tiny_recipe(tmp_path, *objective))
    module = DenoisingLoss(bundle).double()
    shake(module)
    batch = tiny_batch(bundle)
    drawn = draw(batch, bundle.objective, 0)
    x0, noise, t = drawn.latents.double(), drawn.noise.double(), drawn.t

    alpha, sigma = (
        f(t).view(-1, 1, 1, 1, 1) for f in (bundle.objective.schedule.alpha, bundle.objective.schedule.sigma)
    )
    x_t = alpha * x0 + sigma * noise
    target = {"velocity": noise - x0, "v": alpha * noise - sigma * x0, "noise": noise, "x0": x0}[
        bundle.objective.config.prediction
    ]
    with torch.no_grad():
        prediction = module.denoiser(x_t, t, module.text(batch.text))  # pyright: ignore[reportOptionalCall]
        losses = module(x0, noise, t, batch.text)
    error = prediction - target
    if bundle.objective.config.loss == "huber":
        element = torch.where(error.abs() < 1, 0.5 * error**2, error.abs() - 0.5)
    else:
        element = error**2
    expected = element.mean(dim=(1, 2, 3, 4))
    if bundle.objective.config.weighting == "min_snr":  # for v: min(SNR, 5) / (SNR + 1)
        snr = (alpha / sigma).flatten() ** 2
        expected = expected * snr.clamp(max=5.0) / (snr + 1)
    assert prediction.abs().max() > 1e-3 and losses.shape == (3,)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def test_a_loss_is_its_samples_own(tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_recipe(tmp_path))
    module = DenoisingLoss(bundle)
    shake(module)
    batch = tiny_batch(bundle, (3, 1, 2))
    drawn = draw(batch, bundle.objective, 0)
    losses = module(drawn.latents, drawn.noise, drawn.t, batch.text)
    for row, index in enumerate((3, 1, 2)):
        one = tiny_batch(bundle, (index,))
        alone = draw(one, bundle.objective, 0)
        torch.testing.assert_close(module(alone.latents, alone.noise, alone.t, one.text)[0], losses[row])


def test_gradients_reach_the_text_encoder_and_frozen_embeddings_pass_through(tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_recipe(tmp_path))
    module = DenoisingLoss(bundle)
    shake(module)
    batch = tiny_batch(bundle)
    drawn = draw(batch, bundle.objective, 0)
    module(drawn.latents, drawn.noise, drawn.t, batch.text).sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in module.named_parameters() if n != "text.norm.bias"
    )
    assert {name.split(".")[0] for name in module.state_dict()} == {"denoiser", "text"}

    frozen = DenoisingLoss(type(bundle)(bundle.denoiser, bundle.codec, None, bundle.objective))
    assert {name.split(".")[0] for name in frozen.state_dict()} == {"denoiser"}
    embeddings = Text(torch.randn(3, 4, 32), torch.ones(3, 4, dtype=torch.bool))
    assert frozen.condition(embeddings) is embeddings


# Building


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    parts = fitted_parts(tiny_recipe(tmp_path))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = DenoisingLoss(build_bundle(tiny_recipe(tmp_path), *parts)).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    torch.manual_seed(6)
    again = DenoisingLoss(build_bundle(tiny_recipe(tmp_path), *parts)).state_dict()
    other = DenoisingLoss(build_bundle(tiny_recipe(tmp_path, "seed=1"), *parts)).state_dict()
    assert same(one, again) and not same(one, other)


def test_what_was_fitted_is_read_from_the_cache_and_asked_for_where_it_is_not(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    codec, tokenizer = fitted_parts(recipe)
    with pytest.raises(UsageError, match="the codec has not been fitted on the data; run: reelwright prepare"):
        build_bundle(recipe)
    fitted_path(recipe, "codec").parent.mkdir(parents=True)
    save_file(codec, fitted_path(recipe, "codec"))
    with pytest.raises(UsageError, match="the text has not been fitted on the data; run: reelwright prepare"):
        build_bundle(recipe)
    fitted_path(recipe, "text").write_text(tokenizer)
    bundle = build_bundle(recipe)
    assert same(bundle.codec.state_dict(), codec)
    assert bundle.text.tokenize(list(CAPTIONS)).mask.any()


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("codec.channels=7", {"codec"}), ("text.width=64", {"text"}), ("data.path=elsewhere", {"codec", "text"}),
        ("data.fps=4", {"codec"}), ("data.validation=0.5", {"codec", "text"}), ("train.steps=7", set()),
        ("seed=3", set()),
    ],
)  # fmt: skip
def test_a_fit_is_named_by_what_it_was_fitted_for(tmp_path: Path, override: str, changed: set[str]) -> None:
    one, other = tiny_recipe(tmp_path), tiny_recipe(tmp_path, override)
    assert {part for part in ("codec", "text") if fitted_key(one, part) != fitted_key(other, part)} == changed


def test_the_untrained_model_predicts_nothing_and_the_shaken_one_something(tmp_path: Path) -> None:
    """What the tests of the loss rest on."""
    bundle = tiny_bundle(tiny_recipe(tmp_path))
    cond = bundle.text(bundle.text.tokenize(["a red ball"]))
    x = keyed_normal((1, bundle.codec.channels, 2, 2, 2), "x")
    assert not bundle.denoiser(x, torch.tensor([0.5]), cond).any()
    shake(bundle.denoiser)
    assert bundle.denoiser(x, torch.tensor([0.5]), cond).abs().max() > 0.01
