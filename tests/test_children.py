"""A watched child: told to stop, killed when it does not, and nothing of it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reelwright.children import child_environment, kill_group, watch

STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
PATIENT = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    print("ready", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    raise SystemExit(130)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
"""


def never() -> bool:
    return False


def begin(code: str) -> tuple[subprocess.Popen[str], str]:
    """A child in a group of its own, and the first line it printed."""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    with child.stdout:
        return child, child.stdout.readline().strip()


def gone(pid: int, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X"):
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_it_is_waited_for_and_its_memory_is_known() -> None:
    child, _ = begin("print('ready'); raise SystemExit(3)")
    ticks: list[int] = []
    usage = watch(child, lambda: ticks.append(1), never, never, 10.0)
    assert child.returncode == 3 and child.poll() == 3 and usage.ru_maxrss > 1000


def test_it_is_asked_once_and_then_killed() -> None:
    child, _ = begin(PATIENT)
    watch(child, lambda: None, lambda: True, never, 30.0)
    assert child.returncode == 130
    child, _ = begin(STUBBORN)
    began = time.monotonic()
    watch(child, lambda: None, lambda: True, never, 0.5)
    assert child.returncode == -signal.SIGKILL and 0.4 < time.monotonic() - began < 20
    child, _ = begin(STUBBORN)
    watch(child, lambda: None, never, lambda: True, 30.0)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc to tell a zombie")
def test_what_it_started_does_not_outlive_it() -> None:
    child, grandchild = begin(PARENT)
    watch(child, lambda: None, never, never, 10.0)
    assert child.returncode == 0 and gone(int(grandchild))


def test_it_does_not_outlive_a_failure_of_ours() -> None:
    child, _ = begin(STUBBORN)
    with pytest.raises(ZeroDivisionError):
        watch(child, lambda: 1 // 0, never, never, 10.0)
    assert child.returncode == -signal.SIGKILL
    kill_group(child.pid)  # of what is gone already: nothing


def test_search_paths_stay_what_they_are_in_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["relative", "", "/absolute"]))
    assert child_environment()["PYTHONPATH"] == os.pathsep.join([str(Path("relative").absolute()), "/absolute"])
    monkeypatch.setenv("PYTHONPATH", "")
    assert "PYTHONPATH" not in child_environment()
