"""safetensors files, read by place: what the library wrote comes back, and nothing else is taken for it."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from reelwright.data.tensorfile import DTYPES, TensorFile, bytes_of, open_files_limit


def _read(path: Path, key: str, name: str) -> Tensor:
    file = TensorFile(path)
    stored = file.items[key][name]
    out = torch.empty(stored.shape, dtype=stored.dtype)
    file.read(stored, bytes_of(out))
    return out


def test_every_type_and_shape_the_library_writes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {f"{number:02x}/x": (torch.randn(3, 5) * 9).to(dtype) for number, dtype in enumerate(DTYPES.values())}
    tensors |= {"aa/scalar": torch.tensor(2.5), "aa/empty": torch.zeros(0, 7), "bb/deep/name": torch.arange(6)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(tensors, metadata={"about": "this"}))
    assert TensorFile(path).metadata == {"about": "this"}
    for full, tensor in tensors.items():
        key, _, name = full.partition("/")
        out = _read(path, key, name)
        assert out.dtype == tensor.dtype and torch.equal(out, tensor), full
    assert set(TensorFile(path).items["aa"]) == {"scalar", "empty"}
    path.write_bytes(save({}))
    assert TensorFile(path).items == {}


def _file(header: object, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "impossible length"),
        (b"\0" * 7, "impossible length"),
        (_file({"a/x": GOOD}, length=1 << 62), "impossible length"),
        (_file({"a/x": GOOD}, length=10_000), "impossible length"),
        (_file({"a/x": GOOD}, length=5), "Expecting|Unterminated|delimiter"),  # cut JSON
        (_file(b"\xff\xfe{}"), "Expecting"),
        (_file(b"[1, 2]"), "no JSON object"),
        (_file({"a/x": GOOD}, b"\0" * 7), "not those its header tells of"),
        (_file({"a/x": GOOD}, b"\0" * 9), "not those its header tells of"),
        (_file({"a/x": 3}), "does not say what or where a/x"),
        (_file({"a/x": {**GOOD, "data_offsets": [0]}}), "does not say what or where a/x"),
        (_file({"a/x": {**GOOD, "data_offsets": [-8, 8]}}), "does not say what or where a/x"),
        (_file({"a/x": {**GOOD, "data_offsets": [0, 8.0]}}), "does not say what or where a/x"),
        (_file({"a/x": {**GOOD, "dtype": "F99"}}), "does not say what or where a/x"),
        (_file({"a/x": {**GOOD, "shape": [-2]}}), "does not say what or where a/x"),
        (_file({"a/x": {**GOOD, "shape": "2"}}), "does not say what or where a/x"),
        (_file({"a/x": {**GOOD, "shape": [3]}}), "8 bytes where its shape needs 12"),
        (_file({"a/x": {**GOOD, "data_offsets": [8, 0]}}, b""), "-8 bytes"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        TensorFile(path)


def test_a_file_cut_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a/x": torch.arange(1000)}))
    file = TensorFile(path)
    with path.open("r+b") as other:
        other.truncate(path.stat().st_size - 100)
    with pytest.raises(ValueError, match="ends 100 bytes too early"):
        file.read(file.items["a"]["x"], memoryview(bytearray(8000)))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TensorFile(tmp_path / "none")


def test_a_system_without_fadvise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a/x": torch.arange(1000)}))
    file = TensorFile(path)
    for _ in range(2):
        file.announce(file.items["a"]["x"])
        monkeypatch.delattr(os, "posix_fadvise", raising=False)


@pytest.mark.parametrize(("soft", "kept"), [(64, 16), (3, 1), (1 << 20, 512), (resource.RLIM_INFINITY, 512)])
def test_files_kept_open_are_a_part_of_those_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, soft: int, kept: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    assert open_files_limit(512) == kept
