import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from reelwright.config import Config
from reelwright.diffusion.losses import LOSSES
from reelwright.diffusion.objective import PREDICTIONS, ObjectiveConfig
from reelwright.types import UsageError

SCHEDULES = [
    {"schedule": "linear"},
    {"schedule": "scaled_linear"},
    {"schedule": "cosine"},
    {"schedule": "cosine", "zero_terminal_snr": True},
    {"schedule": "scaled_linear", "zero_terminal_snr": True},
    {"schedule": "scaled_linear", "zero_terminal_snr": True, "snr_shift": 3.0},
    {"schedule": "flow"},
    {"schedule": "flow", "shift": 5.0},
]
OBJECTIVES = [
    ObjectiveConfig.parse({**schedule, "prediction": prediction})
    for schedule, prediction in itertools.product(SCHEDULES, PREDICTIONS)
    if prediction != "noise" or not ("zero_terminal_snr" in schedule or schedule["schedule"] == "flow")
]
BY_NAME = pytest.mark.parametrize(
    "config", OBJECTIVES, ids=lambda c: f"{c.schedule}-{c.shift:g}-{c.zero_terminal_snr}-{c.prediction}"
)


def video(seed, batch=3, dtype=torch.float64):
    return torch.randn(batch, 2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@BY_NAME
@settings(max_examples=20, deadline=None)
@given(
    times=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    magnitude=st.floats(1e-2, 1e2),
)
def test_the_target_gives_back_data_and_noise(config, times, seed, magnitude):
    objective = config.build()
    t = torch.tensor(times, dtype=torch.float64)
    x0, noise = video(seed, len(times)) * magnitude, video(seed + 1, len(times))
    x_t = objective.corrupt(x0, noise, t)
    found_x0, found_noise = objective.to_x0_eps(objective.target(x0, noise, t), x_t, t)
    torch.testing.assert_close(found_x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found_noise, noise, rtol=1e-9, atol=1e-9)


@BY_NAME
@settings(max_examples=20, deadline=None)
@given(time=st.floats(1e-3, 1.0), seed=st.integers(0, 2**31))
def test_any_prediction_splits_x_t_consistently(config, time, seed):
    """x_t = alpha x0 + sigma eps, and the target of that pair is the prediction: the conversion is the inverse."""
    objective = config.build()
    t = torch.full((3,), time, dtype=torch.float64)
    prediction, x_t = video(seed), video(seed + 1)
    x0, eps = objective.to_x0_eps(prediction, x_t, t)
    torch.testing.assert_close(objective.corrupt(x0, eps, t), x_t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(objective.target(x0, eps, t), prediction, rtol=1e-9, atol=1e-9)


@BY_NAME
def test_conversions_are_finite_and_right_at_both_ends_in_float32(config):
    objective = config.build()
    x0, noise = video(0, 2, torch.float32), video(1, 2, torch.float32)
    t = torch.tensor([0.0, 1.0])
    x_t = objective.corrupt(x0, noise, t)
    assert torch.equal(x_t[0], x0[0])
    found_x0, found_noise = objective.to_x0_eps(objective.target(x0, noise, t), x_t, t)
    assert found_x0.isfinite().all() and found_noise.isfinite().all()
    torch.testing.assert_close(found_x0[0], x0[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_noise[1], noise[1], rtol=1e-4, atol=1e-4)
    if config.prediction != "noise":  # the only one that divides by alpha
        torch.testing.assert_close(found_x0[1], x0[1], rtol=1e-5, atol=1e-5)


def test_v_is_the_textbook_one_on_a_variance_preserving_schedule():
    objective = ObjectiveConfig(schedule="linear", prediction="v").build()
    x0, noise, t = video(0), video(1), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = objective.alpha_sigma(t, x0)
    v, x_t = alpha * noise - sigma * x0, alpha * x0 + sigma * noise
    found_x0, found_noise = objective.to_x0_eps(v, x_t, t)
    torch.testing.assert_close(found_x0, alpha * x_t - sigma * v, rtol=0, atol=1e-13)
    torch.testing.assert_close(found_noise, sigma * x_t + alpha * v, rtol=0, atol=1e-13)


@BY_NAME
def test_half_precision_predictions_are_converted_in_float32(config):
    objective = config.build()
    x0, noise = video(0, 2, torch.bfloat16), video(1, 2, torch.bfloat16)
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_t, target = objective.corrupt(x0, noise, t), objective.target(x0, noise, t)
        found_x0, found_noise = objective.to_x0_eps(target, x_t, t)
        loss = objective.loss(target.to(torch.bfloat16), target, t)
    for tensor in (x_t, target, found_x0, found_noise, loss):
        assert tensor.dtype == torch.float32
    torch.testing.assert_close(found_x0, x0.float(), rtol=1e-3, atol=1e-3)


def test_alpha_sigma_wants_one_time_a_sample():
    objective = ObjectiveConfig().build()
    alpha, sigma = objective.alpha_sigma(torch.tensor([0.25, 0.5, 1.0]), video(0))
    assert alpha.shape == sigma.shape == (3, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="one time a sample"):
        objective.alpha_sigma(torch.tensor(0.5), video(0))


def test_uniform_draws_reach_every_entry_of_a_table_equally_often():
    objective = ObjectiveConfig(schedule="cosine", schedule_steps=50, prediction="v").build()
    t = objective.sample_time((torch.arange(5000, dtype=torch.float64) + 0.5) / 5000)
    entries, counts = (t * 50).round().unique(return_counts=True)
    torch.testing.assert_close(t * 50, (t * 50).round(), rtol=0, atol=1e-12)
    assert entries.tolist() == list(range(1, 51)) and set(counts.tolist()) == {100}
    ends = objective.sample_time(torch.tensor([0.0, 1 - 2**-24]))
    assert ends.tolist() == [1 / 50, 1.0]


def test_uniform_draws_are_the_times_of_the_flow():
    uniform = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ObjectiveConfig(shift=3.0).build().sample_time(uniform), uniform.double())


def test_logit_normal_times_have_normal_logits():
    objective = ObjectiveConfig(time_sampling="logit_normal", logit_mean=0.5, logit_std=0.7).build()
    uniform = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    expected = 0.5 + 0.7 * torch.from_numpy(norm.ppf(uniform.numpy()))
    torch.testing.assert_close(torch.logit(objective.sample_time(uniform)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("std", [1.0, 50.0])
def test_logit_normal_times_stay_strictly_inside_even_as_float32(std):
    objective = ObjectiveConfig(time_sampling="logit_normal", logit_std=std).build()
    t = objective.sample_time(torch.tensor([0.0, 2**-24, 0.5, 1 - 2**-24])).float()
    assert 0 < t[0] <= t[1] < t[2] < t[3] < 1


@pytest.mark.parametrize("sampling", [{}, {"time_sampling": "logit_normal", "logit_mean": -0.4, "logit_std": 1.3}])
def test_parts_of_the_path_make_up_the_whole(sampling):
    """Drawn from two parts by their shares, times are distributed as without parts; none leaves its part as float32."""
    whole = ObjectiveConfig(shift=3.0, **sampling).build()
    change = torch.tensor(0.7).item()
    parts = [(0.0, change), (change, 1.0)]
    shares = [whole.share(part) for part in parts]
    assert sum(shares) == pytest.approx(1, abs=1e-12) and min(shares) > 0.1
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert torch.equal(whole.within((0.0, 1.0)).sample_time(uniform), whole.sample_time(uniform))
    edge = torch.tensor([0.0, 2**-24, 1 - 2**-24, 1 - 2**-53], dtype=torch.float64)
    for part, share, before in zip(parts, shares, (0.0, shares[0]), strict=True):
        told = whole.within(part).sample_time(edge).float()
        assert bool(((told >= part[0]) & (told < part[1])).all()) and bool((told.diff() >= 0).all())
        expected = whole.sample_time(before + share * uniform)  # the draws of the whole that fall there
        assert (whole.within(part).sample_time(uniform) - expected).abs().max() < 1e-12
    with pytest.raises(ValueError, match="times are those of a table"):
        ObjectiveConfig(schedule="cosine", prediction="v").build().share(parts[0])


@pytest.mark.parametrize("draw", [-0.01, 1.0, float("nan")])
def test_draws_outside_the_unit_interval_are_refused(draw):
    with pytest.raises(ValueError, match=r"they lie in \[0, 1\)"):
        ObjectiveConfig().build().sample_time(torch.tensor([0.5, draw]))


@BY_NAME
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_the_error_of_x0_whatever_is_predicted(config, gamma):
    """weight * (prediction error)^2 = min(SNR, gamma) * (x0 error)^2."""
    objective = ObjectiveConfig(**{**config.plain(), "weighting": "min_snr", "min_snr_gamma": gamma}).build()
    t = torch.tensor([0.004, 0.1, 0.5, 0.9], dtype=torch.float64)
    x_t, prediction, error = video(0, 4), video(1, 4), video(2, 4)
    x0, _ = objective.to_x0_eps(prediction, x_t, t)
    wrong_x0, _ = objective.to_x0_eps(prediction + error, x_t, t)
    alpha, sigma = objective.alpha_sigma(t, x_t)
    expected = ((alpha / sigma) ** 2).clamp(max=gamma) * (wrong_x0 - x0) ** 2
    weight = objective.weight(t).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(weight * error**2, expected, rtol=1e-9, atol=1e-12)
    assert objective.weight(torch.tensor([0.0, 1.0])).isfinite().all()


@pytest.mark.parametrize(
    ("prediction", "formula"),
    [
        ("noise", lambda snr: min(snr, 5) / snr),
        ("v", lambda snr: min(snr, 5) / (snr + 1)),
        ("x0", lambda snr: min(snr, 5)),
    ],
)
def test_min_snr_is_the_published_one_on_ddpm(prediction, formula):
    objective = ObjectiveConfig(schedule="linear", prediction=prediction, weighting="min_snr").build()
    t = torch.tensor([0.01, 0.2, 0.6, 1.0], dtype=torch.float64)
    snr = ((objective.schedule.alpha(t) / objective.schedule.sigma(t)) ** 2).tolist()
    assert objective.weight(t).tolist() == pytest.approx([formula(value) for value in snr], rel=1e-10)


def test_flow_weights():
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    cosmap = ObjectiveConfig(weighting="cosmap").build().weight(t)
    assert cosmap.tolist() == pytest.approx([2 / (math.pi * (1 - 2 * s + 2 * s * s)) for s in t.tolist()])
    middles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert ObjectiveConfig(weighting="cosmap").build().weight(middles).mean().item() == pytest.approx(1, abs=1e-6)
    assert ObjectiveConfig(weighting="sigma_sqrt").build().weight(t).tolist() == pytest.approx([1e6, 16, 4, 1])


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_weighted_mean_of_each_sample(name):
    objective = ObjectiveConfig(loss=name, weighting="sigma_sqrt").build()
    prediction, target = video(0) * 2, video(1)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    elementwise = {
        "mse": lambda d: d * d,
        "l1": abs,
        "huber": lambda d: d * d / 2 if abs(d) < 1 else abs(d) - 0.5,
        "mixed": lambda d: (d * d + abs(d)) / 2,
    }[name]
    expected = []
    for sample, time in zip(prediction - target, t.tolist(), strict=True):
        values = [elementwise(d) for d in sample.flatten().tolist()]
        expected.append(sum(values) / len(values) / time**2)
    assert objective.loss(prediction, target, t).tolist() == pytest.approx(expected, rel=1e-12)


def test_a_loss_does_not_broadcast():
    objective = ObjectiveConfig().build()
    with pytest.raises(ValueError, match="differ"):
        objective.loss(video(0), video(1)[:1], torch.rand(3))
    with pytest.raises(ValueError, match="differ"):
        objective.loss(video(0), video(1), torch.rand(1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "linear", "shift": 3.0}, "shift = 3.0 has no effect with schedule = 'linear'"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr = True has no effect with schedule = 'flow'"),
        ({"schedule_steps": 500}, "schedule_steps = 500 has no effect with schedule = 'flow'"),
        ({"log_mean": 1.0}, "log_mean = 1.0 has no effect with schedule = 'flow': it belongs to edm"),
        ({"schedule": "cosine", "log_std": 1.0}, "log_std = 1.0 has no effect with schedule = 'cosine'"),
        ({"schedule": "edm", "prediction": "noise"}, "prediction = 'noise' cannot be used with schedule = 'edm'"),
        ({"logit_mean": 1.0}, "logit_mean = 1.0 has no effect with time_sampling = 'uniform'"),
        ({"logit_std": 2.0}, "logit_std = 2.0 has no effect"),
        ({"min_snr_gamma": 1.0}, "min_snr_gamma = 1.0 has no effect with weighting = 'none'"),
        ({"prediction": "noise"}, "prediction = 'noise' cannot be used with schedule = 'flow'"),
        ({"schedule": "linear", "prediction": "noise", "zero_terminal_snr": True}, "with zero_terminal_snr = True"),
        ({"schedule": "cosine", "weighting": "cosmap"}, "weighting = 'cosmap' is defined for schedule = 'flow'"),
        ({"schedule": "linear", "weighting": "sigma_sqrt"}, "weighting = 'sigma_sqrt' is defined for"),
        ({"schedule": "linear", "schedule_steps": 200}, "schedule_steps = 200 leaves alpha"),
        ({"schedule": "cosine", "schedule_steps": 1, "zero_terminal_snr": True}, "schedule_steps = 1"),
        ({"logit_std": 0.0, "time_sampling": "logit_normal"}, "logit_std = 0.0"),
        ({"shift": -1.0}, "shift = -1.0"),
        ({"schedule": "sigmoid"}, "schedule = 'sigmoid'"),
        ({"predicton": "v"}, "did you mean 'prediction'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        ObjectiveConfig.parse(values)
    with pytest.raises(ValueError):
        ObjectiveConfig(**values)


@BY_NAME
def test_a_saved_config_builds_the_same_objective(config):
    assert isinstance(config, Config)
    assert ObjectiveConfig.parse(config.plain()) == config
