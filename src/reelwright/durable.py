"""Files whole or not there, on the disk, known by their bytes."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path

from reelwright.types import VideoFile


def replace_file(path: Path, content: str | bytes, sync_folder: bool = False) -> None:
    """Write beside, sync, rename over: a reader sees the old file or the new one, and a kill leaves one of them.

    Without `sync_folder` a power failure may take the new one back. OSError where it cannot be written.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if sync_folder:
            sync(path.parent)
    except BaseException:
        with suppress(OSError):  # a read-only file system refuses even this
            temporary.unlink()
        raise


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: VideoFile) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
