"""Our samplers at the timesteps of diffusers' schedulers, in float32, from the same start with the same noise.

Their tables and step sizes are float32, ours float64: 5e-5 is what that leaves.
"""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from reelwright.diffusion.guidance import make_denoise
from reelwright.diffusion.objective import ObjectiveConfig
from reelwright.diffusion.sampler import SAMPLERS, sample_times, stretched_times, timestep_times, whole_timestep

TOLERANCE = 5e-5
STOCHASTIC = ("ddpm", "dpmpp_2m_sde")
BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
THEIR_PREDICTION = {"noise": "epsilon", "v": "v_prediction", "x0": "sample"}
# A predicted noise divided by the cosine's last alpha, 5e-5, is not reproducible in float32 by anyone.
TABLES = [(s, p) for s in BETAS for p in THEIR_PREDICTION if (s, p) != ("cosine", "noise")]


def start(seed=0):
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def network(objective):
    """A nonlinear stand-in for a trained network: bounded as a v or velocity, given as the objective predicts."""

    def predict(x, t):
        shape = (-1,) + (1,) * (x.ndim - 1)
        bounded = torch.sin(1.5 * x + 3 * t.view(shape)) + 0.2 * x
        if objective.config.prediction in ("v", "velocity"):
            return bounded
        alpha, sigma = objective.alpha_sigma(t, x)
        if objective.config.prediction == "noise":
            return sigma * x + alpha * bounded
        return alpha * x - sigma * bounded

    return predict


def walk_theirs(scheduler, x, predict, times, **options):
    """`times`: our t for each of their timesteps."""
    for timestep, time in zip(scheduler.timesteps, times, strict=True):
        scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        prediction = predict(scaled, torch.full((len(x),), time, dtype=x.dtype))
        x = scheduler.step(prediction, timestep, x, **options).prev_sample
    return x


def largest_difference(ours, theirs):
    assert ours.dtype == theirs.dtype == torch.float32
    return (ours - theirs).abs().max().item()


def objective_of(schedule, prediction, **options):
    return ObjectiveConfig(schedule=schedule, prediction=prediction, **options).build()


def of_table(cls, schedule, prediction, steps, **options):
    scheduler = cls(
        1000,
        prediction_type=THEIR_PREDICTION[prediction],
        timestep_spacing="trailing",
        **BETAS[schedule],
        **options,
    )
    scheduler.set_timesteps(steps)
    return scheduler, [(int(timestep) + 1) / 1000 for timestep in scheduler.timesteps]


@pytest.mark.parametrize("steps", [1, 4, 25])
@pytest.mark.parametrize(("schedule", "prediction"), TABLES)
@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("ddim", DDIMScheduler, {"set_alpha_to_one": True, "clip_sample": False}),
        ("dpmpp_2m", DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}),
        ("dpmpp_2m_sde", DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_type": "midpoint"}),
        ("unipc", UniPCMultistepScheduler, {"solver_type": "bh2", "solver_order": 2}),
        ("ddpm", DDPMScheduler, {"clip_sample": False}),
    ],
)
def test_table_schedules(name, cls, options, schedule, prediction, steps):
    objective = objective_of(schedule, prediction)
    predict = network(objective)
    scheduler, their_times = of_table(cls, schedule, prediction, steps, **options)
    times = sample_times(steps, grid=1000)
    assert their_times == times[:-1].tolist()
    their_generator, our_generator = (torch.Generator().manual_seed(5) for _ in range(2))
    drawn = {"generator": their_generator} if name in STOCHASTIC else {}
    theirs = walk_theirs(scheduler, start(), predict, their_times, **drawn)
    ours = SAMPLERS[name](
        make_denoise(predict, objective),
        start(),
        times,
        objective.schedule,
        draw_noise=lambda: torch.randn(start().shape, generator=our_generator),
    )
    assert largest_difference(ours, theirs) < TOLERANCE


