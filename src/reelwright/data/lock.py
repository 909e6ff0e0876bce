"""One process at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reelwright.types import UserError

_SECONDS = 600.0  # to wait for another process


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock. The system releases it when its holder dies, so it can never be stale.

    UserError where it cannot be opened, or another process holds it for minutes.
    """
    try:
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); the folder must be writable") from None
    with file:
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise UserError(f"{path}: held for minutes by process {holder}; stop it and try again") from None
                time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
