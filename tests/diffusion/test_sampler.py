"""Every sampler against its paper's formulas, written again here in plain NumPy, and on data with a known answer."""

import math

import numpy as np
import pytest
import torch

from reelwright.diffusion.sampler import SAMPLERS, ddim, sample_times, stretched_times
from reelwright.diffusion.schedule import build_schedule

WALKS = {
    "linear": {"kind": "linear"},
    "cosine": {"kind": "cosine"},
    "zero-snr": {"kind": "scaled_linear", "zero_terminal_snr": True},
    "flow": {"kind": "flow"},
    "flow-shift-3": {"kind": "flow", "shift": 3.0},
}


def alpha_sigma(kind, t, shift=1.0, zero_terminal_snr=False):
    """The schedules from their definitions, as floats."""
    if kind == "flow":
        sigma = shift * t / (1 + (shift - 1) * t)
        return 1 - sigma, sigma
    if kind == "linear":
        betas = np.linspace(1e-4, 0.02, 1000)
    elif kind == "scaled_linear":
        betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    else:
        f = np.array([math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)])
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    alphas = np.sqrt(np.cumprod(1 - betas))
    if zero_terminal_snr:
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    alpha = float(np.interp(t * 1000, np.arange(1001), np.concatenate([[1.0], alphas])))
    return alpha, math.sqrt(1 - alpha * alpha)


def velocity(x, t):
    """A nonlinear network that predicts noise - x0."""
    return np.sin(1.3 * x + 2 * t) + 0.3 * x * np.cos(x)


def split(x, t, walk):
    alpha, sigma = alpha_sigma(t=t, **walk)
    u = velocity(x, t)
    x0 = (x - sigma * u) / (alpha + sigma)
    return x0, x0 + u


def ours(name, walk, x, times, **options):
    def denoise(x, t):
        assert t.shape == (len(x),) and t.dtype == torch.float64
        x0, eps = split(x.numpy(), t[0].item(), walk)
        return torch.from_numpy(x0), torch.from_numpy(eps)

    return SAMPLERS[name](denoise, torch.from_numpy(x), times, build_schedule(**walk), **options).numpy()


def start(seed=0):
    return np.random.default_rng(seed).standard_normal((2, 3, 4))


def paper_ddpm(x, times, walk, noises, eta=None):
    """q(x_s | x_t, x0): Ho et al. 2020, equations 6 and 7, with alpha_t|s and sigma_t|s for any schedule."""
    for t, s in zip(times, times[1:], strict=False):
        (a_t, s_t), (a_s, s_s) = alpha_sigma(t=t, **walk), alpha_sigma(t=s, **walk)
        x0, eps = split(x, t, walk)
        ratio = a_t / a_s
        step_variance = s_t**2 - ratio**2 * s_s**2
        if eta is None:
            x = a_s * step_variance / s_t**2 * x0 + ratio * s_s**2 / s_t**2 * x
            spread = math.sqrt(step_variance) * s_s / s_t
        else:  # Song et al. 2021, equations 12 and 16
            spread = eta * math.sqrt(step_variance) * s_s / s_t
            x = a_s * x0 + math.sqrt(s_s**2 - spread**2) * eps
        x = x + spread * next(noises) if s > 0 else x
    return x


def paper_euler(x, times, walk):
    """x / (alpha + sigma) moves by noise - x0 along sigma / (alpha + sigma): on the flow, dx = velocity dsigma."""
    for t, s in zip(times, times[1:], strict=False):
        (a_t, s_t), (a_s, s_s) = alpha_sigma(t=t, **walk), alpha_sigma(t=s, **walk)
        y = x / (a_t + s_t) + (s_s / (a_s + s_s) - s_t / (a_t + s_t)) * velocity(x, t)
        x = (a_s + s_s) * y
    return x


def paper_heun(x, times, walk):
    """Karras et al. 2022, algorithm 1, in the two coordinates the sampler's docstring names."""
    for t, s in zip(times, times[1:], strict=False):
        (a_t, s_t), (a_s, s_s) = alpha_sigma(t=t, **walk), alpha_sigma(t=s, **walk)
        variance_exploding = walk["kind"] != "flow" and a_t > 1e-3

        def place(alpha, sigma, ve=variance_exploding):
            scale = alpha if ve else alpha + sigma
            return scale, sigma / scale

        def slope(x, t, ve=variance_exploding):
            return split(x, t, walk)[1] if ve else velocity(x, t)

        (scale_t, at_t), (scale_s, at_s) = place(a_t, s_t), place(a_s, s_s)
        y, first = x / scale_t, slope(x, t)
        guess = scale_s * (y + (at_s - at_t) * first)
        if s > 0:
            guess = scale_s * (y + (at_s - at_t) * (first + slope(guess, s)) / 2)
        x = guess
    return x


