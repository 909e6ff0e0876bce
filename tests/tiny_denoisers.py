"""What the tests of every native denoiser feed it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reelwright.types import Text


def denoiser_inputs(
    size: tuple[int, int, int],
    channels: int,
    text_width: int,
    batch: int = 2,
    length: int = 5,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Text]:
    """x_t, t and text of a latent size; the last text ends in two tokens of padding."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, channels, *size, generator=generator, dtype=dtype)
    t = torch.rand(batch, generator=generator, dtype=dtype)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[-1, length - 2 :] = False
    return x, t, Text(torch.randn(batch, length, text_width, generator=generator, dtype=dtype), mask)


def wake(model: nn.Module, std: float) -> None:
    """Give zero-initialised parts random weights, so that everything has an influence."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
