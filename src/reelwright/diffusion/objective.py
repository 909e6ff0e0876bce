"""What a denoiser is trained on: corrupted samples, targets, times, weights, losses; and what its prediction means.

All of it is written in terms of (schedule, prediction): DDPM with noise or v prediction and flow matching are values
of the settings. Tensors are `b ...`; t is `b`, best kept in float64 on the CPU: only coefficients are computed from it.
The arithmetic is float32 at least, whatever the dtype of a network's output or an autocast around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from reelwright.config import Config
from reelwright.diffusion.losses import LOSSES, frame_weights, temporal_error
from reelwright.diffusion.schedule import BETAS, build_schedule

LARGEST_FINAL_ALPHA = 0.1  # Stable Diffusion's schedule ends at 0.068; much more and pure noise is an unseen input
SMALLEST_TIME = 2.0**-24  # the resolution of a float32 draw; also keeps 1 - t below 1 in float32
SMALLEST_WEIGHTED_SIGMA = 1e-3  # sigma^-2 has no finite mean; 1000-step training, where it comes from, ends here


class Prediction(NamedTuple):
    """What a network predicts, in terms of alpha `a` and sigma `s`."""

    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (a, s, x0, noise)
    solve: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # (a, s, x_t, prediction) -> (x0, eps)


def _solve_noise(a: Tensor, s: Tensor, x_t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    return (x_t - s * noise) / a, noise


def _solve_x0(a: Tensor, s: Tensor, x_t: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    # At s = 0 there is no noise to find: any finite value will do, as eps is only ever used times sigma.
    return x0, (x_t - a * x0) / s.masked_fill(s == 0, 1)


def _solve_v(a: Tensor, s: Tensor, x_t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    power = a * a + s * s  # 1 where the schedule is variance-preserving
    return (a * x_t - s * v) / power, (s * x_t + a * v) / power


def _solve_velocity(a: Tensor, s: Tensor, x_t: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    x0 = (x_t - s * velocity) / (a + s)
    return x0, x0 + velocity


PREDICTIONS: dict[str, Prediction] = {
    "noise": Prediction(lambda a, s, x0, noise: noise, _solve_noise),  # Ho et al. 2020 (arXiv 2006.11239)
    "v": Prediction(lambda a, s, x0, noise: a * noise - s * x0, _solve_v),  # Salimans and Ho 2022 (arXiv 2202.00512)
    "x0": Prediction(lambda a, s, x0, noise: x0, _solve_x0),
    "velocity": Prediction(lambda a, s, x0, noise: noise - x0, _solve_velocity),  # Liu et al. 2022 (arXiv 2209.03003)
}

# field -> the field that decides whether it is used, and the values under which it is
_USED_WHEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "schedule_steps": ("schedule", tuple(BETAS)),
    "zero_terminal_snr": ("schedule", tuple(BETAS)),
    "snr_shift": ("schedule", tuple(BETAS)),
    "shift": ("schedule", ("flow",)),
    "log_mean": ("schedule", ("edm",)),
    "log_std": ("schedule", ("edm",)),
    "logit_mean": ("time_sampling", ("logit_normal",)),
    "logit_std": ("time_sampling", ("logit_normal",)),
    "min_snr_gamma": ("weighting", ("min_snr",)),
}


class ObjectiveConfig(Config):
    """Settings of the training objective. `build()` makes it."""

    schedule: Literal["linear", "scaled_linear", "cosine", "flow", "edm"] = "flow"
    schedule_steps: int = Field(default=1000, ge=1, le=10_000)  # entries of a table schedule
    shift: float = Field(default=1.0, gt=0)  # of the flow: above 1 spends more of the time at high noise
    zero_terminal_snr: bool = False  # of a table: alpha(1) = 0 exactly
    snr_shift: float = Field(default=1.0, gt=0)  # of a table: its signal-to-noise ratios are divided by this
    log_mean: float = 0.7  # of ln(sigma / alpha) in 'edm'; these two are Stable Video Diffusion's
    log_std: float = Field(default=1.6, gt=0)
    prediction: Literal["noise", "v", "x0", "velocity"] = "velocity"
    loss: str = "mse"  # one of diffusion.losses.LOSSES
    temporal_weight: float = Field(default=0.0, ge=0)  # of the same loss of frame-to-frame changes, added to it
    frame_weights: tuple[float, ...] | None = None  # relative, spread evenly over the clip: [2, 1] is [2, ..., 1]
    time_sampling: Literal["uniform", "logit_normal"] = "uniform"
    logit_mean: float = 0.0  # of logit(t); above 0 favours noise
    logit_std: float = Field(default=1.0, gt=0)
    weighting: Literal["none", "min_snr", "sigma_sqrt", "cosmap"] = "none"
    min_snr_gamma: float = Field(default=5.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.loss not in LOSSES:
            raise ValueError(f"loss = {self.loss!r}: not one of {', '.join(LOSSES)}")
        weights = self.frame_weights
        if weights is not None and not (len(weights) > 1 and min(weights) >= 0 and sum(weights) > 0):
            raise ValueError(
                f"frame_weights = {list(weights)}: give two weights or more, none below 0 and not all of them 0; "
                "null weighs all frames alike"
            )
        for name, (switch, values) in _USED_WHEN.items():
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default and getattr(self, switch) not in values:
                raise ValueError(
                    f"{name} = {value!r} has no effect with {switch} = {getattr(self, switch)!r}: it belongs to "
                    f"{' | '.join(values)}; leave {name} at {default!r} or change {switch}"
                )
        if self.prediction == "noise" and (self.schedule in ("flow", "edm") or self.zero_terminal_snr):
            cause = "zero_terminal_snr = True" if self.zero_terminal_snr else f"schedule = {self.schedule!r}"
            raise ValueError(
                f"prediction = 'noise' cannot be used with {cause}: alpha(1) = 0, where the noise says nothing about "
                f"the data; use prediction = 'v', 'x0' or 'velocity'"
            )
        if self.weighting in ("sigma_sqrt", "cosmap") and self.schedule != "flow":
            raise ValueError(
                f"weighting = {self.weighting!r} is defined for schedule = 'flow', not {self.schedule!r}; "
                f"use 'min_snr' or 'none'"
            )
        if self.schedule in BETAS:
            schedule = build_schedule(
                self.schedule,
                steps=self.schedule_steps,
                zero_terminal_snr=self.zero_terminal_snr,
                snr_shift=self.snr_shift,
            )
            final = schedule.alpha(torch.ones(1)).item()
            if final > LARGEST_FINAL_ALPHA:
                raise ValueError(
                    f"schedule_steps = {self.schedule_steps} leaves alpha(1) = {final:.3f} with schedule = "
                    f"{self.schedule!r}: at most {LARGEST_FINAL_ALPHA} is near enough to the pure noise generation "
                    f"starts from; use 1000 steps, schedule = 'cosine' or zero_terminal_snr = true"
                )
        return self

    def build(self) -> Objective:
        return Objective(self)


class Objective:
    """Corruption, targets, conversions, times, weights and losses of one (schedule, prediction).

    Training times are drawn from [low, high) of `interval` alone.
    """

    def __init__(self, config: ObjectiveConfig, interval: tuple[float, float] = (0.0, 1.0)) -> None:
        self.config, self.interval = config, interval
        self.schedule = build_schedule(
            config.schedule,
            steps=config.schedule_steps,
            shift=config.shift,
            zero_terminal_snr=config.zero_terminal_snr,
            snr_shift=config.snr_shift,
            log_mean=config.log_mean,
            log_std=config.log_std,
        )
        self._prediction = PREDICTIONS[config.prediction]
        self._loss = LOSSES[config.loss]

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t `b`, as `b 1 1 ...` on the device of `like` `b ...`, in its dtype but float32 at least.

        ValueError where t is not one time a sample.
        """
        if t.shape != like.shape[:1]:
            raise ValueError(f"t of shape {tuple(t.shape)} for samples {tuple(like.shape)}: pass one time a sample")
        shape = (-1,) + (1,) * (like.ndim - 1)
        dtype = torch.promote_types(like.dtype, torch.float32)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return alpha.to(like.device, dtype).view(shape), sigma.to(like.device, dtype).view(shape)

    def corrupt(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha(t) x0 + sigma(t) noise."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the prediction at x_t is compared with."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return self._prediction.target(alpha, sigma, x0.to(alpha.dtype), noise.to(alpha.dtype))

    def to_x0_eps(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The x0 and the noise a prediction implies: x_t = alpha x0 + sigma eps holds for them.

        Only a predicted noise is divided by alpha, so everything else is well conditioned up to pure noise.
        """
        alpha, sigma = self.alpha_sigma(t, x_t)
        return self._prediction.solve(alpha, sigma, x_t.to(alpha.dtype), prediction.to(alpha.dtype))

    def within(self, interval: tuple[float, float]) -> Objective:
        """The same for training times of a part of the path, each as probable beside the others as it was."""
        return Objective(self.config, interval)

    def share(self, interval: tuple[float, float]) -> float:
        """How many of all training times lie in [low, high) of `interval`."""
        low, high = self._quantiles(interval)
        return high - low

    def _quantiles(self, interval: tuple[float, float]) -> tuple[float, float]:
        """The uniform draws that make the times low and high. ValueError where times are entries of a table."""
        if self.schedule.grid is not None:
            raise ValueError(
                f"schedule = {self.config.schedule!r}: its times are those of a table; use 'flow' or 'edm'"
            )
        if self.config.time_sampling == "uniform":
            return interval
        logits = torch.logit(torch.tensor(interval, dtype=torch.float64))
        low, high = torch.special.ndtr((logits - self.config.logit_mean) / self.config.logit_std).tolist()
        return low, high

    def sample_time(self, uniform: Tensor) -> Tensor:
        """Times of uniform draws in [0, 1), shape kept, float64, never falling as the draw rises.

        'uniform' on a table picks one of its entries, on the flow it is the draw itself; in 'edm' that is the
        log-normal distribution of noise levels, without the levels 0 and infinity. 'logit_normal' is
        sigmoid(mean + std z), z standard normal (Esser et al. 2024, arXiv 2403.03206, section 3.1).
        """
        uniform = uniform.to(torch.float64)
        if not bool(((uniform >= 0) & (uniform < 1)).all()):
            raise ValueError(
                f"uniform draws from {uniform.min().item()} to {uniform.max().item()}: they lie in [0, 1), as those "
                f"of torch.rand do"
            )
        if self.interval == (0.0, 1.0):
            return self._times(uniform)
        low, high = self._quantiles(self.interval)
        times = self._times(low + (high - low) * uniform)
        below = torch.nextafter(torch.tensor(self.interval[1]), torch.tensor(0.0))  # in float32, as a network is told
        return times.clamp(self.interval[0], below.double().item())

    def _times(self, uniform: Tensor) -> Tensor:
        if self.config.time_sampling == "logit_normal":
            time = torch.sigmoid(self.config.logit_mean + self.config.logit_std * torch.special.ndtri(uniform))
            return time.clamp(SMALLEST_TIME, 1 - SMALLEST_TIME)
        if self.config.schedule == "edm":
            return uniform.clamp(SMALLEST_TIME, 1 - SMALLEST_TIME)
        grid = self.schedule.grid
        return uniform if grid is None else ((uniform * grid).floor() + 1) / grid

    def weight(self, t: Tensor) -> Tensor:
        """Loss weight at times t of any shape; float64 and finite.

        'min_snr': Hang et al. 2023 (arXiv 2303.09556) weigh the squared error of x0 by min(SNR, gamma). The error of
        another prediction is that of x0 divided by d x0 / d prediction, whose square is therefore a factor here.
        'cosmap': Esser et al. 2024 (arXiv 2403.03206), section 3.1. 'sigma_sqrt': sigma^-2, bounded by 1e6.
        """
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.config.weighting == "min_snr":
            snr = (alpha / sigma) ** 2  # infinite at t = 0, where the minimum is gamma
            gain, _ = self._prediction.solve(alpha, sigma, torch.zeros_like(alpha), torch.ones_like(alpha))
            return snr.clamp(max=self.config.min_snr_gamma) * gain**2
        if self.config.weighting == "sigma_sqrt":
            return sigma.clamp(min=SMALLEST_WEIGHTED_SIGMA) ** -2
        if self.config.weighting == "cosmap":
            return 2 / (math.pi * (alpha**2 + sigma**2))
        return torch.ones_like(alpha)

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Weighted loss of every sample, `b`: the mean over its elements, in float32 at least.

        Frame weights and the temporal term want videos, `b c f h w`.
        """
        if prediction.shape != target.shape or t.shape != target.shape[:1]:
            raise ValueError(
                f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)} and t {tuple(t.shape)} differ: "
                f"the first two have one shape `b ...`, t is `b`"
            )
        dtype = torch.promote_types(target.dtype, torch.float32)
        prediction, target = prediction.to(dtype), target.to(dtype)
        each = self._loss(prediction, target)
        if self.config.frame_weights is not None:  # b c f h w
            each = each * frame_weights(self.config.frame_weights, each.shape[2]).to(each)[:, None, None]
        error = each.flatten(1).mean(1)
        if self.config.temporal_weight:
            error = error + self.config.temporal_weight * temporal_error(self._loss, prediction, target)
        return error * self.weight(t).to(error)