def half_log_snr(t, walk):
    alpha, sigma = alpha_sigma(t=t, **walk)
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def exponential_step(x, t, s, walk, x0):
    (a_t, s_t), (a_s, s_s) = alpha_sigma(t=t, **walk), alpha_sigma(t=s, **walk)
    if a_t == 0 or s_s == 0:  # e^-h = 0, times a sigma' / sigma that stays
        return s_s / s_t * x + a_s * x0
    h = half_log_snr(s, walk) - half_log_snr(t, walk)
    return s_s / s_t * x - a_s * (math.exp(-h) - 1) * x0


def paper_dpmpp_2m(x, times, walk):
    """Lu et al. 2022 (DPM-Solver++), algorithm 2; the last step is of first order, as h is infinite there."""
    history = []
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        history.append(split(x, t, walk)[0])
        mixed = history[-1]
        if i > 0 and s > 0 and math.isfinite(half_log_snr(times[i - 1], walk)):
            h = half_log_snr(s, walk) - half_log_snr(t, walk)
            r = (half_log_snr(t, walk) - half_log_snr(times[i - 1], walk)) / h
            mixed = (1 + 1 / (2 * r)) * history[-1] - 1 / (2 * r) * history[-2]
        x = exponential_step(x, t, s, walk, mixed)
    return x


def paper_dpmpp_2m_sde(x, times, walk, noises):
    """Lu et al. 2022 (DPM-Solver++), SDE-DPM-Solver++ (2M): as 2M, but of the noise only e^(-2h) is kept."""
    history = []
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        (a_t, s_t), (a_s, s_s) = alpha_sigma(t=t, **walk), alpha_sigma(t=s, **walk)
        history.append(split(x, t, walk)[0])
        mixed, h = history[-1], math.inf
        if a_t > 0 and s_s > 0:
            h = half_log_snr(s, walk) - half_log_snr(t, walk)
            if i > 0 and math.isfinite(half_log_snr(times[i - 1], walk)):
                r = (half_log_snr(t, walk) - half_log_snr(times[i - 1], walk)) / h
                mixed = (1 + 1 / (2 * r)) * history[-1] - 1 / (2 * r) * history[-2]
        noise = next(noises) if s_s > 0 else 0
        x = s_s / s_t * math.exp(-h) * x + a_s * (1 - math.exp(-2 * h)) * mixed
        x = x + s_s * math.sqrt(1 - math.exp(-2 * h)) * noise
    return x


def paper_unipc(x, times, walk):
    """Zhao et al. 2023: UniP-2 with its 1/2; UniC-2 as what its equations solve for, the integral of a parabola.

    x_s = sigma_s / sigma_t x + alpha_s h int_0^1 e^(-(1-u) h) x0(u) du, where x0(u) goes through
    (-r, before), (0, at), (1, after).
    """
    origin = x
    nodes, weights = np.polynomial.legendre.leggauss(40)
    nodes, weights = (nodes + 1) / 2, weights / 2
    history = []
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        history.append(split(x, t, walk)[0])
        if i > 0:  # correct the step that led to t
            before = times[i - 1]
            if i == 1:
                x = exponential_step(origin, before, t, walk, (history[-1] + history[-2]) / 2)
            else:
                h = half_log_snr(t, walk) - half_log_snr(before, walk)
                r = (half_log_snr(before, walk) - half_log_snr(times[i - 2], walk)) / h
                line = history[-2][None] + nodes[:, None, None, None] * (history[-1] - history[-2])
                if math.isfinite(r):
                    bend = (history[-1] - history[-2] + (history[-3] - history[-2]) / r) / (1 + r)
                    line = line + (nodes * (nodes - 1))[:, None, None, None] * bend
                alpha, sigma = alpha_sigma(t=t, **walk)
                mean = np.tensordot(weights * h * np.exp(-(1 - nodes) * h), line, 1)
                x = sigma / alpha_sigma(t=before, **walk)[1] * origin + alpha * mean
        origin, mixed = x, history[-1]
        if 0 < i < len(times) - 2:
            h = half_log_snr(s, walk) - half_log_snr(t, walk)
            r = (half_log_snr(times[i - 1], walk) - half_log_snr(t, walk)) / h
            mixed = history[-1] + 0.5 * (history[-2] - history[-1]) / r
        x = exponential_step(x, t, s, walk, mixed)
    return x


