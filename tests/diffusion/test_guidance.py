import pytest
import torch

from reelwright.diffusion.guidance import guided, make_denoise, switched
from reelwright.diffusion.objective import ObjectiveConfig
from reelwright.types import Text


class Toy:
    """A nonlinear denoiser that heeds x, t and the real tokens only; it counts the batches it is given."""

    def __init__(self):
        self.batches = []

    def __call__(self, x_t, t, cond):
        self.batches.append(len(x_t))
        assert len(x_t) == len(t) == len(cond)
        values = cond.values.to(x_t).view(*cond.mask.shape, -1).mean(-1)
        meaning = (values * cond.mask).sum(1) / cond.mask.sum(1)
        shape = (-1, 1, 1, 1, 1)
        return torch.tanh(x_t * meaning.view(shape) + t.view(shape)) + 0.1 * x_t


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64).to(dtype)
    cond = Text(torch.randn(2, 7, 6, generator=generator), torch.arange(7) < torch.tensor([[7], [4]]))
    uncond = Text(torch.randn(2, 3, 6, generator=generator), torch.ones(2, 3, dtype=torch.bool))
    return x, torch.tensor([0.4, 0.4], dtype=dtype), cond, uncond


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("scale", [0.0, 3.5, 7.0])
def test_one_batched_call_equals_two(scale, swapped):
    x, t, cond, uncond = inputs()
    if swapped:  # the negative text is the longer one
        cond, uncond = uncond, cond
    toy = Toy()
    result = guided(toy, cond, uncond, scale)(x, t)
    assert toy.batches == [4]
    positive, negative = toy(x, t, cond), toy(x, t, uncond)
    torch.testing.assert_close(result, negative + scale * (positive - negative), rtol=0, atol=1e-14)


def test_a_scale_of_its_own_for_every_frame():
    x, t, cond, uncond = inputs()
    toy = Toy()
    result = guided(toy, cond, uncond, 1.0, last_scale=4.0)(x, t)
    positive, negative = toy(x, t, cond), toy(x, t, uncond)
    for frame, scale in enumerate([1.0, 2.0, 3.0, 4.0]):
        expected = negative + scale * (positive - negative)
        torch.testing.assert_close(result[:, :, frame], expected[:, :, frame], rtol=0, atol=1e-14)
    toy = Toy()
    assert torch.equal(guided(toy, cond, uncond, 1.0, last_scale=1.0)(x, t), positive) and toy.batches == [2]
    with pytest.raises(ValueError, match="over the frames of"):
        guided(lambda x, t, cond: x[:, 0], cond, uncond, 1.0, last_scale=4.0)(x, t)


def test_pictures_go_with_their_texts():
    x, t, cond, uncond = inputs()
    image = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    seen = []

    def denoiser(x_t, t, cond):
        seen.append(cond.image)
        return x_t

    cond, uncond = Text(cond.values, cond.mask, image), Text(uncond.values, uncond.mask, torch.zeros_like(image))
    guided(denoiser, cond, uncond, 2.0)(x, t)
    assert torch.equal(seen[0], torch.cat([image, torch.zeros_like(image)]))
    assert cond.to(torch.float32).image.dtype == torch.float32


def test_token_ids_are_padded_as_embeddings_are():
    x, t, _, _ = inputs()
    cond = Text(torch.tensor([[5, 6, 7], [8, 9, 1]]), torch.ones(2, 3, dtype=torch.bool))
    uncond = Text(torch.tensor([[2], [2]]), torch.ones(2, 1, dtype=torch.bool))
    toy = Toy()
    expected = toy(x, t, uncond) + 2 * (toy(x, t, cond) - toy(x, t, uncond))
    torch.testing.assert_close(guided(toy, cond, uncond, 2.0)(x, t), expected, rtol=0, atol=1e-14)


def test_scale_one_runs_the_conditional_half_only():
    x, t, cond, uncond = inputs()
    toy = Toy()
    result = guided(toy, cond, uncond, 1.0)(x, t)
    assert toy.batches == [2] and torch.equal(result, toy(x, t, cond))


def test_full_rescale_keeps_the_conditional_spread_and_half_goes_half_way():
    x, t, cond, uncond = inputs()
    toy = Toy()
    plain, half, full = (guided(toy, cond, uncond, 8.0, rescale)(x, t) for rescale in (0.0, 0.5, 1.0))
    conditional = toy(x, t, cond)
    for i in range(2):
        assert full[i].std().item() == pytest.approx(conditional[i].std().item(), rel=1e-12)
        assert plain[i].std() > 1.5 * conditional[i].std()
    torch.testing.assert_close(half, (plain + full) / 2, rtol=0, atol=1e-13)


