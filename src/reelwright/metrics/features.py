"""Feature networks a user names, for the Frechet distance between sets of videos.

A distance means something only together with its network, weights, picture size and frames: `protocol` says all four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reelwright.durable import sha256_of
from reelwright.metrics import i3d
from reelwright.metrics.clip import Preprocessing
from reelwright.metrics.torchscript import load_torchscript
from reelwright.types import UsageError, UserError

VIDEOS_AT_ONCE = 4
CLIP_FRAMES = 16
LFS_HEADER = b"version https://git-lfs"
ZIP_HEADER = b"PK"

Prepare = Callable[[np.ndarray], Tensor]  # uint8 f h w c -> float f c h w
Forward = Callable[[Tensor], Tensor]  # b c f h w -> b d


@dataclass(frozen=True)
class FeatureNetwork:
    """Videos -> one feature vector each. Two distances compare only where `protocol` is the same."""

    name: str
    size: tuple[int, int]  # height, width of the pictures it takes
    frames: int
    sha256: str  # of the weights
    dim: int
    resizing: str  # how pictures come to that size, in words
    device: torch.device
    prepare: Prepare
    forward: Forward

    @property
    def protocol(self) -> str:
        return (
            f"{self.name}, {self.dim} features, sha256 of the weights {self.sha256[:12]}; {self.frames} frames, evenly "
            f"spaced from first to last (shorter videos repeat some); {self.resizing} {self.size[0]} x {self.size[1]}"
        )

    @torch.no_grad()
    def features(self, videos: Sequence[np.ndarray], on_step: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Videos uint8 `f h w c`, of any lengths and sizes -> float64 `n d`. ValueError for another kind of array."""
        rows = [np.empty((0, self.dim))]
        for start in range(0, len(videos), VIDEOS_AT_ONCE):
            batch = torch.stack([self._frames_of(video) for video in videos[start : start + VIDEOS_AT_ONCE]])
            # TensorFloat-32 would give a GPU other features than a CPU
            with torch.backends.cudnn.flags(allow_tf32=False), torch.autocast(self.device.type, enabled=False):
                values = self.forward(batch.to(self.device))  # b d
            rows.append(values.double().cpu().numpy())
            if on_step:
                on_step(min(start + VIDEOS_AT_ONCE, len(videos)), len(videos))
        return np.concatenate(rows)

    def _frames_of(self, video: np.ndarray) -> Tensor:
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or len(video) < 1:
            raise ValueError(
                f"a video of {video.dtype} {video.shape}: it must be uint8 'f h w 3' of at least one frame"
            )
        return self.prepare(video[spaced_frames(len(video), self.frames)]).transpose(0, 1)  # c f h w


def spaced_frames(present: int, wanted: int) -> np.ndarray:
    """Which of `present` frames stand for `wanted` ones: evenly spaced from first to last, the nearest each time."""
    if wanted == 1:
        return np.array([(present - 1) // 2])
    return np.floor(np.arange(wanted) * (present - 1) / (wanted - 1) + 0.5).astype(np.int64)


def i3d_logits(source: str, device: torch.device) -> FeatureNetwork:
    """The logits of Inception-I3D (Unterthiner et al. 2018), from a safetensors file of the weights, or from a
    TorchScript archive that takes float `b 3 f h w` in [-1, 1].

    UsageError where there is no file, UserError where it is neither.
    """
    path = _weights_file(source)
    with path.open("rb") as file:
        is_archive = file.read(len(ZIP_HEADER)) == ZIP_HEADER
    if is_archive:
        scripted = load_torchscript(path, device, f"i3d:{source}")
        black = torch.full((1, 3, i3d.FRAMES, i3d.SIDE, i3d.SIDE), -1.0, device=device)
        with torch.no_grad():
            width = scripted(black).shape[1]
        return _i3d_network("TorchScript network", path, device, width, scripted)
    network = _read_i3d(path).to(device)
    return _i3d_network("Inception-I3D logits", path, device, network.classes, network)


def i3d_pooled(source: str, device: torch.device) -> FeatureNetwork:
    """The 1024 features before I3D's logits, of a safetensors file."""
    path = _weights_file(source)
    return _i3d_network("Inception-I3D pooled", path, device, i3d.WIDTH, _read_i3d(path).to(device).pooled)


def _i3d_network(name: str, path: Path, device: torch.device, width: int, forward: Forward) -> FeatureNetwork:
    return FeatureNetwork(
        f"{name} ({path.name})", (i3d.SIDE, i3d.SIDE), i3d.FRAMES, sha256_of(path), width,
        "whole pictures resized (bilinear, not antialiased) to", device, _stretch, forward,
    )  # fmt: skip


def _stretch(frames: np.ndarray) -> Tensor:
    """uint8 `f h w c` -> float `f c h w` in [-1, 1] of I3D's size, the sides brought to it each by itself."""
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    return F.interpolate(pictures, size=(i3d.SIDE, i3d.SIDE), mode="bilinear", align_corners=False) / 127.5 - 1


def _weights_file(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise UsageError(f"features = i3d:{path}: no such file; give the network's weights, TorchScript or safetensors")
    with path.open("rb") as file:
        if file.read(len(LFS_HEADER)) == LFS_HEADER:
            raise UserError(f"features = i3d:{path}: a git-LFS pointer, not the weights; download the file itself")
    return path


def _read_i3d(path: Path) -> i3d.I3D:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return i3d.I3D.from_tensors(load_file(path))
    except SafetensorError as error:
        raise UserError(
            f"features = i3d:{path}: no safetensors file ({error}); a pickle (*.pt, *.pth) can run code when loaded "
            "and is not read: load it where you trust it and save its state dict as safetensors"
        ) from None
    except ValueError as error:
        raise UserError(f"features = i3d:{path}: {error}") from None


def clip_features(
    network: Any, preprocessing: Preprocessing, source: str, sha256: str, device: torch.device
) -> FeatureNetwork:
    """Image embeddings of a `transformers.CLIPModel` or its vision tower, mean over the frames, so blind to order."""

    def forward(videos: Tensor) -> Tensor:
        pictures = videos.transpose(1, 2)  # b f c h w
        seen = network.vision_model(pixel_values=pictures.flatten(0, 1)).pooler_output  # b*f e
        return network.visual_projection(seen).unflatten(0, pictures.shape[:2]).mean(dim=1)

    dim = network.visual_projection.out_features
    return _cropped_network(f"CLIP ({source})", preprocessing, CLIP_FRAMES, sha256, dim, device, forward)


def videomae_features(
    network: Any, preprocessing: Preprocessing, source: str, sha256: str, device: torch.device
) -> FeatureNetwork:
    """The last hidden states of a `transformers.VideoMAEModel`, mean over its tokens."""

    def forward(videos: Tensor) -> Tensor:
        return network(pixel_values=videos.transpose(1, 2)).last_hidden_state.mean(dim=1)

    frames, dim = network.config.num_frames, network.config.hidden_size
    return _cropped_network(f"VideoMAE ({source})", preprocessing, frames, sha256, dim, device, forward)


def _cropped_network(
    name: str, preprocessing: Preprocessing, frames: int, sha256: str, dim: int, device: torch.device, forward: Forward
) -> FeatureNetwork:
    resizing = f"resized ({preprocessing.resample.name.lower()}) and cropped at the centre to"
    return FeatureNetwork(
        name, preprocessing.crop, frames, sha256, dim, resizing, device, preprocessing, forward
    )  # fmt: skip
