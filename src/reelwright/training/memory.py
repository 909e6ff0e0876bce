"""What a forward pass keeps in memory until its backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SavedActivations:
    """Counts the bytes autograd keeps of the forward passes within it, each storage once and parameters not at all.

    with SavedActivations(model) as saved: loss = model(...)         saved.bytes

    What `torch.utils.checkpoint` keeps are the inputs of its blocks; they pass by the hooks and are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, _as_it_is)

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())

    def __enter__(self) -> SavedActivations:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
