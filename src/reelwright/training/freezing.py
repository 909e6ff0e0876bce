"""Which weights train where a recipe names some of them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from reelwright.types import UsageError


def freeze(module: nn.Module, frozen: Sequence[str], only: Sequence[str]) -> tuple[int, int]:
    """Let `frozen` keep their values, or all but `only`; the numbers of weights that train and of all.

    A pattern is a parameter's name or the beginning of it up to a dot, `*` for any part: 'denoiser.blocks.0',
    'denoiser.blocks.*.mlp', 'text'. UsageError for one that fits nothing, and where nothing is left to train.
    """
    parameters = dict(module.named_parameters())
    for field, patterns in (("train.freeze", frozen), ("train.train_only", only)):
        for pattern in patterns:
            if not any(_fits(name, pattern) for name in parameters):
                parts = sorted({".".join(name.split(".")[:2]) for name in parameters})
                raise UsageError(f"{field}: '{pattern}' fits no weight of the model; its parts are {', '.join(parts)}")
    for name, parameter in parameters.items():
        stays = any(_fits(name, pattern) for pattern in frozen) or (
            bool(only) and not any(_fits(name, pattern) for pattern in only)
        )
        if stays:
            parameter.requires_grad_(False)
    trained = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    if not trained:
        raise UsageError("train.freeze: no weight is left to train; name fewer of them")
    return trained, sum(parameter.numel() for parameter in parameters.values())


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