def test_all_thousand_steps_of_ddpm():
    objective = objective_of("linear", "noise")
    predict = network(objective)
    scheduler, times = of_table(DDPMScheduler, "linear", "noise", 1000, clip_sample=False)
    their_generator, our_generator = (torch.Generator().manual_seed(5) for _ in range(2))
    theirs = walk_theirs(scheduler, start(), predict, times, generator=their_generator)
    ours = SAMPLERS["ddpm"](
        make_denoise(predict, objective),
        start(),
        torch.tensor([*times, 0.0], dtype=torch.float64),
        objective.schedule,
        draw_noise=lambda: torch.randn(start().shape, generator=our_generator),
    )
    assert largest_difference(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("schedule", BETAS)
@pytest.mark.parametrize(("name", "cls"), [("ddim", DDIMScheduler), ("ddpm", DDPMScheduler)])
def test_zero_terminal_snr(name, cls, schedule, prediction):
    objective = objective_of(schedule, prediction, zero_terminal_snr=True)
    predict = network(objective)
    options = {"rescale_betas_zero_snr": True, "clip_sample": False}
    scheduler, times = of_table(cls, schedule, prediction, 20, **options)
    their_generator, our_generator = (torch.Generator().manual_seed(5) for _ in range(2))
    drawn = {"generator": their_generator} if name == "ddpm" else {}
    theirs = walk_theirs(scheduler, start(), predict, times, **drawn)
    ours = SAMPLERS[name](
        make_denoise(predict, objective),
        start(),
        torch.tensor([*times, 0.0], dtype=torch.float64),
        objective.schedule,
        draw_noise=lambda: torch.randn(start().shape, generator=our_generator),
    )
    assert largest_difference(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_the_stochastic_sampler_of_cogvideox(steps, snr_shift):
    """From pure noise on its own table. It draws twice a step of second order and throws the first draw away."""
    objective = objective_of("scaled_linear", "v", zero_terminal_snr=True, snr_shift=snr_shift)
    predict = network(objective)
    options = {"rescale_betas_zero_snr": True, "snr_shift_scale": snr_shift, "set_alpha_to_one": True}
    scheduler, times = of_table(CogVideoXDPMScheduler, "scaled_linear", "v", steps, **options)
    their_generator, our_generator = (torch.Generator().manual_seed(5) for _ in range(2))
    x, before, behind = start(), None, None
    for timestep, time in zip(scheduler.timesteps, times, strict=True):
        prediction = predict(x, torch.full((len(x),), time))
        x, before = scheduler.step(prediction, before, timestep, behind, x, generator=their_generator)
        behind = timestep
    calls = 0

    def draw_noise():
        nonlocal calls
        calls += 1
        noise = torch.randn(start().shape, generator=our_generator)
        return noise if calls == 1 else torch.randn(start().shape, generator=our_generator)

    ours = SAMPLERS["dpmpp_2m_sde"](
        make_denoise(predict, objective), start(), sample_times(steps, grid=1000), objective.schedule,
        draw_noise=draw_noise,
    )  # fmt: skip
    assert largest_difference(ours, x) < TOLERANCE and calls == steps - 1


@pytest.mark.parametrize("steps", [4, 10, 25])
@pytest.mark.parametrize(("schedule", "prediction"), [("linear", "noise"), ("linear", "v"), ("scaled_linear", "v")])
def test_heun_on_table_schedules(schedule, prediction, steps):
    """From 4 steps on: with 2, from sigma / alpha = 157, float32 itself costs more than the tolerance (3e-4)."""
    objective = objective_of(schedule, prediction)
    predict = network(objective)
    scheduler, their_times = of_table(HeunDiscreteScheduler, schedule, prediction, steps)
    times = sample_times(steps, grid=1000)
    alpha = objective.schedule.alpha(times[0]).item()  # theirs is x / alpha; alpha is 1 at the end
    theirs = walk_theirs(scheduler, start() / alpha, predict, their_times)
    ours = SAMPLERS["heun"](make_denoise(predict, objective), start(), times, objective.schedule)
    assert largest_difference(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_euler_on_the_flow(steps, shift):
    objective = objective_of("flow", "velocity", shift=shift)
    predict = network(objective)
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    times = sample_times(steps)
    scheduler.set_timesteps(sigmas=times[:-1].tolist())  # it shifts them itself
    theirs = walk_theirs(scheduler, start(), predict, times[:-1].tolist())
    ours = SAMPLERS["euler"](make_denoise(predict, objective), start(), times, objective.schedule)
    assert largest_difference(ours, theirs) < TOLERANCE


@pytest.mark.parametrize(("terminal", "shift"), [(0.1, 1.0), (0.1, 6.3), (0.3, 2.0)])
@pytest.mark.parametrize("steps", [2, 8, 50])
def test_sigmas_stretched_to_a_terminal(steps, terminal, shift):
    schedule = objective_of("flow", "velocity", shift=shift).schedule
    scheduler = FlowMatchEulerDiscreteScheduler(1000, use_dynamic_shifting=True, shift_terminal=terminal)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=float(np.log(shift)))
    times = stretched_times(steps, schedule, terminal)
    sigmas = schedule.sigma(times)
    assert (sigmas - scheduler.sigmas.double()).abs().max() < 1e-6
    assert times[0] == 1 and times[-1] == 0 and sigmas[-2].item() == pytest.approx(terminal, abs=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("dpmpp_2m", DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        ("unipc", UniPCMultistepScheduler, {"solver_type": "bh2"}),
    ],
)
def test_multistep_solvers_on_the_flow(name, cls, options, shift):
    """At their sigmas, which stop short of 1 because their formulas do not bear alpha = 0."""
    objective = objective_of("flow", "velocity")
    predict = network(objective)
    scheduler = cls(1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, **options)
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas.double()
    assert 0.99 < sigmas[0] < 1
    theirs = walk_theirs(scheduler, start(), predict, sigmas[:-1].tolist())
    ours = SAMPLERS[name](make_denoise(predict, objective), start(), sigmas, objective.schedule)
    assert largest_difference(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.1])
@pytest.mark.parametrize("steps", [1, 4, 20, 27, 37, 50, 333, 999])
def test_times_and_timesteps_of_unipc_on_the_flow(steps, shift):
    """27 and 37 steps divide 999: their times fall on whole timesteps, where a rounding error would be one too few."""
    schedule = objective_of("flow", "velocity", shift=shift).schedule
    scheduler = UniPCMultistepScheduler(
        1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_type="bh2"
    )
    scheduler.set_timesteps(steps)
    times = timestep_times(steps, schedule)
    assert (schedule.sigma(times) - scheduler.sigmas.double()).abs().max() < 1e-7
    told = 1000 * schedule.sigma(whole_timestep(times[:-1], schedule))
    assert torch.equal(told.round().long(), scheduler.timesteps) and (told - told.round()).abs().max() < 1e-9


def test_timesteps_are_those_of_a_flow():
    with pytest.raises(ValueError, match="belong to schedule = 'flow'"):
        timestep_times(4, objective_of("linear", "v").schedule)
    with pytest.raises(ValueError, match="steps = 0: must be at least 1"):
        timestep_times(0, objective_of("flow", "velocity").schedule)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_on_the_flow(shift):
    objective = objective_of("flow", "velocity")
    predict = network(objective)
    scheduler = FlowMatchHeunDiscreteScheduler(1000, shift=shift)
    scheduler.set_timesteps(15)
    asked = (scheduler.timesteps / 1000).tolist()  # the sigma of each call
    times = torch.from_numpy(np.array([*asked[::2], 0.0]))
    theirs = walk_theirs(scheduler, start(), predict, asked)
    ours = SAMPLERS["heun"](make_denoise(predict, objective), start(), times, objective.schedule)
    assert largest_difference(ours, theirs) < TOLERANCE
