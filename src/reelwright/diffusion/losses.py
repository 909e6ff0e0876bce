"""How far a prediction is from its target. A new loss is one function of (prediction, target) and one line below."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # (prediction, target) of one shape -> the error of every element


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target) ** 2


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs()


def huber(prediction: Tensor, target: Tensor) -> Tensor:
    """Half the square up to 1, straight beyond (Huber 1964)."""
    return F.huber_loss(prediction, target, reduction="none")


def mixed(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of `mse` and `l1`: what is far off pulls as a square, what is nearly right still pulls."""
    return 0.5 * (mse(prediction, target) + l1(prediction, target))


LOSSES: dict[str, Loss] = {"mse": mse, "l1": l1, "huber": huber, "mixed": mixed}


def temporal_error(loss: Loss, prediction: Tensor, target: Tensor) -> Tensor:
    """`loss` of the change from each frame to the next, `b c f h w` -> `b`: flicker, which `loss` alone hardly sees.

    Zero for a single frame.
    """
    if prediction.shape[2] == 1:
        return prediction.new_zeros(prediction.shape[0])
    return loss(prediction.diff(dim=2), target.diff(dim=2)).flatten(1).mean(1)


def frame_weights(points: tuple[float, ...], frames: int) -> Tensor:
    """Weights of `frames` frames, `f`, of mean 1: `points` lie evenly over the clip, straight lines between them."""
    values = torch.tensor(points, dtype=torch.float64)
    places = torch.linspace(0, len(points) - 1, frames, dtype=torch.float64)
    left = places.floor().long().clamp(max=len(points) - 1)
    right = (left + 1).clamp(max=len(points) - 1)
    weights = values[left] + (places - left) * (values[right] - values[left])
    return weights / weights.mean()
