"""Latents and text on disk, content-addressed, whole after a kill at any instant.

    pending/<name>.safetensors       items just made: tensors "<key>/<name>", their index in the metadata
    shards/<kind>-<name>.safetensors many items of one kind
    shards/<kind>-<name>.json        the shard's index: key -> crc32 and bytes; an item is in a shard once this exists
    manifests/                       what `prepare` made of them (dataset.py)
    files.jsonl, probes.jsonl        what can be found out again: file hashes, decoded timestamps
    lock                             held (flock) while pending items move into a shard

Order of `pack`: shard, then its index, then the pending files go. Whatever is cut off in between is found and done
again by the next `pack`; nothing ever needs cleaning by hand.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from reelwright.data.fingerprints import SCHEMA, FileHashes, Journal
from reelwright.types import UserError

PACK_ITEMS = 1024  # pending items that are packed at once
PACK_BYTES = 128 << 20
_OPEN_SHARDS = 256
_LOCK_SECONDS = 600.0
_ABANDONED_SECONDS = 3600.0  # a temporary file this old belongs to a process that was killed
_KEY = re.compile(r"[0-9a-f]{16,64}")
_KIND = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}")


_Opened = tuple[Any, dict[str, list[str]]]  # a mapped safetensors file, and its tensors' names by item


class CacheDamaged(UserError):
    """Bytes on disk are not what was written. The text names the file and the way out."""


@dataclass(frozen=True)
class _Entry:
    """Where an item is."""

    file: Path
    kind: str
    crc32: int
    num_bytes: int


class Cache:
    """Items (named tensors) by key under one folder. Several processes may use one cache at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pending, self._shards = root / "pending", root / "shards"
        try:
            for folder in (self._pending, self._shards):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{root}: the cache folder cannot be made ({error.strerror}); set cache_dir") from None
        self.files = FileHashes(Journal(root / "files.jsonl"))
        self.probes = Journal(root / "probes.jsonl")
        self._handles: OrderedDict[Path, _Opened] = OrderedDict()
        self._read: set[Path] = set()  # shard indexes already in `_packed`
        self._packed: dict[str, _Entry] = {}
        self._waiting: dict[str, _Entry] = {}
        for path in self._pending.glob("*.safetensors"):
            with suppress(CacheDamaged, FileNotFoundError):  # damaged: made again; gone: packed by another process
                self._waiting.update(_entries(path, _open(path)[1]))
        self._refresh()

    def put(self, key: str, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """Store an item; when this returns it is on disk. ValueError for a bad key, kind or non-finite values.

        `kind` groups items into shards, for example "latent-16x64x64" or "text".
        """
        self.put_many(kind, {key: tensors})

    def put_many(self, kind: str, items: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store several items of a kind at once: one file, one wait for the disk. All of them are kept or none."""
        plain: dict[str, dict[str, Tensor]] = {}
        for key, tensors in items.items():
            if not _KEY.fullmatch(key) or not _KIND.fullmatch(kind) or not tensors:
                raise ValueError(
                    f"cache item {key!r} of kind {kind!r}: hexadecimal key, plain kind, some tensor expected"
                )
            plain[key] = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            for name, tensor in plain[key].items():
                if not is_finite(tensor):
                    raise ValueError(f"cache item {key}: {name} holds NaN or infinity; it is not stored")
        if not plain:
            return
        about = _about(kind, plain)
        path = self._pending / f"{_name(kind, plain)}.safetensors"
        write_atomic(path, save(_flat(plain), metadata={"about": _sealed(about)}), sync_folder=False)
        self._waiting.update(_entries(path, about))
        if len(self._waiting) >= PACK_ITEMS or sum(e.num_bytes for e in self._waiting.values()) >= PACK_BYTES:
            self.pack()

    def has(self, key: str) -> bool:
        return key in self._packed or key in self._waiting

    def keys(self) -> set[str]:
        """Keys of every item there is."""
        return self._packed.keys() | self._waiting.keys()

    def num_bytes(self, key: str) -> int:
        """Size of an item's tensors. KeyError where there is none."""
        return (self._packed.get(key) or self._waiting[key]).num_bytes

    def get(self, key: str) -> dict[str, Tensor]:
        """An item's tensors, compared with their checksum. KeyError where there is none; CacheDamaged."""
        entry = self._packed.get(key)
        if entry is None and key in self._waiting:
            try:
                return _item(_open(self._waiting[key].file)[0], self._waiting[key], key)
            except FileNotFoundError:  # another process packed it since
                self._waiting.pop(key)
        if entry is None:
            self._refresh()
            entry = self._packed.get(key)
        if entry is None:
            raise KeyError(f"{key} is not in the cache {self.root}")
        return _item(self._opened(entry.file), entry, key)

    def verify(self) -> list[CacheDamaged]:
        """Read everything; every damaged file, once."""
        found: dict[Path, CacheDamaged] = {}
        for key in sorted(self.keys()):
            try:
                self.get(key)
            except CacheDamaged as damage:
                found.setdefault((self._packed.get(key) or self._waiting[key]).file, damage)
        return list(found.values())

    def pack(self) -> None:
        """Move every pending item into shards, one per kind. Damaged pending items are forgotten."""
        with self._locked():
            self._refresh()
            self._clear_leftovers()
            paths = sorted(self._pending.glob("*.safetensors"))
            groups: dict[str, dict[str, dict[str, Tensor]]] = {}
            for path in paths:
                with suppress(CacheDamaged, FileNotFoundError):
                    names, about = _open(path)
                    for key, entry in _entries(path, about).items():
                        if key in self._packed:  # by a process that was killed before it could remove the file
                            continue
                        with suppress(CacheDamaged):
                            groups.setdefault(entry.kind, {})[key] = _item(names, entry, key)
            for kind, items in groups.items():
                self._write_shard(kind, items)
            self._refresh()
            for path in paths:
                path.unlink(missing_ok=True)
            self._waiting = {}

    def _write_shard(self, kind: str, items: dict[str, dict[str, Tensor]]) -> None:
        shard = self._shards / f"{kind}-{_name(kind, items)}.safetensors"
        index = shard.with_suffix(".json")
        index.unlink(missing_ok=True)  # of a shard that was deleted by hand
        self._read.discard(index)
        write_atomic(shard, save(_flat(items)))
        write_json(index, _about(kind, items))

    def _refresh(self) -> None:
        """Take in the shard indexes that appeared since; an index without its shard counts as gone."""
        for index in sorted(self._shards.glob("*.json")):
            shard = index.with_suffix(".safetensors")
            if index in self._read or not shard.exists():
                continue
            about = read_json(index)
            if about is None:
                raise damaged(index, "it does not match its checksum")
            self._read.add(index)
            self._packed.update(_entries(shard, about))

    def _clear_leftovers(self) -> None:
        """Remove what killed processes left: shards without an index, abandoned temporary files."""
        for shard in self._shards.glob("*.safetensors"):
            if not shard.with_suffix(".json").exists():  # we hold the lock, so nobody is about to write it
                shard.unlink(missing_ok=True)
        for folder in (self._pending, self._shards, self.root):
            for path in folder.glob(".*.tmp"):
                try:
                    if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                        path.unlink()
                except FileNotFoundError:
                    continue

    def _opened(self, shard: Path) -> _Opened:
        """The mapped shard; the last few hundred stay open."""
        opened = self._handles.get(shard)
        if opened is None:
            try:
                opened = self._handles[shard] = _open(shard)[0]
            except FileNotFoundError:
                raise damaged(shard, "it is gone") from None
            if len(self._handles) > _OPEN_SHARDS:
                self._handles.popitem(last=False)
        self._handles.move_to_end(shard)
        return opened

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the cache's lock. The system releases it when its holder dies, so it can never be stale."""
        path = self.root / "lock"
        with path.open("a+") as file:
            deadline = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        file.seek(0)
                        holder = file.read().strip() or "unknown"
                        raise UserError(
                            f"{path}: held for minutes by process {holder}; stop it and try again"
                        ) from None
                    time.sleep(0.05)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def damaged(path: Path, what: str) -> CacheDamaged:
    return CacheDamaged(f"{path}: damaged ({what}); delete this file and run `reelwright prepare` again")


def _name(kind: str, items: Mapping[str, Any]) -> str:
    """Name of a file by the keys in it."""
    return hashlib.sha256(" ".join([kind, *items]).encode()).hexdigest()[:16]


def _flat(items: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{key}/{name}": tensor for key, tensors in items.items() for name, tensor in tensors.items()}


def _about(kind: str, items: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """What is known of the items of a file: a shard's index, and the metadata of a pending file."""
    entries = {key: [_crc32(tensors), sum(t.nbytes for t in tensors.values())] for key, tensors in items.items()}
    return {"schema": SCHEMA, "kind": kind, "items": entries}


def _entries(file: Path, about: Mapping[str, Any]) -> dict[str, _Entry]:
    """The items of a file by key; none where another version of the program wrote it."""
    if about.get("schema") != SCHEMA:
        return {}
    return {key: _Entry(file, about["kind"], crc32, size) for key, (crc32, size) in about["items"].items()}


def _open(path: Path) -> tuple[_Opened, dict[str, Any]]:
    """(the mapped file, its `about` where it has one). FileNotFoundError; CacheDamaged."""
    try:
        handle = safe_open(path, framework="pt").__enter__()
        sealed = (handle.metadata() or {}).get("about")
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, str(error)) from None
    about = {} if sealed is None else _unsealed(sealed.encode())
    if about is None:
        raise damaged(path, "its index does not match its checksum")
    names: dict[str, list[str]] = {}
    for full in handle.keys():  # noqa: SIM118
        key, _, name = full.partition("/")
        names.setdefault(key, []).append(name)
    return (handle, names), about


def _item(opened: _Opened, entry: _Entry, key: str) -> dict[str, Tensor]:
    handle, names = opened
    try:
        tensors = {name: handle.get_tensor(f"{key}/{name}") for name in names[key]}
    except (SafetensorError, OSError, KeyError) as error:
        raise damaged(entry.file, str(error)) from None
    if _crc32(tensors) != entry.crc32:
        raise damaged(entry.file, f"item {key} does not match its checksum")
    return tensors


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. A finite sum proves it in a third of the time."""
    if not tensor.is_floating_point():
        return True
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    """Checksum of names, types, shapes and bytes."""
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def write_atomic(path: Path, data: bytes, sync_folder: bool = True) -> None:
    """Write a file that is there completely or not at all, whenever the process or the machine stops.

    Without `sync_folder` a power failure may still take the whole file back.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if sync_folder:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: {len(data)} bytes cannot be written: {error.strerror or error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """JSON with the checksum of its own text, written atomically."""
    write_atomic(path, _sealed(content).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None where the text is not what was written. FileNotFoundError."""
    return _unsealed(path.read_bytes())


def _sealed(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, separators=(",", ":"))
    return f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n"


def _unsealed(data: bytes) -> dict[str, Any] | None:
    text, _, checksum = data.rstrip(b"\n").rpartition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        return None
    return json.loads(text)
