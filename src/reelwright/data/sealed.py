"""Files that are there completely or not at all, and JSON that knows when it was changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reelwright.durable import replace_file
from reelwright.types import UserError


def write_atomic(path: Path, data: bytes, sync_folder: bool = True) -> None:
    """Write a file that is there completely or not at all, whenever the process or the machine stops.

    Without `sync_folder` a power failure may still take the whole file back.
    """
    try:
        replace_file(path, data, sync_folder)
    except OSError as error:
        raise UserError(f"{path}: {len(data)} bytes cannot be written: {error.strerror or error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """JSON with the checksum of its own text, written atomically."""
    write_atomic(path, sealed(content).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None where the text is not what was written. FileNotFoundError; UserError."""
    try:
        return unsealed(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from None


def sealed(content: Mapping[str, Any]) -> str:
    """JSON in one line, its sha256 in the next."""
    text = json.dumps(content, separators=(",", ":"))
    return f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n"


def unsealed(data: bytes) -> dict[str, Any] | None:
    """What `sealed` made; None where the checksum is of another text."""
    text, _, checksum = data.rstrip(b"\n").rpartition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        return None
    return json.loads(text)


def unreadable(path: Path, error: OSError) -> UserError:
    """What to say of a file that the system did not let be read: nothing is known to be wrong with it."""
    return UserError(f"{path}: cannot be read ({error.strerror or error}); it is kept, try again once it can be")