PAPERS = {
    "ddim": paper_euler,
    "euler": paper_euler,
    "heun": paper_heun,
    "dpmpp_2m": paper_dpmpp_2m,
    "unipc": paper_unipc,
}


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
@pytest.mark.parametrize("begin", [1.0, 0.37])
@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("name", PAPERS)
def test_a_sampler_is_its_paper(name, walk, begin, steps):
    times = sample_times(steps, begin)
    expected = PAPERS[name](start(), times.tolist(), WALKS[walk])
    np.testing.assert_allclose(ours(name, WALKS[walk], start(), times), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 12])
@pytest.mark.parametrize("begin", [1.0, 0.37])
@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("eta", [None, 0.6])
def test_the_ancestral_sampler_draws_from_the_posterior(eta, walk, begin, steps):
    noises = np.random.default_rng(7).standard_normal((steps, 2, 3, 4))
    draws = iter(torch.from_numpy(noises))
    times = sample_times(steps, begin)
    expected = paper_ddpm(start(), times.tolist(), WALKS[walk], iter(noises), eta)
    name, options = ("ddpm", {}) if eta is None else ("ddim", {"eta": eta})
    result = ours(name, WALKS[walk], start(), times, draw_noise=lambda: next(draws), **options)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)
    assert len(list(draws)) == 1  # none is drawn on the way to sigma = 0


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
@pytest.mark.parametrize("begin", [1.0, 0.37])
@pytest.mark.parametrize("walk", WALKS)
def test_the_stochastic_solver_is_its_paper(walk, begin, steps):
    noises = np.random.default_rng(7).standard_normal((steps, 2, 3, 4))
    draws = iter(torch.from_numpy(noises))
    times = sample_times(steps, begin)
    expected = paper_dpmpp_2m_sde(start(), times.tolist(), WALKS[walk], iter(noises))
    result = ours("dpmpp_2m_sde", WALKS[walk], start(), times, draw_noise=lambda: next(draws))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)
    assert len(list(draws)) == 1  # none is drawn on the way to sigma = 0


CENTRE, WIDTH = 0.7, 0.4


def gaussian_denoise(schedule):
    """E[x0 | x_t] and E[noise | x_t] where the data are normal with mean CENTRE and standard deviation WIDTH."""

    def denoise(x, t):
        shape = (-1,) + (1,) * (x.ndim - 1)
        alpha, sigma = schedule.alpha(t).view(shape).to(x), schedule.sigma(t).view(shape).to(x)
        away = (x - alpha * CENTRE) / (alpha**2 * WIDTH**2 + sigma**2)
        return CENTRE + alpha * WIDTH**2 * away, sigma * away

    return denoise


def gaussian_flow(schedule, x, t):
    """Where the probability-flow ODE of that data takes x from time t to 0."""
    t = torch.tensor(t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return CENTRE + WIDTH * (x - alpha * CENTRE) / (alpha**2 * WIDTH**2 + sigma**2).sqrt()


def gaussian_error(name, kind, begin, steps):
    schedule = build_schedule(kind)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 9)
    result = SAMPLERS[name](gaussian_denoise(schedule), x, sample_times(steps, begin), schedule)
    return (result - gaussian_flow(schedule, x, begin)).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 2)])
@pytest.mark.parametrize("begin", [1.0, 0.6])
def test_twice_the_steps_divide_the_error_by_two_to_the_order(name, order, begin):
    coarse, fine, finest = (gaussian_error(name, "flow", begin, steps) for steps in (160, 320, 640))
    assert 0.8 * 2**order < coarse / fine < 1.2 * 2**order
    assert 0.8 * 2**order < fine / finest < 1.2 * 2**order


@pytest.mark.parametrize(("name", "largest"), [("ddim", 0.04), ("heun", 0.008), ("dpmpp_2m", 0.006), ("unipc", 0.004)])
@pytest.mark.parametrize(("kind", "begin"), [("flow", 1.0), ("cosine", 0.9), ("linear", 0.5)])
def test_forty_steps_follow_the_probability_flow(name, largest, kind, begin):
    assert gaussian_error(name, kind, begin, 40) < largest


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("walk", WALKS)
def test_one_data_point_is_found_exactly_from_pure_noise(name, walk):
    """Where all data are one point every denoiser output is that point, and every sampler must end on it."""
    schedule = build_schedule(**WALKS[walk])
    point = torch.from_numpy(start(3))

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t)[0].item(), schedule.sigma(t)[0].item()
        return point, (x - alpha * point) / sigma

    draws = torch.Generator().manual_seed(0)
    result = SAMPLERS[name](
        denoise,
        torch.from_numpy(start(4)),
        sample_times(9),
        schedule,
        draw_noise=lambda: torch.randn(2, 3, 4, generator=draws),
    )
    torch.testing.assert_close(result, point, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "steps"), [("ddpm", 100), ("dpmpp_2m_sde", 25)])
