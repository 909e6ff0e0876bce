"""What every child process of ours shares, whoever starts it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


def child_environment() -> dict[str, str]:
    """Ours, for a child in another folder: a relative search path would mean another one there.

    An empty part of it would mean the working directory, from which nothing is ever imported.
    """
    environment = dict(os.environ)
    paths = [str(Path(path).absolute()) for path in environment.pop("PYTHONPATH", "").split(os.pathsep) if path]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)} if paths else environment


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send us a signal when our parent ends (prctl(2), Linux); exit at once where it has already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def kill_group(pid: int) -> None:
    """SIGKILL to a child and all it started; children lead a group of their own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def watch(
    child: subprocess.Popen[Any],
    on_tick: Callable[[], object],
    stop: Callable[[], object],
    kill: Callable[[], object],
    grace_seconds: float,
) -> Any:
    """Wait for a child that leads a group of its own; returns its resource usage as `os.wait4` gives it.

    `on_tick` is called a few times a second. Once `stop()` is true the child is sent SIGINT, on which our commands
    save and end; once `kill()` is, or the grace after SIGINT is over, its whole group is killed. What it started does
    not outlive it, nor does it outlive an exception here.
    """
    ended, deadline = (0, 0, None), None
    try:
        while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
            if deadline is None and stop():
                deadline = time.monotonic() + grace_seconds
                os.kill(child.pid, signal.SIGINT)  # not send_signal: it may reap the child before wait4 does
            if kill() or (deadline is not None and time.monotonic() > deadline):
                kill_group(child.pid)
            on_tick()
            time.sleep(POLL_SECONDS)
    finally:
        kill_group(child.pid)
        if not ended[0]:
            ended = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(ended[1])  # wait4 reaped it behind Popen's back
    return ended[2]
