"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from reelwright.training.config import TrainConfig
from reelwright.types import UsageError

STATE = ("exp_avg", "exp_avg_sq", "step")  # what AdamW keeps of a parameter


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); weight decay on matrices only, not on norms, biases and vectors.

    Fused, or one of bitsandbytes': moments in 8 bits (Dettmers et al. 2022, arXiv 2110.02861), paged out to the CPU.
    UsageError where that is not installed.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    try:
        from bitsandbytes import optim  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(
            f"train.optimizer = {config.optimizer}: needs bitsandbytes, which is not installed: pip install "
            "'reelwright[bnb]'; or use adamw"
        ) from None
    if config.optimizer.startswith("paged") and not trainable[0].is_cuda:
        raise UsageError(f"train.optimizer = {config.optimizer}: pages between GPU and CPU; without a GPU use adamw")
    made = {"adamw8bit": optim.AdamW8bit, "paged_adamw": optim.PagedAdamW, "paged_adamw8bit": optim.PagedAdamW8bit}
    return made[config.optimizer](groups, lr=config.learning_rate, betas=config.betas)


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

    A parameter that has had no gradient yet has no state; it is given what the optimizer would start it with, so that
    a missing tensor always means damage.
    """
    tensors, seen = {}, set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for key, value in _state_of(optimizer, parameter).items():
                tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
                place = tensor.data_ptr()
                # bitsandbytes' tables are one for all parameters, and a file of tensors holds no shared ones
                tensors[f"{key}.{name}"] = tensor.clone() if place in seen else tensor
                seen.add(place)
    return tensors


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Inverse of `optimizer_tensors`. ValueError names what is missing, left over or of another shape."""
    left = set(tensors)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = dict(_state_of(optimizer, parameter))
        for key, before in state.items():
            full = f"{key}.{name}"
            if full not in tensors:
                raise ValueError(f"the optimizer's state has no '{full}'")
            left.discard(full)
            value = tensors[full]
            shape = before.shape if isinstance(before, torch.Tensor) else torch.Size()
            if value.shape != shape:
                raise ValueError(f"the optimizer's '{full}' is {tuple(value.shape)}, expected {tuple(shape)}")
            state[key] = before.copy_(value) if isinstance(before, torch.Tensor) else int(value)  # in its own memory
        optimizer.state[parameter] = state
    if left:
        raise ValueError(f"the optimizer's state has tensors of no parameter: {', '.join(sorted(left)[:5])}")


def _state_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, Any]:
    """What the optimizer keeps of a parameter; before its first step, what it would start with."""
    state = optimizer.state.get(parameter)
    if state:
        return state
    if isinstance(optimizer, torch.optim.AdamW):  # the step too: fused AdamW wants it beside the weights
        zeros = {key: torch.zeros_like(parameter) for key in STATE if key != "step"}
        return {**zeros, "step": torch.zeros((), device=parameter.device)}
    made: Any = optimizer  # of bitsandbytes
    for group_number, group in enumerate(made.param_groups):
        for number, candidate in enumerate(group["params"]):
            if candidate is parameter:
                made.init_state(group, parameter, group_number, number)
    return made.state[parameter]
