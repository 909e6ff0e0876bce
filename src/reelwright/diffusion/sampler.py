"""Samplers: functions of denoise(x, t) -> (x0, eps) that walk x from noise to data.

    sampler(denoise, x, times, schedule, *, draw_noise=None, on_step=None) -> x0

`times` falls strictly from the start to 0 (float64, 1-D); x is `b ...` at times[0], float32 or float64, and keeps its
dtype. denoise gets t as `b` in float64 on the CPU. `draw_noise()` gives standard normal noise of x's shape, once a step
that needs it; `on_step(done, total)` is told of every finished step. Coefficients are float64. All samplers start
anywhere, pure noise with alpha = 0 included: exponentials of log-SNR differences are written as ratios of alpha and
sigma, and an infinite difference takes its limit. Callers turn gradients off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from reelwright.diffusion.guidance import Denoise
from reelwright.diffusion.schedule import FlowSchedule, Schedule

KARRAS_RHO = 7
TIMESTEPS = 1000  # of the table by which flow models are told the time
BELOW_NOISE = 1e-6  # how far below sigma = 1 a walk by timesteps begins
SMALLEST_HEUN_ALPHA = 1e-3  # sigma / alpha is steeper than any tabulated schedule but the cosine's last entry

DrawNoise = Callable[[], Tensor]
OnStep = Callable[[int, int], None]


class Sampler(Protocol):
    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        times: Tensor,
        schedule: Schedule,
        *,
        draw_noise: DrawNoise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor: ...


def sample_times(steps: int, start: float = 1.0, grid: int | None = None) -> Tensor:
    """`steps` + 1 evenly spaced times from `start` to 0, float64.

    With `grid` (a schedule's) they are rounded to its multiples, the only times such a model was trained on; this is
    the "trailing" spacing of Lin et al. 2023 (arXiv 2305.08891), table 2.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be at least 1")
    if not 0 < start <= 1:
        raise ValueError(f"start = {start}: must lie in (0, 1]; 1 is pure noise")
    times = start * torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    if grid is None:
        return times
    times = (times * grid).round() / grid
    if not bool((times.diff() < 0).all()):
        raise ValueError(
            f"steps = {steps}: the schedule has {round(start * grid)} times up to {start}; use at most that"
        )
    return times


def karras_times(steps: int, schedule: Schedule, lowest: float, highest: float) -> Tensor:
    """The times of `steps` noise levels sigma / alpha from `highest` to `lowest`, and 0 behind them; float64.

    Karras et al. 2022 (arXiv 2206.00364), equation 5, rho = 7: evenly spaced in the seventh root. ValueError where the
    schedule has no inverse.
    """
    if steps < 1 or not 0 < lowest < highest:
        raise ValueError(f"steps = {steps}, noise levels {lowest} to {highest}: at least 1, and rising from above 0")
    ends = torch.tensor([highest, lowest], dtype=torch.float64) ** (1 / KARRAS_RHO)
    levels = torch.linspace(ends[0].item(), ends[1].item(), steps, dtype=torch.float64) ** KARRAS_RHO
    return torch.cat([schedule.time(levels), torch.zeros(1, dtype=torch.float64)])


def stretched_times(steps: int, schedule: Schedule, terminal: float) -> Tensor:
    """`steps` times from pure noise to sigma = `terminal`, and 0 behind them; float64.

    LTX-Video's: the evenly spaced times of a flow, with alpha multiplied by one number at all of them, so that the
    last of them stands at `terminal` whatever their number and the shift. A single step has nothing to stretch.
    ValueError where the schedule is no flow.
    """
    if not 0 < terminal < 1:
        raise ValueError(f"terminal = {terminal}: a sigma between 0 and 1")
    if not isinstance(schedule, FlowSchedule):
        raise ValueError(f"terminal = {terminal}: belongs to schedule = 'flow'")
    times = sample_times(steps)
    if steps == 1:
        return times
    even = schedule.alpha(times[:-1])
    alphas = even * ((1 - terminal) / even[-1])
    return torch.cat([schedule.time((1 - alphas) / alphas), times[-1:]])


def timestep_times(steps: int, schedule: Schedule) -> Tensor:
    """`steps` times a table's step short of 0 apart, and 0 behind them; float64.

    The flow as diffusers' UniPCMultistepScheduler walks it (`use_flow_sigmas`), with which Wan is published: from just
    below pure noise, evenly towards the table's first entry, which is left out. numpy's arithmetic in their order, so
    that `whole_timestep` rounds the same numbers. ValueError where the schedule is no flow.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be at least 1")
    if not isinstance(schedule, FlowSchedule):
        raise ValueError("times by timesteps belong to schedule = 'flow'")
    even = torch.from_numpy(np.linspace(1, 1 / TIMESTEPS, steps + 1)[:-1].copy())
    even[0] = schedule.time(torch.tensor((1 - BELOW_NOISE) / BELOW_NOISE, dtype=torch.float64))
    return torch.cat([even, torch.zeros(1, dtype=torch.float64)])


def whole_timestep(t: Tensor, schedule: Schedule) -> Tensor:
    """The time of the whole timestep at or below that of t, 1000 sigma; shape of t, float64."""
    sigma = (TIMESTEPS * schedule.sigma(t)).floor() / TIMESTEPS
    return schedule.time(sigma / (1 - sigma))


def ddim(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    draw_noise: DrawNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps, with a share of eps drawn anew.

    Song et al. 2021 (arXiv 2010.02502), equations 12 and 16. `eta` 0 draws nothing: DDIM, which on the flow is Euler's
    method. `eta` 1 is the ancestral sampler of Ho et al. 2020 (arXiv 2006.11239): a draw from the Gaussian posterior
    of x_s given x_t and x0, on any schedule.
    """
    if eta > 0 and draw_noise is None:
        raise ValueError(f"eta = {eta} draws noise at every step (ddpm has eta = 1): pass draw_noise")
    walk = _Walk(x, times, schedule, on_step)
    for i in range(walk.steps):
        x0, eps = denoise(x, walk.time(i))
        sigma = walk.sigmas[i + 1]
        kept = walk.snr_ratio(i)
        x = walk.alphas[i + 1] * x0 + sigma * math.sqrt(1 - eta**2 + eta**2 * kept) * eps
        if draw_noise is not None and eta > 0 and sigma > 0:
            x = x + sigma * eta * math.sqrt(1 - kept) * draw_noise().to(x)
        walk.finish(i)
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    draw_noise: DrawNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Heun's second-order method, two calls of denoise a step, one for the last.

    Karras et al. 2022 (arXiv 2206.00364), algorithm 1. A variance-preserving path is walked in its coordinates,
    x / alpha over sigma / alpha, where the slope is eps. Those run off to infinity at alpha = 0, so that steps from
    there, and all of the flow, take x / (alpha + sigma) over sigma / (alpha + sigma), where the slope is eps - x0.
    """
    walk = _Walk(x, times, schedule, on_step)
    for i in range(walk.steps):
        x0, eps = denoise(x, walk.time(i))
        (alpha, next_alpha), (sigma, next_sigma) = walk.alphas[i : i + 2], walk.sigmas[i : i + 2]
        x = next_alpha * x0 + next_sigma * eps  # Euler's step, the same in all coordinates
        if next_sigma > 0:
            next_x0, next_eps = denoise(x, walk.time(i + 1))
            if schedule.variance_preserving and alpha > SMALLEST_HEUN_ALPHA:
                half_length = (next_sigma - sigma * next_alpha / alpha) / 2
                x = x + half_length * (next_eps - eps)
            else:
                half_length = (next_sigma - sigma * (next_alpha + next_sigma) / (alpha + sigma)) / 2
                x = x + half_length * ((next_eps - next_x0) - (eps - x0))
        walk.finish(i)
    return x


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    stochastic: bool = False,
    draw_noise: DrawNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DPM-Solver++ (2M), midpoint form: Lu et al. 2022 (arXiv 2211.01095), algorithm 2. First order to sigma = 0.

    `stochastic`: SDE-DPM-Solver++ (2M) of the same paper, CogVideoX's own, which draws noise at every step. It is of
    first order from alpha = 0 too; such a step is one of `ddpm`.
    """
    if stochastic and draw_noise is None:
        raise ValueError("dpmpp_2m_sde draws noise at every step: pass draw_noise")
    walk = _Walk(x, times, schedule, on_step)
    previous = x
    for i in range(walk.steps):
        x0, _ = denoise(x, walk.time(i))
        slope = walk.extrapolation(i) * (x0 - previous) if 0 < i < walk.steps - 1 else 0
        if stochastic and draw_noise is not None:
            sigma, kept = walk.sigmas[i + 1], walk.snr_ratio(i)
            x = sigma / walk.sigmas[i] * math.sqrt(kept) * x + walk.alphas[i + 1] * (1 - kept) * (x0 + slope / 2)
            if sigma > 0:
                x = x + sigma * math.sqrt(1 - kept) * draw_noise().to(x)
        else:
            x = walk.move(i, x, x0 + slope / 2)
        previous = x0
        walk.finish(i)
    return x


def unipc(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    draw_noise: DrawNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """UniPC of order 2 on x0, B(h) = e^h - 1: Zhao et al. 2023 (arXiv 2302.04867), section 3.

    Every step but the last is corrected with the x0 found at its end, which costs no call: the next step needs it too.
    """
    walk = _Walk(x, times, schedule, on_step)
    start, at_start, before = x, x, x  # x at the start of the last step, x0 there, and x0 one step earlier
    second_order = False  # of the last step
    for i in range(walk.steps):
        x0, _ = denoise(x, walk.time(i))
        if i > 0:
            ahead, behind = _corrector(walk, i - 1) if second_order else (0.5, 0.0)
            x = walk.move(i - 1, start, at_start + ahead * (x0 - at_start) + behind * (before - at_start))
        start, at_start, before = x, x0, at_start
        second_order = 0 < i < walk.steps - 1
        slope = walk.extrapolation(i) * (at_start - before) if second_order else 0
        x = walk.move(i, start, at_start + slope / 2)
        walk.finish(i)
    return x


SAMPLERS: dict[str, Sampler] = {
    "ddpm": partial(ddim, eta=1.0),
    "ddim": ddim,
    "euler": ddim,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": partial(dpmpp_2m, stochastic=True),
    "unipc": unipc,
}


class _Walk:
    """The numbers of one walk down `times`, as float64; lambda = log(alpha / sigma), h its change over a step."""

    def __init__(self, x: Tensor, times: Tensor, schedule: Schedule, on_step: OnStep | None) -> None:
        falling = times.ndim == 1 and len(times) > 1 and bool((times.diff() < 0).all())
        if not falling or times[-1] != 0:
            raise ValueError(f"times = {times.tolist()}: must fall strictly to 0; use sample_times(steps, start)")
        if x.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"x is {x.dtype}: a sampler's state is float32 or float64; let only the network be less")
        self.steps = len(times) - 1
        self.alphas: list[float] = schedule.alpha(times).tolist()
        self.sigmas: list[float] = schedule.sigma(times).tolist()
        self._times = times.to("cpu", torch.float64)
        self._batch = len(x)
        self._on_step = on_step

    def time(self, i: int) -> Tensor:
        return self._times[i].expand(self._batch)

    def finish(self, i: int) -> None:
        if self._on_step is not None:
            self._on_step(i + 1, self.steps)

    def snr_ratio(self, i: int) -> float:
        """e^(-2h): the signal-to-noise ratio before step i over the one after it."""
        return (self.alphas[i] * self.sigmas[i + 1] / (self.alphas[i + 1] * self.sigmas[i])) ** 2

    def move(self, i: int, x: Tensor, x0: Tensor) -> Tensor:
        """Step i with x0 held: sigma'/sigma x + alpha' (1 - e^-h) x0."""
        ratio = self.sigmas[i + 1] / self.sigmas[i]
        return ratio * x + (self.alphas[i + 1] - ratio * self.alphas[i]) * x0

    def log_snr_change(self, i: int) -> float:
        """h of step i: infinite from alpha = 0 and to sigma = 0."""
        before, after = self.alphas[i] * self.sigmas[i + 1], self.alphas[i + 1] * self.sigmas[i]
        return math.log(after / before) if before > 0 else math.inf

    def extrapolation(self, i: int) -> float:
        """h of step i over h of the step before: how far the last change of x0 goes on. 0 after an infinite step."""
        return self.log_snr_change(i) / self.log_snr_change(i - 1)


def _corrector(walk: _Walk, i: int) -> tuple[float, float]:
    """Weights (ahead, behind) of the x0 differences in UniC-2 over step i.

    They make the step exact where x0 is quadratic in lambda through its three points: one step behind (at -r, in units
    of h), the start (0) and the end (1). The moments are the integrals of u and u^2 against e^-(1-u)h over [0, 1],
    divided by that of 1.
    """
    h = walk.log_snr_change(i)
    r = walk.log_snr_change(i - 1) / h
    mass = -math.expm1(-h)
    first = 1 / mass - 1 / h
    second = 1 / mass - 2 * first / h
    share = (first - second) / (1 + r)
    return first - share, -share / r
