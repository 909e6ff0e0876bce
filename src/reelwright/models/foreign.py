"""Weights made elsewhere: from a local directory or a hub id, safetensors only, with errors a user can act on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from reelwright.types import UserError

Loaded = TypeVar("Loaded")
Precision = Literal["float32", "bfloat16", "float16"]

LFS_HEADER = b"version https://git-lfs"
HUB_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load_foreign(load: Callable[[], Loaded], model: str, field: str, subfolder: str = "") -> Loaded:
    """Call `load`, a `from_pretrained` of `model`. UserError says what is missing or wrong and the way out."""
    folder = Path(model) / subfolder
    if folder.is_dir():
        _check_folder(folder, field)
    elif Path(model).is_dir() or not HUB_ID.fullmatch(model):
        raise UserError(f"{field} = {model}: no folder {folder}; give a model directory or a hub id (owner/name)")
    try:
        return load()
    except Exception as error:  # the libraries raise a dozen unrelated types: every one means 'cannot be loaded'
        reason = " ".join(str(error).split())
        if len(reason) > 400:
            reason = reason[:397] + "..."
        where = "" if Path(model).exists() else "no folder here, and as a hub id "
        raise UserError(
            f"{field} = {model}: {where}cannot be loaded ({type(error).__name__}: {reason}); "
            "give a local directory with config.json and safetensors weights, or a hub id while the network is up"
        ) from error


def load_part(part: Any, model: str, field: str, subfolder: str, **options: Any) -> Any:
    """`part.from_pretrained` of a subfolder of `model`, running none of its code. As `load_foreign`."""
    return load_foreign(
        lambda: part.from_pretrained(model, subfolder=subfolder, trust_remote_code=False, **options),
        model,
        field,
        subfolder,
    )


def _check_folder(folder: Path, field: str) -> None:
    """UserError for the weights that no library names clearly: git-LFS pointers, and pickles only."""
    weights = sorted(folder.glob("*.safetensors"))
    for path in [*weights, *(p for pattern in PICKLES for p in sorted(folder.glob(pattern)))]:
        with path.open("rb") as file:
            if file.read(len(LFS_HEADER)) == LFS_HEADER:
                raise UserError(
                    f"{field}: {path} is a git-LFS pointer, not the weights; run 'git lfs pull' in its repository or "
                    "download the file itself"
                )
    pickles = [path for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles and not weights:
        raise UserError(
            f"{field}: {pickles[0]} is a pickle, which can run code when loaded, and {folder} has no safetensors; "
            f"get its safetensors, or load it where you trust it and save it again as {pickles[0].stem}.safetensors"
        )


class Frozen(nn.Module):
    """What was trained elsewhere and is only used here: it stays in evaluation mode. Call `freeze` once it is whole."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def freeze(module: nn.Module) -> None:
    """No gradients, and evaluation mode."""
    module.requires_grad_(False).eval()


def content_hash(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over plain settings and named tensors (names, dtypes, shapes, bytes)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
