"""Where a part of a model is while it works: on the device, only for that time, or block by block.

`block` keeps the weights on the host and gives the blocks of a network two places on the device. One block computes in
the first while the next one is copied into the second, on a stream of its own where the device is CUDA. So the device
holds the weights outside the blocks and twice the largest block, whatever the number of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reelwright.types import UsageError

Offload = Literal["none", "model", "block"]

ALIGNMENT = 256  # bytes at which a tensor begins in a slot, as CUDA's own allocations do
HOST = torch.device("cpu")


@contextmanager
def on_device(part: Any, device: torch.device, offload: Offload = "none") -> Iterator[None]:
    """`part` ready to work on the device; with "model" and "block" it is back on the host afterwards.

    What is no module needs no device. A module without blocks is moved as a whole. UsageError for "block" where weights
    are of a kind that cannot be moved so (8-bit ones).
    """
    if not isinstance(part, nn.Module):
        yield
    elif offload == "block" and find_blocks(part):
        with Streaming(part, device):
            yield
    else:
        part.to(device)
        try:
            yield
        finally:
            if offload != "none":
                part.to(HOST)


def find_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The members of the network's outermost lists of modules, by name, in the order of registration.

    Lists within a block belong to it; of a list of lists the inner ones' members are the blocks.
    """
    found: dict[str, nn.Module] = {}

    def search(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
                if _has_tensors(child):
                    found[f"{prefix}{name}"] = child
            else:
                search(child, f"{prefix}{name}.")

    search(network, "")
    return found


def streaming_bytes(network: nn.Module) -> int:
    """What `block` needs of the device for weights: those outside the blocks and two places of the largest block."""
    blocks, outside = _split(network)
    return sum(entry.tensor.nbytes for entry in outside) + min(2, len(blocks)) * max(map(_slot_bytes, blocks.values()))


class Streaming:
    """A network whose blocks come to the device one by one, as a context. Any device will do, the CPU for tests.

    Hooks around each block's forward bring it and the one expected next; expected is the one that followed it last
    time, at first the one registered after it, and the first one after the last. The network's own parameters stay on
    the host, copies of them stand in their places. UsageError for tensors with inner parts (torchao's), whose bytes are
    not their own.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._modules = find_blocks(network)
        self._entries, self._outside = _split(network)
        for entry in (*self._outside, *(entry for entries in self._entries.values() for entry in entries)):
            if type(entry.tensor) not in (Tensor, nn.Parameter):
                raise UsageError(
                    f"--offload block: weights of {type(entry.tensor).__name__}, as model.quantize makes them, do not "
                    "move block by block; use --offload model"
                )
        names = list(self._modules)
        self._follower = dict(zip(names, [*names[1:], names[0]], strict=True))
        self.device = device
        self.resident: dict[str, int] = {}  # name of a block on the device -> its slot
        self.slots: list[Tensor] = []
        self._views: dict[tuple[str, int], list[Tensor]] = {}  # of a block's weights in a slot
        self._handles: list[Any] = []
        self._running: str | None = None
        self._last: str | None = None
        self._lane = _Lane(device)

    def __enter__(self) -> Streaming:
        for entry in (*self._outside, *(entry for entries in self._entries.values() for entry in entries)):
            self._lane.keep_on_host(entry.tensor)
        try:
            for _ in range(min(2, len(self._entries))):
                size = max(map(_slot_bytes, self._entries.values()))
                self.slots.append(torch.empty(size, dtype=torch.uint8, device=self.device))
            for entry in self._outside:
                entry.put(entry.tensor.data.to(self.device))
        except BaseException:
            self.__exit__()
            raise
        for name, block in self._modules.items():
            self._handles += [
                block.register_forward_pre_hook(lambda *_, name=name: self._begin(name), prepend=True),
                block.register_forward_hook(lambda *_, name=name: self._end(name), always_call=True),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._lane.finish()  # nothing may be copied into a slot that is given back
        for entry in (*self._outside, *(entry for entries in self._entries.values() for entry in entries)):
            entry.put(entry.tensor)
        self.resident.clear()
        self._views.clear()
        self.slots.clear()

    def _begin(self, name: str) -> None:
        """Before a block computes: it is there, and the one expected after it is on its way."""
        if self._last is not None:
            self._follower[self._last] = name
        self._last = name
        self._fetch(name)
        self._running = name
        self._lane.await_copy(self.resident[name])
        self._fetch(self._follower[name])

    def _end(self, name: str) -> None:
        self._running = None
        self._lane.computed(self.resident[name])

    def _fetch(self, name: str) -> None:
        """Copy a block into a place that is not at work. Inference changes no weights, so none are copied back."""
        if name in self.resident:
            return
        holders = {slot: holder for holder, slot in self.resident.items()}
        slot = next(n for n in range(len(self.slots)) if n not in holders or holders[n] != self._running)
        if slot in holders:
            del self.resident[holders[slot]]
            for entry in self._entries[holders[slot]]:
                entry.put(entry.tensor)
        if (name, slot) not in self._views:
            self._views[name, slot] = _views(self.slots[slot], self._entries[name])
        views = self._views[name, slot]
        self._lane.copy(slot, views, [entry.tensor.data for entry in self._entries[name]])
        for entry, view in zip(self._entries[name], views, strict=True):
            entry.put(view)
        self.resident[name] = slot


class _Lane:
    """Copies into slots, in order with what computes in them: by streams and events on CUDA, at once elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._device = device
        self._copied: dict[int, Any] = {}  # slot -> event
        self._computed: dict[int, Any] = {}

    def keep_on_host(self, tensor: Tensor) -> None:
        """Where a copy can run beside computing, if the system has such memory to give."""
        data = tensor.data.to(HOST).contiguous()
        if self._stream is not None and data.numel() and not data.is_pinned():
            with suppress(RuntimeError):  # without it copies are slower
                data = data.pin_memory()
        if data.data_ptr() != tensor.data_ptr():
            tensor.data = data  # what it was in before is let go of, tensor by tensor

    def copy(self, slot: int, targets: list[Tensor], sources: list[Tensor]) -> None:
        if self._stream is None:
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)
            return
        if slot in self._computed:
            self._stream.wait_event(self._computed[slot])
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))  # what had the memory before
        with torch.cuda.stream(self._stream):
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            self._copied[slot] = self._stream.record_event()

    def await_copy(self, slot: int) -> None:
        """What is computed from here on finds the slot filled."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied[slot])

    def computed(self, slot: int) -> None:
        """What was computed up to here has read the slot."""
        if self._stream is not None:
            self._computed[slot] = torch.cuda.current_stream(self._device).record_event()

    def finish(self) -> None:
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


@dataclass(frozen=True)
class _Entry:
    """A parameter or buffer and the place in its module where another tensor can stand for it."""

    store: dict[str, Any]
    name: str
    tensor: Tensor

    def put(self, tensor: Tensor) -> None:
        self.store[self.name] = tensor


def _entries(module: nn.Module) -> list[_Entry]:
    stores = [store for inner in module.modules() for store in (inner._parameters, inner._buffers)]
    return [_Entry(store, name, tensor) for store in stores for name, tensor in store.items() if tensor is not None]


def _split(network: nn.Module) -> tuple[dict[str, list[_Entry]], list[_Entry]]:
    """What belongs to each block, and what to none."""
    blocks = {name: _entries(block) for name, block in find_blocks(network).items()}
    inside = {id(entry.store) for entries in blocks.values() for entry in entries}
    return blocks, [entry for entry in _entries(network) if id(entry.store) not in inside]


def _views(slot: Tensor, entries: list[_Entry]) -> list[Tensor]:
    """A slot's bytes as tensors of the dtypes and shapes of a block's."""
    views, at = [], 0
    for entry in entries:
        view = slot[at : at + entry.tensor.nbytes].view(entry.tensor.dtype).view(entry.tensor.shape)
        views.append(nn.Parameter(view, requires_grad=False) if isinstance(entry.tensor, nn.Parameter) else view)
        at += _aligned(entry.tensor.nbytes)
    return views


def _has_tensors(module: nn.Module) -> bool:
    return bool(_entries(module))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _slot_bytes(entries: list[_Entry]) -> int:
    return sum(_aligned(entry.tensor.nbytes) for entry in entries)
