"""What every child process of ours shares, whoever starts it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def child_environment() -> dict[str, str]:
    """Ours, for a child in another folder: a relative search path would mean another one there.

    An empty part of it would mean the working directory, from which nothing is ever imported.
    """
    environment = dict(os.environ)
    paths = [str(Path(path).absolute()) for path in environment.pop("PYTHONPATH", "").split(os.pathsep) if path]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)} if paths else environment


def kill_group(pid: int) -> None:
    """SIGKILL to a child and all it started; children lead a group of their own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
