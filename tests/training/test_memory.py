"""What is kept for the backward pass, counted by hand."""

import torch
from torch import nn

from reelwright.training.memory import SavedActivations


def test_inputs_of_a_product_and_of_a_sine():
    layer, x = nn.Linear(4, 8, bias=False), torch.randn(3, 4)
    with SavedActivations(layer) as saved:
        layer(x).sin().sum()
    assert saved.bytes == 3 * 4 * 4 + 3 * 8 * 4  # x for the weight's gradient, the product for the cosine


def test_a_storage_counts_once_and_weights_never():
    layer, x = nn.Linear(4, 4, bias=False), torch.randn(3, 4, requires_grad=True)
    with SavedActivations(layer) as saved:
        (layer(x) + layer(x[:2]).sum()).sum()
    assert saved.bytes == 3 * 4 * 4
    with SavedActivations(layer) as saved, torch.no_grad():
        layer(x)
    assert saved.bytes == 0


def test_nothing_is_counted_outside():
    layer = nn.Linear(4, 4)
    with SavedActivations(layer) as saved:
        pass
    layer(torch.randn(3, 4)).sin().sum().backward()
    assert saved.bytes == 0
