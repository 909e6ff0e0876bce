"""Where and in which precision a run computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from reelwright.training.config import Precision
from reelwright.types import UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """'auto' is CUDA where there is one. UsageError where what is asked for is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"device = '{name}': not a device; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device = '{name}': no CUDA device is visible to torch; use device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device = '{name}': torch sees {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether matrix products run faster in bfloat16: CPUs with AVX512-BF16 or AMX, GPUs from Ampere on.

    Read from the processor, not timed, so that a run resumed on the same machine decides the same.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return torch.backends.mkldnn.is_available() and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def resolve_precision(name: Precision, device: torch.device) -> Precision:
    """'auto': bf16 where it is fast, else fp16 on a GPU, else fp32. UsageError for fp16 on a CPU (400 times slower)."""
    if name == "auto":
        if has_fast_bf16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise UsageError("precision = 'fp16': half precision is hundreds of times slower on a CPU; use auto or bf16")
    return name


def autocast(device: torch.device, precision: Precision, cache: bool = True) -> torch.autocast:
    """The context a forward pass runs in: weights stay float32, matrix products run in `precision`.

    Without `cache` no copy of the weights in `precision` is kept for a second use within the context.
    """
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32", cache_enabled=cache)


def make_accelerator(device: torch.device, precision: Precision, in_turns: bool = False) -> Accelerator:
    """Accelerate's view of the processes `accelerate launch` or `torchrun` started; one process otherwise.

    `in_turns`: a step trains a part of the weights, and the others have no gradient in any process.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    if AcceleratorState._shared_state:
        AcceleratorState._reset_state()  # a second run in one process may have another precision
    parallel = DistributedDataParallelKwargs(find_unused_parameters=in_turns)
    return Accelerator(mixed_precision=mixed, cpu=device.type == "cpu", kwargs_handlers=[parallel])
