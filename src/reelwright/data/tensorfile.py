"""A safetensors file read by place: its header once, then each tensor straight into memory that is given.

Nothing is mapped: pages of a mapped file count as memory of the process for as long as it is open, so that an epoch
over a large cache would grow with the cache. Reading from the page cache into place costs one copy and no page fault
more than the batch itself. The format: eight bytes of length, a JSON header, the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
import os
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


class Stored(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # from the file's first byte
    num_bytes: int


class TensorFile:
    """An open file and what is in it. It is closed when nobody holds it any more.

    FileNotFoundError; ValueError says in which way it is no whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        header, begin = self._header(size)
        metadata = header.pop("__metadata__", {})
        self.metadata: dict[str, str] = metadata if isinstance(metadata, dict) else {}
        self.items: dict[str, dict[str, Stored]] = {}  # tensors "<key>/<name>" by key and name
        end = begin
        for full, about in header.items():
            key, _, name = full.partition("/")
            stored = self.items.setdefault(key, {})[name] = _stored(full, about, begin)
            end = max(end, stored.start + stored.num_bytes)
        if end != size:
            raise ValueError(f"its {size} bytes are not those its header tells of")
        self.verified: set[str] = set()  # keys of items whose bytes were compared with their checksum

    def announce(self, stored: Stored) -> None:
        """Have the system begin to fetch a tensor's bytes, without waiting for them."""
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(self._file.fileno(), stored.start, stored.num_bytes, os.POSIX_FADV_WILLNEED)

    def read(self, stored: Stored, buffer: memoryview) -> None:
        """A tensor's bytes into a buffer of its size. ValueError where the file ends before."""
        done = 0
        while done < stored.num_bytes:  # one call reads at most 2 GiB
            count = os.preadv(self._file.fileno(), [buffer[done:]], stored.start + done)
            if count == 0:
                raise ValueError(f"it ends {stored.num_bytes - done} bytes too early")
            done += count

    def fill(self, key: str, buffers: Mapping[str, memoryview], checksum: int) -> None:
        """Read an item's tensors into buffers, by name; compared with their checksum the first time.

        KeyError where the file has no such item; OSError; ValueError where the bytes are not those of `checksum`.
        """
        stored = self.items[key]
        for name, buffer in buffers.items():
            self.read(stored[name], buffer)
        if key in self.verified:
            return
        if item_checksum((name, place.dtype, place.shape, buffers[name]) for name, place in stored.items()) != checksum:
            raise ValueError(f"item {key} does not match its checksum")
        self.verified.add(key)

    def item(self, key: str, checksum: int) -> dict[str, Tensor]:
        """An item's tensors. As `fill`."""
        tensors = {name: torch.empty(s.shape, dtype=s.dtype) for name, s in self.items[key].items()}
        self.fill(key, {name: bytes_of(tensor) for name, tensor in tensors.items()}, checksum)
        return tensors

    def _header(self, size: int) -> tuple[dict[str, Any], int]:
        """(the parsed header, where the tensors' bytes begin)"""
        length = int.from_bytes(self._file.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError("its header has an impossible length")
        begin = 8 + length
        header = json.loads(_read_all(self._file, length))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        return header, begin


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, to be read or written in place."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def item_checksum(parts: Iterable[tuple[str, torch.dtype, tuple[int, ...], memoryview]]) -> int:
    """XXH3 (64 bits) of an item's names, types, shapes and bytes: it finds damage, not malice, at memory's speed."""
    checksum = xxhash.xxh3_64()
    for name, dtype, shape, data in sorted(parts, key=lambda part: part[0]):
        checksum.update(f"{name} {dtype} {shape}".encode())
        checksum.update(data)
    return checksum.intdigest()


def open_files_limit(most: int) -> int:
    """How many files to keep open: `most`, or a quarter of what the system lets this process have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft // 4))


def _read_all(file: Any, length: int) -> bytes:
    """`length` bytes of an unbuffered file, which may give fewer at a time."""
    parts: list[bytes] = []
    while length > 0:
        part = file.read(length)
        if not part:
            raise ValueError("its header is cut short")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _stored(full: str, about: Any, begin: int) -> Stored:
    try:
        dtype, shape, (start, end) = DTYPES[about["dtype"]], tuple(about["shape"]), about["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"its header does not say what or where {full} is") from None
    num_bytes = math.prod(shape) * dtype.itemsize
    if end - start != num_bytes:
        raise ValueError(f"{full} has {end - start} bytes where its shape needs {num_bytes}")
    return Stored(dtype, shape, begin + start, num_bytes)
