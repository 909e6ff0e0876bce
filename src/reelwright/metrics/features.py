"""Feature networks a user names, for the Frechet distance between sets of videos.

A distance means something only together with its network, weights, picture size and frames: `protocol` says all four.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from reelwright.durable import sha256_of
from reelwright.metrics import i3d
from reelwright.metrics.clip import Preprocessing, read_preprocessor_config
from reelwright.metrics.torchscript import load_torchscript
from reelwright.types import UsageError, UserError

VIDEOS_AT_ONCE = 4
CLIP_FRAMES = 16
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LFS_HEADER = b"version https://git-lfs"
ZIP_HEADER = b"PK"
LONGEST_REASON = 300  # characters of a library's own message

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


def build_features(spec: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network of KIND:SOURCE, where KIND is one of `KINDS`.

    i3d         Inception-I3D, its logits (Unterthiner et al. 2018): a safetensors file of the weights, or a TorchScript
                archive that takes float `b 3 f h w` in [-1, 1]
    i3d-pooled  the 1024 features before the logits; safetensors only
    clip        CLIP image embeddings, mean over the frames, so blind to their order; a directory or a hub id
    videomae    VideoMAE (Tong et al. 2022), mean over its last hidden states; a directory or a hub id

    UsageError for a specification that names nothing; UserError where the network cannot be loaded.
    """
    kind, colon, source = spec.partition(":")
    if kind not in KINDS or not colon or not source:
        known = ", ".join(f"{name}:{what}" for name, (_, what) in KINDS.items())
        raise UsageError(f"features = {spec}: not a feature network; give one of {known}")
    return KINDS[kind][0](source, torch.device(device), spec)


def _i3d_logits(source: str, device: torch.device, spec: str) -> FeatureNetwork:
    path = _weights_file(source, spec)
    with path.open("rb") as file:
        is_archive = file.read(len(ZIP_HEADER)) == ZIP_HEADER
    if is_archive:
        scripted = load_torchscript(path, device, spec)
        black = torch.full((1, 3, i3d.FRAMES, i3d.SIDE, i3d.SIDE), -1.0, device=device)
        with torch.no_grad():
            width = scripted(black).shape[1]
        return _i3d_network("TorchScript network", path, device, width, scripted)
    network = _read_i3d(path, spec).to(device)
    return _i3d_network("Inception-I3D logits", path, device, network.classes, network)


def _i3d_pooled(source: str, device: torch.device, spec: str) -> FeatureNetwork:
    path = _weights_file(source, spec)
    return _i3d_network("Inception-I3D pooled", path, device, i3d.WIDTH, _read_i3d(path, spec).to(device).pooled)


def _i3d_network(name: str, path: Path, device: torch.device, width: int, forward: Forward) -> FeatureNetwork:
    return FeatureNetwork(
        f"{name} ({path.name})", (i3d.SIDE, i3d.SIDE), i3d.FRAMES, sha256_of(path), width,
        "whole pictures resized (bilinear, not antialiased) to", device, _stretch, forward,
    )  # fmt: skip


def _stretch(frames: np.ndarray) -> Tensor:
    """uint8 `f h w c` -> float `f c h w` in [-1, 1] of I3D's size, the sides brought to it each by itself."""
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    return F.interpolate(pictures, size=(i3d.SIDE, i3d.SIDE), mode="bilinear", align_corners=False) / 127.5 - 1


