"""Latents and text on disk, content-addressed, whole after a kill at any instant.

    pending/<name>.safetensors       items just made: tensors "<key>/<name>", their index in the metadata
    shards/<kind>-<name>.safetensors many items of one kind
    shards/<kind>-<name>.json        the shard's index: key -> checksum, bytes; an item is in a shard once this exists
    manifests/                       what `prepare` made of them (dataset.py)
    files.jsonl, probes.jsonl        what can be found out again: file hashes, decoded timestamps; fingerprints.jsonl:
                                     those of text encoders and adapters' bases, kept by their files
    lock                             held (flock) while pending items move into a shard

Order of `pack`: shard, then its index, then the pending files go. Whatever is cut off in between is found and done
again by the next `pack`; nothing ever needs cleaning by hand.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from reelwright.data.fingerprints import SCHEMA, FileHashes, Journal
from reelwright.data.lock import locked
from reelwright.data.sealed import read_json, sealed, unreadable, unsealed, write_atomic, write_json
from reelwright.data.tensorfile import Stored, TensorFile, bytes_of, item_checksum, open_files_limit
from reelwright.types import UserError

PACK_ITEMS = 1024  # pending items that are packed at once
PACK_BYTES = 64 << 20  # the same; also what a shard is filled to, so that packing never holds much more in memory
_OPEN_FILES = open_files_limit(512)
_ABANDONED_SECONDS = 3600.0  # a temporary file this old belongs to a process that was killed
_KEY = re.compile(r"[0-9a-f]{16,64}")
_KIND = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}")


class CacheDamaged(UserError):
    """Bytes on disk are not what was written. The text names the file and the way out; `key` the item, if known."""

    key = ""


@dataclass(frozen=True)
class _Entry:
    """Where an item is."""

    file: Path
    kind: str
    checksum: int
    num_bytes: int


class Cache:
    """Items (named tensors) by key under one folder. Several processes may use one cache at once."""

    def __init__(self, root: Path, mend: bool = False) -> None:
        """With `mend` a shard whose index is damaged counts as never made, and `mended` names it; else CacheDamaged."""
        self.root = root
        self.mended: list[CacheDamaged] = []
        self._mends = mend
        self._pending, self._shards = root / "pending", root / "shards"
        try:
            for folder in (self._pending, self._shards):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not self._shards.is_dir():  # with it but without `pending`: a copy that may only be read
                raise UserError(f"{root}: the cache folder cannot be made ({error.strerror}); set cache_dir") from None
        self._files: OrderedDict[Path, TensorFile] = OrderedDict()
        self._opening = threading.Lock()
        self._read: set[Path] = set()  # shard indexes already in `_packed`
        self._packed: dict[str, _Entry] = {}
        self._waiting: dict[str, _Entry] = {}
        for path in self._pending.glob("*.safetensors"):
            self._waiting.update(self._whole(path))
        self._refresh()

    @cached_property
    def files(self) -> FileHashes:
        """Of the videos; only `prepare` reads them."""
        return FileHashes(Journal(self.root / "files.jsonl"))

    @cached_property
    def probes(self) -> Journal:
        """What decoding found in a video, by its hash; only `prepare` reads it."""
        return Journal(self.root / "probes.jsonl")

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
        write_atomic(path, save(_flat(plain), metadata={"about": sealed(about)}), sync_folder=False)
        self._files.pop(path, None)
        self._waiting.update(_entries(path, about))
        if len(self._waiting) >= PACK_ITEMS or sum(e.num_bytes for e in self._waiting.values()) >= PACK_BYTES:
            self.pack()

    def has(self, key: str) -> bool:
        return key in self._packed or key in self._waiting

    def keys(self) -> set[str]:
        """Keys of every item there is."""
        return self._packed.keys() | self._waiting.keys()

    def get(self, key: str) -> dict[str, Tensor]:
        """An item's tensors. KeyError where there is none; CacheDamaged; UserError where it cannot be read.

        Its bytes are compared with their checksum the first time this process reads them from the open file.
        """
        file, entry, _ = self._find(key)
        try:
            return file.item(key, entry.checksum)
        except (OSError, ValueError) as error:
            raise _trouble(entry.file, error, key) from None

    def stack(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Several items at once, each tensor `len(keys) ...`, read in place. As `get`; ValueError: shapes differ."""
        for key in keys:
            file, _, stored = self._find(key)  # not held: a batch may touch more files than can be open
            for place in stored.values() if key not in file.verified else ():
                file.announce(place)  # the first reading may have to wait for the disk: for all of them at once
        out: dict[str, Tensor] = {}
        rows: dict[str, memoryview] = {}
        form: dict[str, tuple[Any, ...]] = {}
        for row, key in enumerate(keys):
            file, entry, stored = self._find(key)
            if not form:
                form = {name: (s.dtype, s.shape) for name, s in stored.items()}
                out = {name: torch.empty((len(keys), *s.shape), dtype=s.dtype) for name, s in stored.items()}
                rows = {name: bytes_of(tensor) for name, tensor in out.items()}
            elif form != {name: (s.dtype, s.shape) for name, s in stored.items()}:
                raise ValueError(f"items {keys[0]} and {key} differ in names, types or shapes; they make no batch")
            buffers = {n: rows[n][row * s.num_bytes : (row + 1) * s.num_bytes] for n, s in stored.items()}
            try:
                file.fill(key, buffers, entry.checksum)
            except (OSError, ValueError) as error:
                raise _trouble(entry.file, error, key) from None
        return out

    def verify(self) -> list[CacheDamaged]:
        """Read everything again; every damaged file, once. UserError where one cannot be read."""
        by_file = {self._entry(key).file: damage for key, damage in reversed(self._damaged_items().items())}
        return list(reversed(by_file.values()))

    def mend(self, progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Read everything again, and forget what is damaged, so that it is made again; `mended` names it.

        The whole items beside it move to another shard: who reads the cache meanwhile has to open it anew.
        UserError where a file cannot be read: what is in it is not known then. `progress(done, total)` counts items.
        """
        found = self._damaged_items(progress)
        with locked(self.root / "lock"):
            for file in dict.fromkeys(self._entry(key).file for key in found):
                held = {key: self._entry(key) for key in self.keys() if self._entry(key).file == file}
                whole = {key: self.get(key) for key in held if key not in found}
                if whole:  # first: a kill in between leaves them twice
                    self._write_shard(next(iter(held.values())).kind, whole)
                self._forget(file, held)
        self._refresh()
        self.mended += found.values()

    def _damaged_items(self, progress: Callable[[int, int], None] = lambda *_: None) -> dict[str, CacheDamaged]:
        self._files.clear()
        found: dict[str, CacheDamaged] = {}
        keys = sorted(self.keys(), key=lambda key: (self._entry(key).file, key))
        for done, key in enumerate(keys, start=1):
            try:
                self.get(key)
            except CacheDamaged as damage:
                found[key] = damage
            progress(done, len(keys))
        return found

    def _forget(self, file: Path, keys: Collection[str]) -> None:
        self._files.pop(file, None)
        index = file.with_suffix(".json")
        for path in (file, index):  # an index without its shard counts as gone
            path.unlink(missing_ok=True)
        self._read.discard(index)
        for key in keys:
            self._packed.pop(key, None)
            self._waiting.pop(key, None)

    def _entry(self, key: str) -> _Entry:
        return self._packed.get(key) or self._waiting[key]

    def pack(self) -> None:
        """Move every pending item into shards, one per kind. Where none is pending, nothing on disk is touched.

        Damaged pending items are forgotten. UserError where a file cannot be read or written; it stays.
        """
        if not any(self._pending.glob("*.safetensors")):
            self._refresh()  # another process may have packed them
            self._waiting = {}
            return
        with locked(self.root / "lock"):
            self._refresh()
            self._clear_leftovers()
            paths = sorted(self._pending.glob("*.safetensors"))
            whole: dict[Path, set[str]] = {}
            groups: dict[str, dict[str, dict[str, Tensor]]] = {}
            held = 0
            for path in paths:
                entries = self._whole(path)
                whole[path] = set(entries)
                for key, entry in entries.items():
                    if key not in self._packed:  # by a process that was killed before it could remove the file
                        self._waiting[key] = entry
                        groups.setdefault(entry.kind, {})[key] = self.get(key)
                        held += entry.num_bytes
                if held >= PACK_BYTES or path == paths[-1]:
                    for kind, items in groups.items():
                        self._write_shard(kind, items)
                    groups, held = {}, 0
            self._refresh()
            for path, keys in whole.items():
                if keys <= self._packed.keys():  # every item that is whole is in a shard now
                    path.unlink(missing_ok=True)
                    self._files.pop(path, None)
            self._waiting = {key: entry for key, entry in self._waiting.items() if entry.file.exists()}

    def _write_shard(self, kind: str, items: dict[str, dict[str, Tensor]]) -> None:
        shard = self._shards / f"{kind}-{_name(kind, items)}.safetensors"
        index = shard.with_suffix(".json")
        index.unlink(missing_ok=True)  # of a shard that was deleted by hand
        self._read.discard(index)
        write_atomic(shard, save(_flat(items)))
        self._files.pop(shard, None)
        write_json(index, _about(kind, items))

    def _refresh(self) -> None:
        """Take in the shard indexes that appeared since; an index without its shard counts as gone."""
        for index in sorted(self._shards.glob("*.json")):
            shard = index.with_suffix(".safetensors")
            if index in self._read or not shard.exists():
                continue
            about = read_json(index)
            if about is None:
                damage = damaged(index, "it does not match its checksum")
                if not self._mends:
                    raise damage
                self.mended.append(damage)
                index.unlink(missing_ok=True)  # the shard goes with the next `pack`, as one that was never finished
                continue
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

    def _whole(self, path: Path) -> dict[str, _Entry]:
        """The items of a pending file whose bytes are what was written. Damaged ones count as never made.

        UserError where the file is there but cannot be read: what is in it is not known then.
        """
        whole: dict[str, _Entry] = {}
        try:
            file = self._opened(path)
            for key, entry in _entries(path, _about_of(file)).items():
                with suppress(ValueError, KeyError):
                    file.item(key, entry.checksum)
                    whole[key] = entry
        except ValueError:
            return {}
        except OSError as error:
            if path.exists():
                raise _trouble(path, error) from None
            return {}  # packed by another process; a network file system may not call that "not found"
        return whole

    def _find(self, key: str) -> tuple[TensorFile, _Entry, Mapping[str, Stored]]:
        """(the open file, the item's entry, its tensors by name). KeyError; CacheDamaged; UserError."""
        for refreshed in (False, True):
            entry = self._packed.get(key) or self._waiting.get(key)
            if entry is None:
                self._refresh()
                entry = self._packed.get(key)
            if entry is None:
                raise KeyError(f"{key} is not in the cache {self.root}")
            try:
                file = self._opened(entry.file)
                return file, entry, file.items[key]
            except FileNotFoundError:
                if entry.file.parent != self._pending or refreshed:
                    raise damaged(entry.file, "it is gone", key) from None
                self._waiting.pop(key, None)  # another process packed it since
            except KeyError:
                raise damaged(entry.file, f"it does not hold item {key}", key) from None
            except (OSError, ValueError) as error:
                raise _trouble(entry.file, error, key) from None
        raise AssertionError("the second time round returns or raises")

    def _opened(self, path: Path) -> TensorFile:
        """The file, open; the last few hundred stay so. OSError; ValueError where it is damaged."""
        with self._opening:  # a training step is read while another part of the run reads too
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = TensorFile(path)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(path)
            return file


def damaged(path: Path, what: str, key: str = "") -> CacheDamaged:
    damage = CacheDamaged(f"{path}: damaged ({what}); delete this file and run `reelwright prepare` again")
    damage.key = key
    return damage


def _trouble(path: Path, error: Exception, key: str = "") -> UserError:
    """What to say of a file: damaged where its content is wrong, not where the system did not let it be read."""
    if isinstance(error, OSError):
        return unreadable(path, error)
    return damaged(path, str(error), key)


def _name(kind: str, items: Mapping[str, Any]) -> str:
    """Name of a file by the keys in it."""
    return hashlib.sha256(" ".join([kind, *items]).encode()).hexdigest()[:16]


def _flat(items: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{key}/{name}": tensor for key, tensors in items.items() for name, tensor in tensors.items()}


def _about(kind: str, items: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """What is known of the items of a file: a shard's index, and the metadata of a pending file."""
    entries = {}
    for key, tensors in items.items():
        parts = [(name, tensor.dtype, tuple(tensor.shape), bytes_of(tensor)) for name, tensor in tensors.items()]
        entries[key] = [item_checksum(parts), sum(len(data) for _, _, _, data in parts)]
    return {"schema": SCHEMA, "kind": kind, "items": entries}


def _entries(file: Path, about: Mapping[str, Any]) -> dict[str, _Entry]:
    """The items of a file by key; none where another version of the program wrote it."""
    if about.get("schema") != SCHEMA:
        return {}
    return {key: _Entry(file, about["kind"], checksum, size) for key, (checksum, size) in about["items"].items()}


def _about_of(file: TensorFile) -> dict[str, Any]:
    """The index a pending file carries in its metadata. ValueError where it is damaged."""
    sealed = file.metadata.get("about")
    about = {} if sealed is None else unsealed(sealed.encode())
    if about is None:
        raise ValueError("its index does not match its checksum")
    return about


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. A finite sum proves it in a third of the time."""
    if not tensor.is_floating_point():
        return True
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
