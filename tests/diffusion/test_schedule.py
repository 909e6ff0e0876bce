import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

from reelwright.diffusion.schedule import (
    SCHEDULES,
    EDMSchedule,
    FlowSchedule,
    TableSchedule,
    build_schedule,
    divide_snr,
    rescale_to_zero_terminal_snr,
)

DIFFUSERS_BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
GRID = torch.arange(1, 1001, dtype=torch.float64) / 1000


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("kind", DIFFUSERS_BETAS)
def test_tables_are_those_of_diffusers(kind, zero_terminal_snr):
    theirs = DDIMScheduler(1000, rescale_betas_zero_snr=zero_terminal_snr, **DIFFUSERS_BETAS[kind]).alphas_cumprod
    ours = build_schedule(kind, zero_terminal_snr=zero_terminal_snr).alpha(GRID) ** 2
    assert (ours - theirs.double()).abs().max() < 5e-6  # their float32 products of 1000 factors are off by this much
    assert (ours[-1] == 0) == zero_terminal_snr


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("snr_shift", [0.5, 1.0, 3.0])
def test_a_table_with_its_snr_shifted_is_that_of_cogvideox(snr_shift, zero_terminal_snr):
    theirs = CogVideoXDDIMScheduler(rescale_betas_zero_snr=zero_terminal_snr, snr_shift_scale=snr_shift).alphas_cumprod
    ours = build_schedule("scaled_linear", zero_terminal_snr=zero_terminal_snr, snr_shift=snr_shift).alpha(GRID) ** 2
    assert (ours - theirs).abs().max() < 1e-12  # this one counts in float64


