"""Keys from content: what a file, a latent and an embedded caption are called in the cache."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from reelwright.data.decode import PROBE_VERSION
from reelwright.data.resize import RESIZE_RULE
from reelwright.durable import sha256_of
from reelwright.types import Size, UserError, VideoFile

SCHEMA = 2  # of everything in a cache; a change makes every key new
_FRESH_NS = 100_000_000  # a file changed this shortly before it was read may change again under the same time stamp
_FRESH_COARSE_NS = 2_100_000_000  # the same where the file system keeps whole seconds


def latent_key(
    source_sha256: str,
    start_seconds: float,
    size: Size,
    fps: float,
    codec_fingerprint: str,
    dtype: str,
    end_seconds: float | None = None,
    change: str = "",
) -> str:
    """Key of a window's latents: changes with the video's bytes, the window, how it is decoded, and the codec.

    `end_seconds` is that of a window spread between two times. `change` is what an augmented variant does to the plain
    window (`VariantPlan.key`); the plain one's key knows nothing of augmentation.
    """
    parts = [source_sha256, repr(float(start_seconds)), str(size), repr(float(fps)), codec_fingerprint, dtype]
    parts += [RESIZE_RULE, PROBE_VERSION]
    if end_seconds is not None:
        parts.append(f"spread to {float(end_seconds)!r}")
    if change:
        parts.append(f"variant {change}")
    return _key("latent", *parts)


def text_key(caption: str, text_fingerprint: str) -> str:
    """Key of a caption as the text encoder (or its tokenizer) sees it."""
    return _key("text", caption, text_fingerprint)


def _key(*parts: str) -> str:
    return hashlib.sha256(json.dumps([SCHEMA, *parts]).encode()).hexdigest()[:40]


class Journal:
    """A dictionary on disk that only grows: one JSON line a change, the last one of a key counts.

    Each line is one `write` to a file opened for appending and carries a checksum, so several processes may write and
    a kill at any instant costs at most the line in hand; broken lines are passed over. It holds what can be found out
    again, never the only copy of anything: where the folder may only be read, nothing is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        self._file: FileIO | None = None
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); it may be deleted") from None
        for line in data.split(b"\n"):
            checksum, _, text = line.partition(b" ")
            if text and checksum == _checksum(text):
                key, value = json.loads(text)
                self._values[key] = value

    def get(self, key: str) -> Any:
        """The value of a key; None where there is none."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        if self._values.get(key) == value:
            return
        self._values[key] = value
        text = json.dumps([key, value], separators=(",", ":")).encode()
        with suppress(OSError):  # what cannot be kept is found out again
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
            # The leading line break ends a line that a killed process left half written.
            self._file.write(b"\n" + _checksum(text) + b" " + text + b"\n")


def _checksum(text: bytes) -> bytes:
    return base64.b16encode(zlib.crc32(text).to_bytes(4, "big"))


class FileHashes:
    """sha256 of files, computed again only where (device, inode, size, mtime, ctime) changed."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def sha256(self, path: VideoFile, verify: bool = False) -> str:
        """Hash of a file's bytes; `verify` reads them whatever the time stamps say. OSError where it cannot be read.

        ctime cannot be set by hand, so changed bytes are seen even when the old mtime was put back.
        """
        name = os.path.abspath(str(path))  # noqa: PTH100 - links are not walked: what tells files apart is below
        before = _identity(path)
        known = self._journal.get(name)
        if known is not None and known[0] == before and not verify:
            return known[1]
        started = time.time_ns()
        sha256 = sha256_of(path)
        if _identity(path) == before and not _fresh(before, started):
            self._journal.put(name, [before, sha256])
        return sha256


class FileFacts:
    """What was computed from several files, by a name, until one of them changes as FileHashes sees it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def get(self, name: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
        """`compute()`, or what it gave before for these very files. Nothing is kept where there are no files."""
        before = _identities(files)
        known = self._journal.get(name)
        if before and known is not None and known[0] == before:
            return known[1]
        started = time.time_ns()
        value = compute()
        if before and _identities(files) == before and not any(_fresh(facts, started) for _, *facts in before):
            self._journal.put(name, [before, value])
        return value

    def forget(self, name: str) -> None:
        self._journal.put(name, [[], ""])


def _identities(files: Sequence[Path]) -> list[list[Any]]:
    """[name, what tells it apart ...] of each file; none where one of them cannot be found any more."""
    try:
        return [[str(path), *_identity(path)] for path in files]
    except OSError:
        return []


def _identity(path: VideoFile) -> list[int]:
    stat = path.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _fresh(identity: list[int], started: int) -> bool:
    """Whether the file was changed so shortly before it was read that a change since could leave the same stamps."""
    mtime, ctime = identity[3:]
    coarse = ctime % 1_000_000_000 == 0
    return started - ctime < (_FRESH_COARSE_NS if coarse else _FRESH_NS)
