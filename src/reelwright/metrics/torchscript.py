"""TorchScript archives of others, read only where their code does nothing but compute.

`torch.jit.load` runs no Python and unpickles no Python object: an archive's code is compiled and run by TorchScript's
own interpreter, its data read by a reader of tensors and plain values. But among TorchScript's operators are ones that
write and map files, and an archive's `__setstate__` runs while it is loaded. So the code is searched first, and what is
loaded is a copy of exactly the members that were searched. This bars what is known to do harm; an archive remains a
program, to be had from someone trusted.
"""

from __future__ import annotations

import ast
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reelwright.types import UserError

MOST_BYTES = 4 << 30  # unpacked
# operators that reach files or other machines, and every namespace but two: others may be of any library in the process
FORBIDDEN = re.compile(r"\b(save|from_file|load_tensor|rpc_\w+)\b|\bops\.(?!(aten|prim)\b)\w+")
NATIVE_CLASSES = b"torch.classes"  # C++ classes, which data members too can create
I3D_OPTIONS = {"rescale": False, "resize": False, "return_features": True}  # of the I3D archive that is passed round


class ScriptedFeatures(nn.Module):
    """`b c f h w` -> `b d`: an archive's own output, mean over what it keeps beyond the first two axes."""

    def __init__(self, network: Any, path: Path, spec: str) -> None:
        super().__init__()
        self.network, self._path, self._spec = network, path, spec
        known = {argument.name for argument in network.forward.schema.arguments}
        self._options = {name: value for name, value in I3D_OPTIONS.items() if name in known}

    def forward(self, videos: Tensor) -> Tensor:
        """UserError where the archive cannot take them, or gives something else than features."""
        shape = tuple(videos.shape)
        try:
            values = self.network(videos, **self._options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"features = {self._spec}: {self._path} does not take videos 'b c f h w' of {shape}: {reason}"
            ) from None
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.shape[:1] != videos.shape[:1]:
            raise UserError(
                f"features = {self._spec}: {self._path} gives {_described(values)} for {len(videos)} videos; it must "
                "give one float vector each, 'b d'"
            )
        if values.ndim < 2:
            raise UserError(f"features = {self._spec}: {self._path} gives one number a video; it must give a vector")
        return values.flatten(2).mean(dim=2) if values.ndim > 2 else values


def load_torchscript(path: Path, device: torch.device, spec: str) -> ScriptedFeatures:
    """The network of a TorchScript archive, in evaluation mode. UserError where it is none or may do harm."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"features = {spec}: {path} is no readable archive: {error}") from None
    names = [name.partition("/")[2] for name in members]
    if "constants.pkl" not in names or not any(name.startswith("code/") for name in names):
        raise UserError(
            f"features = {spec}: {path} holds pickled weights, not a TorchScript network; a pickle can run code when "
            "loaded and is not read: load it where you trust it and save its state dict as safetensors"
        )
    for name, data in members.items():
        if danger := _danger(name, data):
            raise UserError(f"features = {spec}: {path} is not loaded: {name} {danger}")
    try:
        network = torch.jit.load(_packed(members), map_location=device).eval()
        return ScriptedFeatures(network, path, spec)
    except (RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise UserError(f"features = {spec}: {path} is no TorchScript network that can be loaded: {reason}") from None


def _members(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """ValueError for an archive that two readers could read differently, or that unpacks to too much."""
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len({info.filename.lower() for info in infos}) != len(infos):
        raise ValueError("two of its members share a name")
    if len({info.filename.partition("/")[0] for info in infos}) > 1:
        raise ValueError("its members lie in more than one folder")
    if any(info.filename.lower().endswith("/model.json") for info in infos):
        raise ValueError("it has the layout of TorchScript before 1.0; save it again with a newer torch")
    if (total := sum(info.file_size for info in infos)) > MOST_BYTES:
        raise ValueError(f"it unpacks to {total} bytes, more than {MOST_BYTES}")
    return {info.filename: archive.read(info) for info in infos}


def _packed(members: dict[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    buffer.seek(0)
    return buffer


def _danger(name: str, data: bytes) -> str | None:
    """What a member of an archive could do beyond computing; None where nothing is found."""
    if NATIVE_CLASSES in data:
        return "uses native classes, which may do anything"
    inner = name.partition("/")[2].lower()
    if not inner.startswith("code/") or inner.endswith(".debug_pkl"):
        return None
    try:
        text = data.decode("ascii")
        tree = ast.parse(text)
        plain = ast.unparse(tree)  # without escapes, joined strings and odd spaces, which could hide a word
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return "holds code that cannot be searched"
    if found := FORBIDDEN.search(text) or FORBIDDEN.search(plain):
        return f"uses '{found[0]}', which reaches beyond computing"
    bases = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("torch", "ops", "__torch__") and id(node) not in bases:
            return f"gives '{node.id}' another name, behind which any operator could be called"
        if isinstance(node, ast.Attribute) and node.attr == "classes" and not _is_of_self(node):
            return "uses native classes, which may do anything"
    return None


def _is_of_self(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id == "self"


def _described(values: Any) -> str:
    return f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
