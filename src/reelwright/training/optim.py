"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from reelwright.training.config import TrainConfig

STATE = ("exp_avg", "exp_avg_sq", "step")  # what AdamW keeps of a parameter


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov & Hutter 2019); weight decay on matrices only, not on norms, biases and vectors."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Learning rate of the optimizer step number `step` (0-based): linear warm-up, then the schedule.

    A pure function of the step, so that nothing of it needs saving.
    """
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return peak
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    fall = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (config.final_lr_fraction + (1 - config.final_lr_fraction) * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors: `<state>.<parameter name>`.

    A parameter that has had no gradient yet has no state; it is given the zeros AdamW would start it with, so that a
    missing tensor always means damage.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = optimizer.state.get(parameter) or {
            key: torch.zeros(()) if key == "step" else torch.zeros_like(parameter) for key in STATE
        }
        for key in STATE:
            tensors[f"{key}.{name}"] = state[key]
    return tensors


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Inverse of `optimizer_tensors`. ValueError names what is missing, left over or of another shape."""
    left = set(tensors)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = {}
        for key in STATE:
            full = f"{key}.{name}"
            if full not in tensors:
                raise ValueError(f"the optimizer's state has no '{full}'")
            left.discard(full)
            value, shape = tensors[full], torch.Size() if key == "step" else parameter.shape
            if value.shape != shape:
                raise ValueError(f"the optimizer's '{full}' is {tuple(value.shape)}, expected {tuple(shape)}")
            state[key] = value.to(parameter.device, copy=True)  # the step too: fused AdamW wants it beside the weights
        optimizer.state[parameter] = state
    if left:
        raise ValueError(f"the optimizer's state has tensors of no parameter: {', '.join(sorted(left)[:5])}")
