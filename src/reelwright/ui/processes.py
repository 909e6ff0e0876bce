"""Child processes that never outlive the server, and how one is known again after the server's restart.

A child is started through this very module: it asks the kernel (Linux, prctl(2) PR_SET_PDEATHSIG) to be sent a signal
when the thread that started it ends, however it ends, and then becomes the command. `-P` keeps the working directory,
which is the workspace, off Python's search path: no file of the workspace is ever imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reelwright.children import child_environment, end_with_parent, kill_group

_POLL_SECONDS = 0.05


def start_child(module: str, arguments: Sequence[str], at_death: signal.Signals, **options: Any) -> subprocess.Popen:
    """`python -m module arguments`, sent `at_death` when the calling thread ends. `options` are Popen's."""
    python = [sys.executable, "-P", "-m"]
    command = [*python, __name__, str(os.getpid()), str(int(at_death)), *python, module, *arguments]
    return subprocess.Popen(command, start_new_session=True, env=child_environment(), **options)


def identity_of(pid: int) -> str:
    """`pid start boot`, which no other process ever has again; '' where the system does not tell or it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else f"{pid} {fields[19]} {boot}"  # proc(5): field 22 is the start time


def end_process(identity: str, grace_seconds: float) -> bool:
    """Wait for a process that was told to end, then kill it and its group. Whether it had to be killed."""
    pid = int(identity.split()[0]) if identity else 0
    deadline = time.monotonic() + grace_seconds
    while identity and identity_of(pid) == identity and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    if not identity or identity_of(pid) != identity:
        return False
    kill_group(pid)
    return True


def _main() -> None:
    parent, number, *command = sys.argv[1:]
    end_with_parent(int(parent), int(number))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a server started in the background ignores it, and so would we
    os.execv(command[0], command)


if __name__ == "__main__":
    _main()
