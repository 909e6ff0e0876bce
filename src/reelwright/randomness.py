"""Every random draw of the project, keyed by what it is for and never by where it runs.

A draw belongs to (seed, epoch, global sample index, purpose) in training and to (seed, video index, purpose) in
generation. Rank, worker, world size and micro-batch never enter, so the same draws come out on a laptop and on a
cluster, and again after a resume. Draws are made on the CPU in float32 and moved afterwards.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from a key of integers and strings; equal keys give equal seeds on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on the key alone."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*key))


def keyed_normal(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Standard normal float32 draws of `shape` on the CPU."""
    import torch

    return torch.randn(shape, generator=keyed_generator(*key), dtype=torch.float32)