def _weights_file(source: str, spec: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise UsageError(f"features = {spec}: no file {path}; give the network's weights, TorchScript or safetensors")
    with path.open("rb") as file:
        if file.read(len(LFS_HEADER)) == LFS_HEADER:
            raise UserError(
                f"features = {spec}: {path} is a git-LFS pointer, not the weights; download the file itself"
            )
    return path


def _read_i3d(path: Path, spec: str) -> i3d.I3D:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return i3d.I3D.from_tensors(load_file(path))
    except SafetensorError as error:
        raise UserError(
            f"features = {spec}: {path} is no safetensors file ({error}); a pickle (*.pt, *.pth) can run code when "
            "loaded and is not read: load it where you trust it and save its state dict as safetensors"
        ) from None
    except ValueError as error:
        raise UserError(f"features = {spec}: {path}: {error}") from None


def _clip(source: str, device: torch.device, spec: str) -> FeatureNetwork:
    classes = {"clip": "CLIPModel", "clip_vision_model": "CLIPVisionModelWithProjection"}
    network, preprocessing = _pretrained(source, spec, classes, {})

    def forward(videos: Tensor) -> Tensor:
        pictures = videos.transpose(1, 2)  # b f c h w
        seen = network.vision_model(pixel_values=pictures.flatten(0, 1)).pooler_output  # b*f e
        return network.visual_projection(seen).unflatten(0, pictures.shape[:2]).mean(dim=1)

    dim = network.visual_projection.out_features
    return _transformers_network("CLIP", source, device, network, preprocessing, CLIP_FRAMES, dim, forward)


def _videomae(source: str, device: torch.device, spec: str) -> FeatureNetwork:
    defaults = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "resample": Image.Resampling.BILINEAR}
    network, preprocessing = _pretrained(source, spec, {"videomae": "VideoMAEModel"}, defaults)

    def forward(videos: Tensor) -> Tensor:
        return network(pixel_values=videos.transpose(1, 2)).last_hidden_state.mean(dim=1)

    frames, dim = network.config.num_frames, network.config.hidden_size
    return _transformers_network("VideoMAE", source, device, network, preprocessing, frames, dim, forward)


def _transformers_network(
    name: str, source: str, device: torch.device, network: Any, preprocessing: Preprocessing, frames: int, dim: int,
    forward: Forward,
) -> FeatureNetwork:  # fmt: skip
    from safetensors.torch import save

    sha256 = hashlib.sha256(save({key: value.contiguous() for key, value in network.state_dict().items()})).hexdigest()
    network.requires_grad_(False).eval().to(device)
    kind = preprocessing.resample.name.lower()
    return FeatureNetwork(
        f"{name} ({source})", preprocessing.crop, frames, sha256, dim,
        f"resized ({kind}) and cropped at the centre to", device, preprocessing, forward,
    )  # fmt: skip


def _pretrained(
    source: str, spec: str, classes: Mapping[str, str], defaults: Mapping[str, Any]
) -> tuple[Any, Preprocessing]:
    """A network of transformers whose kind is among `classes`, float32, safetensors only, and its preprocessing."""
    import transformers

    folder = Path(source)
    if not folder.is_dir() and (folder.is_absolute() or folder.exists() or source.startswith((".", "~"))):
        raise UsageError(f"features = {spec}: {folder} is no folder; give a model directory or a hub id (owner/name)")
    try:
        settings = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if settings.model_type not in classes:
            raise ValueError(f"it holds a {settings.model_type}, which is not {' or '.join(classes)}")
        network, loading = getattr(transformers, classes[settings.model_type]).from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(f"{len(missing)} of its tensors are missing, as {missing[0]}")
        values = {**defaults, **read_preprocessor_config(source)}
        image_size = getattr(settings, "vision_config", settings).image_size
        return network, Preprocessing.from_config(values, image_size)
    except Exception as error:  # the libraries raise a dozen unrelated types: every one means 'cannot be loaded'
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise UserError(
            f"features = {spec}: cannot be loaded ({type(error).__name__}: {reason}); give a local directory with "
            "config.json and safetensors weights, or a hub id while the network is up"
        ) from error


KINDS: dict[str, tuple[Callable[[str, torch.device, str], FeatureNetwork], str]] = {
    "i3d": (_i3d_logits, "FILE"),
    "i3d-pooled": (_i3d_pooled, "FILE"),
    "clip": (_clip, "DIRECTORY_OR_HUB_ID"),
    "videomae": (_videomae, "DIRECTORY_OR_HUB_ID"),
}