def test_stochastic_samples_have_the_spread_of_the_data(name, steps):
    schedule = build_schedule("cosine")
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(8000, 1, generator=generator, dtype=torch.float64)  # noqa: E731
    x = SAMPLERS[name](gaussian_denoise(schedule), draw(), sample_times(steps), schedule, draw_noise=draw)
    assert x.mean().item() == pytest.approx(CENTRE, abs=0.02)
    assert x.std().item() == pytest.approx(WIDTH, abs=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("walk", WALKS)
def test_float32_follows_float64_and_the_same_inputs_give_the_same_result(name, walk):
    schedule = build_schedule(**WALKS[walk])
    noises = torch.from_numpy(np.random.default_rng(1).standard_normal((30, 2, 3, 4)))
    runs = []
    for dtype in (torch.float64, torch.float32, torch.float32):
        draws = iter(noises)
        x = torch.from_numpy(start()).to(dtype)
        denoise = gaussian_denoise(schedule)
        before = torch.random.get_rng_state()
        runs.append(SAMPLERS[name](denoise, x, sample_times(30), schedule, draw_noise=lambda d=draws: next(d)))
        assert torch.equal(before, torch.random.get_rng_state())
        assert torch.equal(x, torch.from_numpy(start()).to(dtype))  # the caller's x is left alone
    assert [run.dtype for run in runs] == [torch.float64, torch.float32, torch.float32]
    assert torch.equal(runs[1], runs[2])
    torch.testing.assert_close(runs[1].double(), runs[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "calls"),
    [("ddpm", 6), ("ddim", 6), ("heun", 11), ("dpmpp_2m", 6), ("dpmpp_2m_sde", 6), ("unipc", 6)],
)
def test_what_a_sampler_costs_and_says(name, calls):
    schedule = build_schedule("flow")
    counted, told = [], []

    def denoise(x, t):
        counted.append(t[0].item())
        return gaussian_denoise(schedule)(x, t)

    SAMPLERS[name](
        denoise,
        torch.ones(2, 3),
        sample_times(6),
        schedule,
        draw_noise=lambda: torch.zeros(2, 3),
        on_step=lambda done, total: told.append((done, total)),
    )
    assert len(counted) == calls and min(counted) > 0  # the network is never asked about clean data
    assert told == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("steps", [1, 7, 20, 30, 50, 1000])
def test_times_on_a_grid_are_the_trailing_ones(steps):
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    theirs = DDPMScheduler(1000, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    times = sample_times(steps, grid=1000)
    assert [round(t * 1000) - 1 for t in times[:-1].tolist()] == theirs.timesteps.tolist()
    assert times[0] == 1 and times[-1] == 0


def test_times_start_where_they_are_told():
    times = sample_times(4, 0.3)
    assert times.tolist() == pytest.approx([0.3, 0.225, 0.15, 0.075, 0.0], abs=1e-15)
    assert times.dtype == torch.float64 and times[-1] == 0


def test_mistakes_are_named():
    schedule, x = build_schedule("linear"), torch.ones(2, 3)
    denoise = gaussian_denoise(schedule)
    with pytest.raises(ValueError, match="steps = 0"):
        sample_times(0)
    with pytest.raises(ValueError, match="start = 1.5"):
        sample_times(3, 1.5)
    with pytest.raises(ValueError, match="steps = 400: the schedule has 300 times up to 0.3"):
        sample_times(400, 0.3, grid=1000)
    for name in ("ddpm", "dpmpp_2m_sde"):
        with pytest.raises(ValueError, match="pass draw_noise"):
            SAMPLERS[name](denoise, x, sample_times(3), schedule)
    with pytest.raises(ValueError, match="terminal = 1.0: a sigma between"):
        stretched_times(3, build_schedule("flow"), 1.0)
    with pytest.raises(ValueError, match="terminal = 0.1: belongs to schedule = 'flow'"):
        stretched_times(3, schedule, 0.1)
    assert stretched_times(1, build_schedule("flow"), 0.1).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="fall strictly to 0"):
        ddim(denoise, x, torch.tensor([1.0, 0.5]), schedule)
    with pytest.raises(ValueError, match="fall strictly to 0"):
        ddim(denoise, x, torch.tensor([0.5, 1.0, 0.0]), schedule)
    with pytest.raises(ValueError, match="float32 or float64"):
        ddim(denoise, x.half(), sample_times(3), schedule)
