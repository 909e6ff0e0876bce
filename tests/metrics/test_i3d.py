from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from reelwright.metrics.i3d import I3D, ConvolutionUnit, MaxPool, MixedBlock, _Mixed, pad_same, same_padding

# input and output channels of the published network's Inception blocks
BLOCKS = {
    "3b": (192, 256), "3c": (256, 480), "4b": (480, 512), "4c": (512, 512), "4d": (512, 512), "4e": (512, 528),
    "4f": (528, 832), "5b": (832, 832), "5c": (832, 1024),
}  # fmt: skip
UNITS = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
NORM = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked")


@pytest.fixture(scope="module")
def network() -> I3D:
    torch.manual_seed(0)
    return I3D().eval()


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Statistics as trained networks have them, so that no normalisation is the identity."""
    for name, value in module.state_dict().items():
        if name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("bn.bias", "running_mean")):
            value.normal_(0, 0.2)
    return module.eval()


def test_number_of_parameters(network: I3D) -> None:
    head = 1024 * 400 + 400
    assert sum(p.numel() for p in network.parameters()) == 12_287_264 + head
    assert sum(p.numel() for p in network.logits.parameters()) == head


def test_names_are_those_of_the_public_weights(network: I3D) -> None:
    units = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
    units += [f"Mixed_{block}.{unit}" for block in BLOCKS for unit in UNITS]
    expected = {f"{unit}.{leaf}" for unit in units for leaf in ("conv3d.weight", *NORM)}
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert set(shapes) == expected | {"logits.conv3d.weight", "logits.conv3d.bias"}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Mixed_4e.b2b.conv3d.weight"] == (64, 32, 3, 3, 3)
    assert shapes["logits.conv3d.weight"] == (400, 1024, 1, 1, 1)
    for block, (inputs, outputs) in BLOCKS.items():
        assert shapes[f"Mixed_{block}.b0.conv3d.weight"][1] == inputs
        assert sum(shapes[f"Mixed_{block}.{unit}.conv3d.weight"][0] for unit in ("b0", "b1b", "b2b", "b3b")) == outputs


def test_same_padding_by_hand() -> None:
    assert same_padding(224, 7, 2) == (2, 3)  # 112 outputs cover 2 * 111 + 7 = 229
    assert same_padding(5, 3, 2) == (1, 1)
    assert same_padding(6, 3, 2) == (0, 1)
    assert same_padding(4, 3, 1) == (1, 1)
    assert same_padding(5, 2, 2) == (0, 1)
    assert same_padding(8, 2, 2) == same_padding(7, 1, 1) == same_padding(3, 1, 2) == (0, 0)


def test_padded_convolution_by_hand() -> None:
    x = torch.tensor([1.0, 2, 3, 4, 5, 6]).reshape(1, 1, 1, 1, 6)
    padded = pad_same(x, (1, 1, 7), (1, 1, 2))
    assert padded.flatten().tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0]
    # windows of seven from each second place: 1+..+5, 1+..+6, 3+..+6
    assert F.conv3d(padded, torch.ones(1, 1, 1, 1, 7), stride=(1, 1, 2)).flatten().tolist() == [15, 21, 18]
    # each axis has its own
    assert pad_same(torch.zeros(1, 1, 4, 5, 6), (3, 3, 3), (2, 2, 2)).shape == (1, 1, 5, 7, 7)


def test_pooling_never_takes_the_padding() -> None:
    x = torch.tensor([-1.0, -2, -3, -4]).reshape(1, 1, 1, 1, 4)
    assert MaxPool((1, 1, 3), (1, 1, 2))(x).flatten().tolist() == [-1, -3]


def test_a_unit_is_convolution_norm_and_relu() -> None:
    unit = randomised(ConvolutionUnit(3, 4, (3, 3, 3)))
    x = torch.randn(2, 3, 5, 6, 7)
    values = unit.state_dict()
    y = F.conv3d(x, values["conv3d.weight"], padding=1)
    scale = values["bn.weight"] / (values["bn.running_var"] + 1e-3).sqrt()
    by_channel = (1, 4, 1, 1, 1)
    y = (y - values["bn.running_mean"].view(by_channel)) * scale.view(by_channel) + values["bn.bias"].view(by_channel)
    assert torch.allclose(unit(x), y.clamp_min(0), atol=1e-5)


def test_a_mixed_block_joins_its_branches_in_order() -> None:
    block: Any = randomised(MixedBlock(6, _Mixed(2, (3, 4), (1, 5), 7)))
    x = torch.randn(1, 6, 3, 4, 5)
    parts = block(x).split([2, 4, 5, 7], dim=1)
    assert torch.equal(parts[0], block.b0(x))
    assert torch.equal(parts[1], block.b1b(block.b1a(x)))
    assert torch.equal(parts[2], block.b2b(block.b2a(x)))
    assert torch.allclose(parts[3], block.b3b(F.max_pool3d(x, 3, stride=1, padding=1)))


@torch.no_grad()
def test_shapes_and_pooled_features(network: I3D) -> None:
    video = torch.rand(1, 3, 9, 193, 193) * 2 - 1  # the least it takes: two steps of time and 7 x 7 places are left
    pooled, logits = network.pooled(video), network(video)
    assert pooled.shape == (1, 1024) and logits.shape == (1, 400)
    head = network.state_dict()
    by_hand = pooled @ head["logits.conv3d.weight"].flatten(1).T + head["logits.conv3d.bias"]
    assert torch.allclose(logits, by_hand, atol=1e-5)  # mean and a linear map change places


@torch.no_grad()
def test_weights_come_back_from_safetensors(network: I3D, tmp_path: Path) -> None:
    path = tmp_path / "i3d.safetensors"
    tensors = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    save_file(tensors, path)
    again = I3D.from_tensors(load_file(path))
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    video = torch.rand(1, 3, 9, 193, 193)
    assert torch.equal(again(video), network(video))


def test_another_number_of_classes(network: I3D) -> None:
    tensors: dict[str, Tensor] = dict(network.state_dict())
    tensors["logits.conv3d.weight"] = torch.zeros(157, 1024, 1, 1, 1)
    tensors["logits.conv3d.bias"] = torch.zeros(157)
    other = I3D.from_tensors(tensors)
    assert other.classes == other.logits["conv3d"].out_channels == 157


def test_other_weights_are_refused(network: I3D) -> None:
    tensors: dict[str, Tensor] = dict(network.state_dict())
    del tensors["Mixed_3b.b0.conv3d.weight"]
    with pytest.raises(ValueError, match=r"1 tensors are missing \(as \['Mixed_3b.b0.conv3d.weight'\]"):
        I3D.from_tensors(tensors)
    with pytest.raises(ValueError, match="1 are unknown"):
        I3D.from_tensors({**network.state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"Conv3d_2b_1x1.conv3d.weight is \(2, 2\), it must be \(64, 64, 1, 1, 1\)"):
        I3D.from_tensors({**network.state_dict(), "Conv3d_2b_1x1.conv3d.weight": torch.zeros(2, 2)})