def test_rescaling_a_constant_prediction_stays_finite():
    x, t, cond, uncond = inputs()
    result = guided(lambda x_t, t, cond: torch.zeros_like(x_t), cond, uncond, 4.0, 0.7)(x, t)
    assert torch.equal(result, torch.zeros_like(x))


def test_outside_the_interval_only_the_conditional_half_runs():
    x, _, cond, uncond = inputs()
    toy = Toy()
    predict = guided(toy, cond, uncond, 5.0, interval=(0.3, 0.6))
    times = [1.0, 0.7, 0.6, 0.45, 0.3, 0.2]
    results = [predict(x, torch.full((2,), time, dtype=torch.float64)) for time in times]
    assert toy.batches == [2, 2, 4, 4, 4, 2]
    everywhere = guided(toy, cond, uncond, 5.0)
    for time, result in zip(times, results, strict=True):
        t = torch.full((2,), time, dtype=torch.float64)
        expected = everywhere(x, t) if 0.3 <= time <= 0.6 else toy(x, t, cond)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)


def test_samples_at_different_times_each_follow_the_interval():
    x, _, cond, uncond = inputs()
    t = torch.tensor([0.5, 0.9], dtype=torch.float64)
    result = guided(Toy(), cond, uncond, 5.0, interval=(0.3, 0.6))(x, t)
    torch.testing.assert_close(result[0], guided(Toy(), cond, uncond, 5.0)(x, t)[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(result[1], Toy()(x, t, cond)[1], rtol=0, atol=1e-14)


def test_half_precision_predictions_are_combined_in_float32():
    x, t, cond, uncond = inputs(torch.float32)
    halved = lambda x_t, t, cond: Toy()(x_t, t, cond).to(torch.bfloat16)  # noqa: E731
    result = guided(halved, cond, uncond, 6.0, 0.5)(x, t)
    positive, negative = halved(x, t, cond).float(), halved(x, t, uncond).float()
    combined = negative + 6 * (positive - negative)
    spread = positive.std((1, 2, 3, 4), keepdim=True) / combined.std((1, 2, 3, 4), keepdim=True)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, combined * (0.5 + 0.5 * spread), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": float("inf")}, "scale = inf"),
        ({"scale": 3.0, "rescale": 1.5}, "rescale = 1.5"),
        ({"scale": 3.0, "interval": (0.8, 0.2)}, r"interval = \(0.8, 0.2\)"),
        ({"scale": 3.0, "interval": (0.0, 1.2)}, "0 <= low <= high <= 1"),
    ],
)
def test_mistakes_are_named(values, message):
    _, _, cond, uncond = inputs()
    with pytest.raises(ValueError, match=message):
        guided(Toy(), cond, uncond, **values)


def test_one_negative_text_a_sample():
    _, _, cond, uncond = inputs()
    with pytest.raises(ValueError, match="cond has 2 samples and uncond 1"):
        guided(Toy(), cond, Text(uncond.values[:1], uncond.mask[:1]), 3.0)


def test_make_denoise_hands_the_network_its_dtype_and_the_conversion_the_exact_time():
    objective = ObjectiveConfig(prediction="v").build()
    seen = []

    def predict(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    t = torch.full((2,), 1 - 1e-6, dtype=torch.float64)  # a float32 has room for one digit of 1 - t here
    x0, eps = make_denoise(predict, objective)(x, t)
    assert seen[0].dtype == torch.float32 and seen[0].shape == (2,)
    torch.testing.assert_close(x0, 1e-6 * x, rtol=1e-5, atol=0)
    torch.testing.assert_close(eps, x, rtol=1e-5, atol=0)


def test_two_scales_change_at_a_time():
    x, _, cond, uncond = inputs(torch.float32)
    high, low = (guided(Toy(), cond, uncond, scale) for scale in (5.0, 2.0))
    predict, change = switched(high, low, torch.tensor(0.7).item()), torch.tensor(0.7)
    for t, expected in ((change, high), (torch.tensor(0.9), high), (torch.nextafter(change, change - 1), low)):
        assert torch.equal(predict(x, t.expand(2)), expected(x, t.expand(2)))
        assert torch.equal(predict(x, t.double().expand(2)), expected(x, t.double().expand(2)))
    assert not torch.equal(high(x, change.expand(2)), low(x, change.expand(2)))
    with pytest.raises(AssertionError, match="both sides of"):
        predict(x, torch.tensor([0.9, 0.1]))
