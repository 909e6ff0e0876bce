"""A command in a child process: measured, stopped, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reelwright import __version__
from reelwright.experiments.processes import run_command
from reelwright.signals import INTERRUPTED_CODES


def test_what_a_command_prints_takes_and_needs(tmp_path: Path) -> None:
    ended = run_command(["--version"], tmp_path / "logs" / "x.log", tmp_path)
    assert (ended.code, ended.reason, ended.stopped) == (0, "", "")
    assert (tmp_path / "logs" / "x.log").read_text() == f"$ reelwright --version\nreelwright {__version__}\n"
    assert 5e6 < ended.peak_memory_bytes < 2e9 and ended.seconds > 0 and ended.peak_gpu_bytes is None
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["x.log"]


def test_a_failure_is_told_in_the_commands_own_words(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("reelwright: an earlier message\n")
    ended = run_command(["train", "absent.yaml"], log, tmp_path)
    assert ended.code == 2 and ended.reason.startswith("exit code 2: absent.yaml: no such file")
    assert log.read_text().startswith("reelwright: an earlier message\n$ reelwright train absent.yaml\n")


def test_it_runs_where_it_is_told_and_imports_nothing_from_there(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise RuntimeError('this file was imported')")
    ended = run_command(["inspect", "clips"], tmp_path / "x.log", tmp_path)
    assert ended.code == 2 and "clips" in ended.reason and "imported" not in (tmp_path / "x.log").read_text()


def shapes(folder: Path) -> list[object]:
    """A command that takes minutes."""
    return ["shapes", folder / "clips", "--clips", 5000]


def test_it_is_stopped_and_killed_when_told(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    started = time.monotonic()

    def begun() -> bool:
        return any((tmp_path / "clips").rglob("*.mp4")) or time.monotonic() - started > 60

    ended = run_command(shapes(tmp_path), tmp_path / "x.log", tmp_path, stop=lambda: "enough" if begun() else "")
    assert ended.code == 130 and ended.stopped == "enough"
    ended = run_command(shapes(tmp_path), tmp_path / "y.log", tmp_path, stop=lambda: "at once")
    assert ended.code in INTERRUPTED_CODES and ended.stopped == "at once"
    assert (tmp_path / "y.log").read_text().count("\n") == 2, "the command, and that it was interrupted: no traceback"
    ended = run_command(shapes(tmp_path), tmp_path / "x.log", tmp_path, kill=lambda: True)
    assert ended.code == -signal.SIGKILL and "SIGKILL" in ended.reason


PARENT = """
import sys
from pathlib import Path
from reelwright.experiments.processes import run_command
folder = Path(sys.argv[1])
run_command(["shapes", folder / "clips", "--clips", 5000], folder / "x.log", folder)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc to know the child")
def test_a_child_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not list((tmp_path / "clips").rglob("*.mp4") if (tmp_path / "clips").exists() else []):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while alive(int(children[0])):
        assert time.monotonic() < deadline, "the child was left behind"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Not gone, and no zombie that waits for whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