@pytest.mark.parametrize("snr_shift", [1e-3, 0.3, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("kind", DIFFUSERS_BETAS)
def test_a_shift_divides_every_signal_to_noise_ratio(kind, snr_shift):
    plain, shifted = build_schedule(kind), build_schedule(kind, snr_shift=snr_shift)
    ratio = (plain.alpha(GRID) * shifted.sigma(GRID) / (shifted.alpha(GRID) * plain.sigma(GRID))) ** 2
    torch.testing.assert_close(ratio, torch.full_like(GRID, snr_shift), rtol=1e-8, atol=0)
    back = divide_snr(shifted.alpha(GRID), 1 / snr_shift)
    torch.testing.assert_close(back, plain.alpha(GRID), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("steps", [500, 1000, 4000])
def test_the_linear_table_at_its_entries_is_the_product_of_its_alphas(steps):
    alpha_bar = 1.0
    schedule = build_schedule("linear", steps=steps)
    for i in range(steps):
        alpha_bar *= 1 - (1e-4 + (0.02 - 1e-4) * i / (steps - 1))
        if i % 97 == 0 or i == steps - 1:
            t = torch.tensor((i + 1) / steps, dtype=torch.float64)
            assert schedule.alpha(t).item() == pytest.approx(math.sqrt(alpha_bar), rel=1e-11)
            assert schedule.sigma(t).item() == pytest.approx(math.sqrt(1 - alpha_bar), rel=1e-11)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_goes_from_data_to_noise(kind, zero_terminal_snr):
    schedule = build_schedule(kind, zero_terminal_snr=zero_terminal_snr)
    t = torch.linspace(0, 1, 7919, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert alpha.dtype == sigma.dtype == torch.float64
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all()
    assert alpha[-1] <= 0.07 and sigma[-1] >= 0.99
    if schedule.variance_preserving:
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-14)
    else:
        torch.testing.assert_close(alpha + sigma, torch.ones_like(t), rtol=0, atol=1e-14)


def test_alpha_is_exactly_zero_at_the_end_where_it_is_said_to_be():
    one = torch.ones(1)
    for schedule in [FlowSchedule(3.0), *(build_schedule(k, zero_terminal_snr=True) for k in DIFFUSERS_BETAS)]:
        assert schedule.alpha(one).item() == 0 and schedule.sigma(one).item() == 1


def test_the_shift_moves_times_towards_noise():
    schedule = FlowSchedule(3.0)
    assert schedule.sigma(torch.tensor([0.25, 0.5])).tolist() == pytest.approx([0.5, 0.75])


def test_an_interpolated_time_lies_between_its_entries():
    schedule = build_schedule("cosine", steps=10)
    t = torch.tensor([0.3, 0.37, 0.4], dtype=torch.float64)
    left, middle, right = schedule.alpha(t).tolist()
    assert middle == pytest.approx(left + 0.7 * (right - left), abs=1e-14)


def test_times_of_any_shape_and_dtype():
    schedule = build_schedule("scaled_linear")
    t = torch.rand(2, 3, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    assert schedule.alpha(t).shape == (2, 3)
    torch.testing.assert_close(schedule.alpha(t), schedule.alpha(t.double()))


@pytest.mark.parametrize("t", [-0.1, 1.0001, float("nan")])
@pytest.mark.parametrize("kind", ["linear", "flow"])
def test_a_time_outside_the_unit_interval_is_refused(kind, t):
    with pytest.raises(ValueError, match=r"times lie in \[0, 1\]"):
        build_schedule(kind).sigma(torch.tensor([0.5, t]))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'karras': unknown; use one of linear, scaled_linear, cosine, flow"):
        build_schedule("karras")
    with pytest.raises(ValueError, match="shift = 0.0"):
        FlowSchedule(0.0)
    with pytest.raises(ValueError, match="snr_shift = -1.0"):
        build_schedule("linear", snr_shift=-1.0)
    with pytest.raises(ValueError, match="fall strictly"):
        TableSchedule(torch.tensor([0.9, 0.95, 0.1]))
    with pytest.raises(ValueError, match="schedule_steps = 1"):
        rescale_to_zero_terminal_snr(torch.tensor([0.5]))


@pytest.mark.parametrize(("mean", "std"), [(0.7, 1.6), (-1.2, 1.2)])
def test_uniform_times_are_log_normal_noise_levels(mean, std):
    schedule = EDMSchedule(mean, std)
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    logarithm = schedule.noise_level(t).log()
    assert logarithm.mean().item() == pytest.approx(mean, abs=1e-6)
    assert logarithm.std().item() == pytest.approx(std, rel=1e-3)
    below = (logarithm < mean + std).double().mean().item()
    assert below == pytest.approx(0.5 * (1 + math.erf(2**-0.5)), abs=1e-4)


@pytest.mark.parametrize("shift", [0.4, 1.0, 3.3])
def test_noise_levels_of_the_flow_have_their_times(shift):
    schedule = FlowSchedule(shift)
    levels = torch.logspace(-3, 3, 301, dtype=torch.float64)
    times = schedule.time(levels)
    torch.testing.assert_close(schedule.sigma(times) / schedule.alpha(times), levels, rtol=1e-9, atol=0)
    assert schedule.time(torch.tensor([0.0, math.inf])).tolist() == [0.0, 1.0]


def test_noise_levels_of_edm_have_their_times():
    schedule = EDMSchedule(0.7, 1.6)
    levels = torch.logspace(-3, 3, 301, dtype=torch.float64)
    times = schedule.time(levels)
    torch.testing.assert_close(schedule.noise_level(times), levels, rtol=1e-9, atol=0)
    torch.testing.assert_close(schedule.sigma(times) / schedule.alpha(times), levels, rtol=1e-9, atol=0)
    assert schedule.time(torch.tensor([0.0, math.inf])).tolist() == [0.0, 1.0]
    ends = torch.tensor([0.0, 1.0])
    assert schedule.alpha(ends).tolist() == [1.0, 0.0] and schedule.sigma(ends).tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="cannot say at which time"):
        build_schedule("linear").time(levels)
    with pytest.raises(ValueError, match="log_std = 0"):
        EDMSchedule(0.0, 0.0)
