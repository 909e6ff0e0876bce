"""Exponential moving average of the weights: what a run generates with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class EMA:
    """Average of a module's trainable parameters, in float32, on the parameters' device.

    The decay is warmed up, min(decay, (1 + step) / (10 + step)), so that the average of a short run is not its
    random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._sources = [p for p in model.parameters() if p.requires_grad]
        self.values = [p.detach().clone().float() for p in self._sources]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number `step` (1-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self._sources], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the module holds the averages; afterwards the very same weights as before."""
        originals = [p.data for p in self._sources]
        try:
            for parameter, value in zip(self._sources, self.values, strict=True):
                parameter.data = value.to(parameter.dtype)
            yield
        finally:
            for parameter, original in zip(self._sources, originals, strict=True):
                parameter.data = original

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.names, self.values, strict=True))

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """ValueError where names or shapes differ from the module's."""
        if set(tensors) != set(self.names):
            missing = sorted(set(self.names) ^ set(tensors))
            raise ValueError(f"the moving average and the model differ in: {', '.join(missing[:5])}")
        for name, value in zip(self.names, self.values, strict=True):
            if tensors[name].shape != value.shape:
                raise ValueError(
                    f"the moving average of '{name}' is {tuple(tensors[name].shape)}, the weight {tuple(value.shape)}"
                )
            value.copy_(tensors[name])
