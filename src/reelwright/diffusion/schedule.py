"""alpha(t) and sigma(t) of x_t = alpha(t) x0 + sigma(t) noise, for t in [0, 1]: 0 is data, 1 is noise.

Everything is computed in float64, on the device of t; a training step and a sampler round the result once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor


class Schedule(ABC):
    """How much data and how much noise there is at time t. alpha / sigma falls strictly; alpha(0) = 1, sigma(0) = 0."""

    variance_preserving: bool  # alpha^2 + sigma^2 = 1
    grid: int | None  # training times are multiples of 1 / grid; None where any time is as good as another

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Share of the data at times t of any shape; float64. ValueError for times outside [0, 1]."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Share of the noise at times t of any shape; float64. ValueError for times outside [0, 1]."""

    def time(self, noise_level: Tensor) -> Tensor:
        """The t at which sigma / alpha is `noise_level`, of any shape; float64. ValueError where that is not known."""
        raise ValueError("this schedule cannot say at which time there is a given noise level; 'edm' and 'flow' can")


class TableSchedule(Schedule):
    """The discrete, variance-preserving schedules of the DDPM family, made continuous.

    Entry i of a table stands at t = (i + 1) / steps, and alpha(0) = 1 exactly. Between the entries alpha is linear,
    which stays finite where the table ends in alpha = 0 (a logarithm would not), and is exact at the entries.
    """

    variance_preserving = True

    def __init__(self, alphas: Tensor) -> None:
        """`alphas`: 1-D, the square roots of the cumulative products of 1 - beta, strictly falling from below 1."""
        table = torch.cat([torch.ones(1, dtype=torch.float64), alphas.to("cpu", torch.float64)])
        if not bool((table.diff() < 0).all()) or table[-1] < 0:
            raise ValueError("alphas must fall strictly, from below 1 to at least 0; pass sqrt(alpha_bar) in order")
        self.grid: int = len(alphas)
        self._table = table

    def alpha(self, t: Tensor) -> Tensor:
        position = _checked(t) * self.grid
        below = position.floor().clamp(max=self.grid - 1).long()
        table = self._table.to(t.device)
        return torch.lerp(table[below], table[below + 1], position - below)

    def sigma(self, t: Tensor) -> Tensor:
        alpha = self.alpha(t)
        return ((1 - alpha) * (1 + alpha)).sqrt()


class FlowSchedule(Schedule):
    """The straight line alpha = 1 - sigma of flow matching, its time bent towards noise by `shift`.

    sigma = shift t / (1 + (shift - 1) t): Esser et al. 2024 (arXiv 2403.03206), section 5.3.2; 1 leaves it straight.
    """

    variance_preserving = False
    grid = None

    def __init__(self, shift: float = 1.0) -> None:
        if not (math.isfinite(shift) and shift > 0):
            raise ValueError(f"shift = {shift}: must be a positive number; 1 means no shift")
        self.shift = shift

    def time(self, noise_level: Tensor) -> Tensor:
        return 1 / (1 + self.shift / noise_level.to(torch.float64))

    def alpha(self, t: Tensor) -> Tensor:
        t = _checked(t)
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Tensor) -> Tensor:
        t = _checked(t)
        return self.shift * t / (1 + (self.shift - 1) * t)


class EDMSchedule(Schedule):
    """Noise levels sigma / alpha whose logarithm is normal where t is uniform: ln(sigma / alpha) = mean + std z(t).

    z is the quantile function of the standard normal distribution. Karras et al. 2022 (arXiv 2206.00364) add noise of
    deviation s to data, drawn so (table 1), and give the network x / sqrt(1 + s^2). That is x_t here, with alpha =
    1 / sqrt(1 + s^2): noise removal in their coordinates and a variance-preserving path in ours are the same.
    """

    variance_preserving = True
    grid = None

    def __init__(self, log_mean: float, log_std: float) -> None:
        if not (math.isfinite(log_mean) and math.isfinite(log_std) and log_std > 0):
            raise ValueError(f"log_mean = {log_mean}, log_std = {log_std}: must be finite, and log_std above 0")
        self.log_mean, self.log_std = log_mean, log_std

    def noise_level(self, t: Tensor) -> Tensor:
        """sigma / alpha at t: 0 at t = 0, infinite at t = 1."""
        return (self.log_mean + self.log_std * torch.special.ndtri(_checked(t))).exp()

    def time(self, noise_level: Tensor) -> Tensor:
        return torch.special.ndtr((noise_level.to(torch.float64).log() - self.log_mean) / self.log_std)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 + self.noise_level(t) ** 2).rsqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 + self.noise_level(t) ** -2).rsqrt()


def linear_betas(steps: int) -> Tensor:
    """Ho et al. 2020 (arXiv 2006.11239), section 4. Made for 1000 steps."""
    return torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int) -> Tensor:
    """Linear in sqrt(beta): latent diffusion, Rombach et al. 2022 (arXiv 2112.10752). Made for 1000 steps."""
    return torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2


def cosine_betas(steps: int) -> Tensor:
    """Nichol and Dhariwal 2021 (arXiv 2102.09672), equation 17, each beta capped at 0.999 as they do."""
    position = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((position + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


BETAS: dict[str, Callable[[int], Tensor]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "cosine": cosine_betas,
}
SCHEDULES = (*BETAS, "flow", "edm")


def build_schedule(
    kind: str,
    *,
    steps: int = 1000,
    shift: float = 1.0,
    zero_terminal_snr: bool = False,
    snr_shift: float = 1.0,
    log_mean: float = 0.7,
    log_std: float = 1.6,
) -> Schedule:
    """A schedule by name.

    `steps`, `zero_terminal_snr` and `snr_shift` belong to the tables, `shift` to the flow, `log_mean` and `log_std` to
    'edm': Stable Video Diffusion's own (arXiv 2311.15127, appendix D) unless told otherwise.
    """
    if kind == "flow":
        return FlowSchedule(shift)
    if kind == "edm":
        return EDMSchedule(log_mean, log_std)
    if kind not in BETAS:
        raise ValueError(f"schedule = {kind!r}: unknown; use one of {', '.join(SCHEDULES)}")
    alphas = (0.5 * torch.log1p(-BETAS[kind](steps)).cumsum(0)).exp()
    alphas = divide_snr(alphas, snr_shift)
    return TableSchedule(rescale_to_zero_terminal_snr(alphas) if zero_terminal_snr else alphas)


def divide_snr(alphas: Tensor, by: float) -> Tensor:
    """The table whose every signal-to-noise ratio alpha^2 / (1 - alpha^2) is that of `alphas` divided by `by`.

    CogVideoX-2B (arXiv 2408.06072) has 3. `FlowSchedule` divides its own by the square of `shift`.
    """
    if not (math.isfinite(by) and by > 0):
        raise ValueError(f"snr_shift = {by}: must be a positive number; 1 means no shift")
    return alphas / (by - (by - 1) * alphas**2).sqrt()


def rescale_to_zero_terminal_snr(alphas: Tensor) -> Tensor:
    """Shift and stretch a table so that its last alpha is 0 and its first one stays.

    Lin et al. 2023 (arXiv 2305.08891), algorithm 1.
    """
    if len(alphas) < 2:
        raise ValueError(f"schedule_steps = {len(alphas)}: zero terminal SNR keeps the first entry and moves the last")
    first, last = alphas[0], alphas[-1]
    return (alphas - last) * (first / (first - last))


def _checked(t: Tensor) -> Tensor:
    t = t.to(torch.float64)
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"t from {t.min().item()} to {t.max().item()}: times lie in [0, 1] (0 data, 1 noise)")
    return t
