"""A network of diffusers from scratch: its arguments checked, and one forward tried before clips are prepared for it.

Numbers that each fit may not fit together (the channels of rotary positions and a head's, say), and diffusers finds out
in the middle of a forward.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from reelwright.config import nearest
from reelwright.types import Size, Text, UsageError

MAX_TRIED_PARAMETERS = 100_000_000  # larger ones meet their first forward in training, and so do
MAX_TRIED_LATENTS = 4_096  # longer videos: of both together it is two seconds on two cores
TRIED_TOKENS = 3  # of text
ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)  # what torch and diffusers raise over numbers that do not fit


def build_network(cls: Any, arguments: dict[str, Any]) -> Any:
    """cls(**arguments), with random weights. UsageError where the class knows no such argument or refuses a value."""
    known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    for name, value in arguments.items():
        if name not in known:
            meant = nearest(name, known)
            hint = f"did you mean {' or '.join(meant)}?" if meant else f"known: {', '.join(known)}"
            raise UsageError(f"model.config.{name}: {cls.__name__} has no such argument; {hint}")
        if isinstance(value, int) and value < 0:
            raise UsageError(f"model.config.{name} = {value}: must not be negative")
    try:
        return cls(**arguments)
    except ERRORS as error:
        raise UsageError(f"model.config = {arguments}: {cls.__name__} refuses it ({_said(error)})") from None


def try_forward(config: Any, channels: int, latent: Size) -> None:
    """One forward of the network that a `FamilyConfig` describes, with random weights and one layer of each kind.

    `latent` is the size of a video's latents. UsageError where it fails. Weights of `model` are not tried, and neither
    is what is larger than the two limits, or than memory. Leaves torch's generator as it was.
    """
    if config.model is not None or latent.frames * latent.height * latent.width > MAX_TRIED_LATENTS:
        return
    arguments = inspect.signature(config.network_class.__init__).parameters
    numbers = {name: config.config.get(name, argument.default) for name, argument in arguments.items()}
    layers = {name: n for name, n in numbers.items() if name.startswith("num_") and name.endswith("layers")}
    fewer = {name: min(n, 1) for name, n in layers.items() if isinstance(n, int)}
    tried = config.model_copy(update={"config": {**config.config, **fewer}, "dtype": "float32"})
    with torch.device("meta"):
        if sum(p.numel() for p in tried.build(channels, 1).parameters()) > MAX_TRIED_PARAMETERS:
            return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        denoiser = tried.build(channels, 1).eval()
        x, text = torch.randn(1, channels, *latent.tuple), torch.randn(1, TRIED_TOKENS, denoiser.text_width)
        try:
            made = denoiser(x, torch.tensor([0.5]), Text(text, torch.ones(1, TRIED_TOKENS, dtype=torch.bool)))
        except ERRORS as error:
            if "allocate memory" in str(error):  # torch's own is a RuntimeError
                return
            raise UsageError(
                f"model.config: its numbers do not fit together: {config.diffusers_class} fails on latents of {latent} "
                f"(frames x height x width) with {_said(error)}"
            ) from None
    if made.shape != x.shape:
        raise UsageError(
            f"model.config: {config.diffusers_class} makes {tuple(made.shape)} of latents {tuple(x.shape)}; what it "
            "makes must be of the same shape"
        )


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())
