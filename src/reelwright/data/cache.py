"""Latents and text on disk, content-addressed, whole after a kill at any instant.

    pending/<key>.safetensors        one item just made, named only when it is completely on disk
    shards/<name>.safetensors        many items of one kind: tensors "<key>/<name>"
    shards/<name>.json               the shard's index: key -> crc32 and bytes; an item is in a shard once this exists
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
from contextlib import contextmanager
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
PACK_BYTES = 256 << 20
_OPEN_SHARDS = 256
_LOCK_SECONDS = 600.0
_ABANDONED_SECONDS = 3600.0  # a temporary file this old belongs to a process that was killed
_KEY = re.compile(r"[0-9a-f]{16,64}")
_KIND = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}")


class CacheDamaged(UserError):
    """Bytes on disk are not what was written. The text names the file and the way out."""


@dataclass(frozen=True)
class _Entry:
    """Where a packed item is."""

    shard: Path
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
        self._handles: OrderedDict[Path, Any] = OrderedDict()
        self._read: set[Path] = set()  # shard indexes already in `_entries`
        self._entries: dict[str, _Entry] = {}
        self._waiting: dict[str, int] = {p.stem: p.stat().st_size for p in self._pending.glob("*.safetensors")}
        self._refresh()

    def put(self, key: str, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """Store an item; when this returns it is on disk. ValueError for a bad key, kind or non-finite values.

        `kind` groups items into shards, for example "latent-16x64x64" or "text".
        """
        if not _KEY.fullmatch(key) or not _KIND.fullmatch(kind) or not tensors:
            raise ValueError(f"cache item {key!r} of kind {kind!r}: hexadecimal key, plain kind, at least one tensor")
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        for name, tensor in plain.items():
            if not _finite(tensor):
                raise ValueError(f"cache item {key}: {name} holds NaN or infinity; it is not stored")
        about = json.dumps({"schema": SCHEMA, "kind": kind, "crc32": _crc32(plain)})
        data = save(plain, metadata={"item": about})
        write_atomic(self._pending / f"{key}.safetensors", data)
        self._waiting[key] = len(data)
        if len(self._waiting) >= PACK_ITEMS or sum(self._waiting.values()) >= PACK_BYTES:
            self.pack()

    def has(self, key: str) -> bool:
        return key in self._entries or key in self._waiting

    def keys(self) -> set[str]:
        """Keys of every item there is."""
        return self._entries.keys() | self._waiting.keys()

    def num_bytes(self, key: str) -> int:
        """Size of an item on disk. KeyError where there is none."""
        entry = self._entries.get(key)
        return entry.num_bytes if entry is not None else self._waiting[key]

    def get(self, key: str) -> dict[str, Tensor]:
        """An item's tensors, compared with their checksum. KeyError where there is none; CacheDamaged."""
        entry = self._entries.get(key)
        if entry is None:
            try:
                return self._read_pending(key)[1]
            except FileNotFoundError:  # another process packed it since
                self._refresh()
                self._waiting.pop(key, None)
                entry = self._entries.get(key)
                if entry is None:
                    raise KeyError(f"{key} is not in the cache {self.root}") from None
        try:
            handle, names = self._opened(entry.shard)
            tensors = {name: handle.get_tensor(f"{key}/{name}") for name in names[key]}
        except (SafetensorError, OSError, KeyError) as error:
            raise self._damaged(entry.shard, str(error)) from None
        if _crc32(tensors) != entry.crc32:
            raise self._damaged(entry.shard, f"item {key} does not match its checksum")
        return tensors

    def verify(self) -> list[CacheDamaged]:
        """Read everything; every damaged file, once."""
        found: dict[str, CacheDamaged] = {}
        for key in sorted(self.keys()):
            try:
                self.get(key)
            except CacheDamaged as damage:
                found.setdefault(str(damage).partition(":")[0], damage)
        return list(found.values())

    def pack(self) -> None:
        """Move every pending item into shards, one or more per kind. Damaged pending items are forgotten."""
        with self._locked():
            self._refresh()
            self._clear_leftovers()
            groups: dict[str, dict[str, tuple[int, dict[str, Tensor]]]] = {}
            for path in sorted(self._pending.glob("*.safetensors")):
                key = path.stem
                if key in self._entries:  # packed before, by a process that was killed before this clean-up
                    path.unlink(missing_ok=True)
                    continue
                try:
                    about, tensors = self._read_pending(key)
                except CacheDamaged:
                    path.unlink(missing_ok=True)
                    continue
                groups.setdefault(about["kind"], {})[key] = (about["crc32"], tensors)
            for kind, items in groups.items():
                self._write_shard(kind, items)
            self._waiting = {}

    def _write_shard(self, kind: str, items: dict[str, tuple[int, dict[str, Tensor]]]) -> None:
        name = f"{kind}-{hashlib.sha256(''.join(items).encode()).hexdigest()[:16]}"
        shard, index = self._shards / f"{name}.safetensors", self._shards / f"{name}.json"
        tensors = {f"{key}/{part}": t for key, (_, parts) in items.items() for part, t in parts.items()}
        write_atomic(shard, save(tensors))
        entries = {key: [crc32, sum(t.nbytes for t in parts.values())] for key, (crc32, parts) in items.items()}
        write_json(index, {"schema": SCHEMA, "kind": kind, "items": entries})
        self._refresh()
        for key in items:
            (self._pending / f"{key}.safetensors").unlink(missing_ok=True)

    def _read_pending(self, key: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        path = self._pending / f"{key}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["item"])
                # Copies: a view of the mapped file would outlive the file.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, str(error)) from None
        if about.get("schema") != SCHEMA or about.get("crc32") != _crc32(tensors):
            raise self._damaged(path, "it does not match its checksum")
        return about, tensors

    def _refresh(self) -> None:
        """Take in the shard indexes that appeared since; an index without its shard counts as gone."""
        for index in sorted(self._shards.glob("*.json")):
            shard = index.with_suffix(".safetensors")
            if index in self._read or not shard.exists():
                continue
            content = read_json(index)
            if content is None:
                raise self._damaged(index, "it does not match its checksum")
            self._read.add(index)
            if content.get("schema") != SCHEMA:
                continue
            for key, (crc32, num_bytes) in content["items"].items():
                self._entries[key] = _Entry(shard, content["kind"], crc32, num_bytes)

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

    def _opened(self, shard: Path) -> tuple[Any, dict[str, list[str]]]:
        """(the mapped shard, tensor names by key)."""
        opened = self._handles.get(shard)
        if opened is None:
            handle = safe_open(shard, framework="pt").__enter__()
            names: dict[str, list[str]] = {}
            for full in handle.keys():  # noqa: SIM118
                key, _, name = full.partition("/")
                names.setdefault(key, []).append(name)
            opened = self._handles[shard] = (handle, names)
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

    def _damaged(self, path: Path, what: str) -> CacheDamaged:
        return CacheDamaged(f"{path}: damaged ({what}); delete this file and run `reelwright prepare` again")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    """Checksum of names, types, shapes and bytes."""
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is there completely or not at all, whenever the process or the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
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
    text = json.dumps(content, indent=None, separators=(",", ":"))
    write_atomic(path, f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n".encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None where the text is not what was written. FileNotFoundError."""
    text, _, checksum = path.read_bytes().rstrip(b"\n").rpartition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        return None
    return json.loads(text)
