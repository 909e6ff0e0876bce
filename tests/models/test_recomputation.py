"""Gradient checkpointing of every denoiser: the same gradients, the less kept the more blocks are computed again."""

import pytest
import torch

from reelwright.models.dit import DiTConfig
from reelwright.models.layers import recomputed
from reelwright.training.memory import SavedActivations
from reelwright.types import UsageError
from tiny_networks import NETWORKS, make_network, network_inputs

torch.set_num_threads(1)


def gradients(name: str, checkpointing: bool | int) -> tuple[list[torch.Tensor], int]:
    """Gradients of all parameters, and the bytes kept for them."""
    network = make_network(name, gradient_checkpointing=checkpointing).train()
    x, t, text = network_inputs()
    with SavedActivations(network) as saved:
        loss = network(x, t, text).square().sum()
    loss.backward()
    return [p.grad for p in network.parameters() if p.grad is not None], saved.bytes


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_gradients_and_less_kept(name):
    plain, everything = gradients(name, False)
    assert plain
    kept = [everything]
    for checkpointing in (2, True):
        again, saved = gradients(name, checkpointing)
        assert len(again) == len(plain)
        for a, b in zip(plain, again, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(a.abs().max()))
        kept.append(saved)
    assert kept[0] > kept[1] > kept[2]


def test_every_block_is_what_true_says():
    assert gradients("dit", 1)[1] == gradients("dit", True)[1]
    assert gradients("wan", 1)[1] == gradients("wan", True)[1]


def test_which_blocks():
    assert [recomputed(2, index) for index in range(5)] == [True, False, True, False, True]
    assert [recomputed(3, index) for index in range(5)] == [True, False, False, True, False]
    assert all(recomputed(True, index) for index in range(5)) and not any(recomputed(False, i) for i in range(5))


def test_nothing_is_computed_again_while_generating():
    network = make_network("dit", gradient_checkpointing=True).eval()
    calls = []
    network.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    x, t, text = network_inputs()
    network(x, t, text).sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("wrong", [-1, "often", 1.5])
def test_what_is_no_number_of_blocks(wrong):
    with pytest.raises(UsageError, match="gradient_checkpointing"):
        DiTConfig.parse({"gradient_checkpointing": wrong})
