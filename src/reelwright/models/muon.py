"""Muon, an optimizer of matrices: every direction that the gradient asks for is gone along equally far.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". A step is the momentum M made orthogonal,
(M M^T)^(-1/2) M. Here the inverse root is taken of the small Gram matrix itself and kept for a few steps, in which the
momentum hardly turns: with matrices of 192 x 12,288 a step then costs a third of what five Newton-Schulz steps of all
of them add, and the codec's error falls almost alike (docs/findings.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

RMS = 0.2  # of a step's numbers, at learning rate 1: that of AdamW (Liu et al. 2025, arXiv 2502.16982, section 2.2)
DAMPING = 1e-4  # of the largest eigenvalue, added to all
ALWAYS_UNTIL = 20  # steps in the beginning, when the momentum turns fast


class Muon(torch.optim.Optimizer):
    """For matrices alone; vectors, and matrices whose rows are apart from one another, want AdamW."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        learning_rate: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        every: int = 4,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`every`: steps between two inverse roots; `dtype` of the product with them. ValueError: not a matrix."""
        defaults = {
            "lr": learning_rate,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "every": every,
            "dtype": dtype,
        }
        super().__init__(matrices, defaults)
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.ndim != 2:
                    raise ValueError(f"Muon takes matrices, got a tensor of shape {tuple(matrix.shape)}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None, "no closure is needed"
        for group in self.param_groups:
            for number, matrix in enumerate(group["params"]):
                if matrix.grad is not None:
                    self._move(matrix, matrix.grad, group, number)

    def _move(self, matrix: Tensor, gradient: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[matrix]
        if not state:
            state.update(step=0, momentum=torch.zeros_like(matrix))
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])  # Nesterov's
        tall = matrix.shape[0] > matrix.shape[1]
        wide = ahead.T if tall else ahead  # m n, m <= n
        if state["step"] < ALWAYS_UNTIL or (state["step"] + number) % group["every"] == 0:  # not all in one step
            state["root"] = inverse_root(wide @ wide.T).to(group["dtype"])
        direction = (state["root"] @ wide.to(group["dtype"])).to(matrix.dtype)  # m n
        direction *= RMS * math.sqrt(matrix.numel()) / direction.norm().clamp_min(1e-12)
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(direction.T if tall else direction, alpha=-group["lr"])
        state["step"] += 1


def inverse_root(gram: Tensor) -> Tensor:
    """(G + damping)^(-1/2) of a symmetric `m m` without negative eigenvalues; of zeros it is finite too."""
    values, vectors = torch.linalg.eigh(gram)  # ascending
    damped = values.clamp_min(0) + (DAMPING * values[-1]).clamp_min(1e-20)
    return (vectors * damped.rsqrt()) @ vectors.T
