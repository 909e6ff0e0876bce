"""Inception-I3D, the network of the published Frechet video distances (Carreira & Zisserman 2017).

Inception v1 (Szegedy et al. 2015) with every filter inflated to time, batch normalisation after each convolution, and
TensorFlow's 'SAME' padding, since the published weights were trained under it. Parameters bear the names that the
common PyTorch conversions of those weights use, so that these load once they are safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAMES, SIDE = 16, 224  # what Unterthiner et al. 2018 feed it
CLASSES = 400  # of Kinetics-400
WIDTH = 1024  # of the pooled features
NORM_EPSILON = 1e-3

Extent = tuple[int, int, int]  # frames, height, width


@dataclass(frozen=True)
class _Convolution:
    outputs: int
    kernel: Extent
    stride: Extent = (1, 1, 1)


@dataclass(frozen=True)
class _Pool:
    kernel: Extent
    stride: Extent


@dataclass(frozen=True)
class _Mixed:
    """Outputs of an Inception block: 1x1 branch; narrow and wide of the two 3x3 branches; after the pooling branch."""

    one: int
    three: tuple[int, int]
    small: tuple[int, int]
    pooled: int


STAGES: dict[str, _Convolution | _Pool | _Mixed] = {
    "Conv3d_1a_7x7": _Convolution(64, (7, 7, 7), (2, 2, 2)),
    "MaxPool3d_2a_3x3": _Pool((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": _Convolution(64, (1, 1, 1)),
    "Conv3d_2c_3x3": _Convolution(192, (3, 3, 3)),
    "MaxPool3d_3a_3x3": _Pool((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": _Mixed(64, (96, 128), (16, 32), 32),
    "Mixed_3c": _Mixed(128, (128, 192), (32, 96), 64),
    "MaxPool3d_4a_3x3": _Pool((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": _Mixed(192, (96, 208), (16, 48), 64),
    "Mixed_4c": _Mixed(160, (112, 224), (24, 64), 64),
    "Mixed_4d": _Mixed(128, (128, 256), (24, 64), 64),
    "Mixed_4e": _Mixed(112, (144, 288), (32, 64), 64),
    "Mixed_4f": _Mixed(256, (160, 320), (32, 128), 128),
    "MaxPool3d_5a_2x2": _Pool((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": _Mixed(256, (160, 320), (32, 128), 128),
    "Mixed_5c": _Mixed(384, (192, 384), (48, 128), 128),
}


class I3D(nn.Module):
    """Video float `b 3 f h w` in [-1, 1] -> logits `b classes`. At least 9 frames of 193 x 193 pixels."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.classes = classes
        inputs = 3
        for name, stage in STAGES.items():
            if isinstance(stage, _Convolution):
                self.add_module(name, ConvolutionUnit(inputs, stage.outputs, stage.kernel, stage.stride))
                inputs = stage.outputs
            elif isinstance(stage, _Pool):
                self.add_module(name, MaxPool(stage.kernel, stage.stride))
            else:
                self.add_module(name, MixedBlock(inputs, stage))
                inputs = stage.one + stage.three[1] + stage.small[1] + stage.pooled
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(inputs, classes, 1)})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> I3D:
        """With the given weights and as many classes, in evaluation mode. ValueError where they do not fit."""
        head = tensors.get("logits.conv3d.weight")
        network = cls(CLASSES if head is None else head.shape[0])
        expected = network.state_dict()
        optional = {name for name in expected if name.endswith("num_batches_tracked")}
        missing = sorted(set(expected) - set(tensors) - optional)
        unknown = sorted(set(tensors) - set(expected))
        if missing or unknown:
            raise ValueError(
                f"not the weights of an Inception-I3D: {len(missing)} tensors are missing (as {missing[:2]}), "
                f"{len(unknown)} are unknown (as {unknown[:2]})"
            )
        wrong = [name for name, tensor in tensors.items() if tensor.shape != expected[name].shape]
        if wrong:
            name = wrong[0]
            raise ValueError(f"{name} is {tuple(tensors[name].shape)}, it must be {tuple(expected[name].shape)}")
        network.load_state_dict({**expected, **tensors})
        return network.requires_grad_(False).eval()

    def pooled(self, video: Tensor) -> Tensor:
        """`b 3 f h w` -> what the classifier sees, before its dropout, mean over time: `b 1024`."""
        return self._pool(video).mean(dim=(2, 3, 4))

    def forward(self, video: Tensor) -> Tensor:
        return self.logits["conv3d"](self._pool(video)).mean(dim=(2, 3, 4))  # b classes

    def _pool(self, video: Tensor) -> Tensor:
        x = video
        for name in STAGES:
            x = self.get_submodule(name)(x)  # b c f' h' w'
        return F.avg_pool3d(x, (2, SIDE // 32, SIDE // 32), stride=1)  # b 1024 f'' h'' w''


class ConvolutionUnit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Extent, stride: Extent = (1, 1, 1)) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=NORM_EPSILON)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(pad_same(x, self.kernel, self.stride))))


class MaxPool(nn.Module):
    """The largest value of each window; what lies beyond the rim never wins."""

    def __init__(self, kernel: Extent, stride: Extent) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride, float("-inf")), self.kernel, self.stride)


class MixedBlock(nn.Module):
    """Four branches side by side, joined along the channels."""

    def __init__(self, inputs: int, outputs: _Mixed) -> None:
        super().__init__()
        one, three = (1, 1, 1), (3, 3, 3)
        self.b0 = ConvolutionUnit(inputs, outputs.one, one)
        self.b1a = ConvolutionUnit(inputs, outputs.three[0], one)
        self.b1b = ConvolutionUnit(outputs.three[0], outputs.three[1], three)
        self.b2a = ConvolutionUnit(inputs, outputs.small[0], one)
        self.b2b = ConvolutionUnit(outputs.small[0], outputs.small[1], three)
        self.b3a = MaxPool(three, (1, 1, 1))
        self.b3b = ConvolutionUnit(inputs, outputs.pooled, one)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))]
        return torch.cat(branches, dim=1)


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Elements before and after an axis, by TensorFlow's 'SAME': ceil(length / stride) outputs, the odd one behind."""
    outputs = -(-length // stride)
    total = max((outputs - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: Extent, stride: Extent, value: float = 0.0) -> Tensor:
    """`b c f h w`, padded along the last three axes."""
    before_after = [same_padding(*axis) for axis in zip(x.shape[2:], kernel, stride, strict=True)]
    padding = [count for axis in reversed(before_after) for count in axis]  # the last axis comes first
    return F.pad(x, padding, value=value) if any(padding) else x
