"""One command of ours in a child process: watched, stopped on request, its time and memory measured."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reelwright.children import child_environment, watch
from reelwright.console import last_error
from reelwright.signals import interrupts_held

STOP_SECONDS = 120.0  # to finish a step and a save, before it is killed
MAX_REASON = 600  # letters


@dataclass(frozen=True)
class Ended:
    """How a command ended. `code` is negative for a signal, as subprocess gives it."""

    code: int
    seconds: float
    peak_memory_bytes: int
    peak_gpu_bytes: int | None  # None: it used no GPU
    reason: str  # what it said of its failure; '' where it ended well
    stopped: str = ""  # why it was told to stop, '' where it was not


def run_command(
    arguments: Sequence[object],
    log: Path,
    folder: Path,
    on_tick: Callable[[float], None] = lambda _: None,
    stop: Callable[[], str] = lambda: "",
    kill: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run `reelwright ARGUMENTS` in `folder`, its output added to `log`, until it ends.

    `on_tick(seconds)` is called a few times a second. Once `stop()` says why, the child is sent SIGINT (training saves
    and ends); once `kill()` is true, or the grace is over, its whole group is killed.
    """
    words = [str(argument) for argument in arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    peak = log.with_suffix(".gpu")
    peak.unlink(missing_ok=True)
    started, stopped = time.monotonic(), ""

    def asked() -> str:
        nonlocal stopped
        stopped = stop()
        return stopped

    with log.open("ab") as output:
        output.write(f"$ reelwright {shlex.join(words)}\n".encode())
        output.flush()
        begins = output.tell()
        with interrupts_held():
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "reelwright.experiments.child", str(peak), *words],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=child_environment(),
                start_new_session=True,
            )  # fmt: skip
        with child:
            usage = watch(child, lambda: on_tick(time.monotonic() - started), asked, kill, STOP_SECONDS)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) counts kilobytes, but bytes there
    gpu = json.loads(peak.read_text(encoding="utf-8")) if peak.is_file() else None
    peak.unlink(missing_ok=True)
    reason = _reason(log, begins, child.returncode) if child.returncode else ""
    seconds = time.monotonic() - started
    return Ended(child.returncode, seconds, usage.ru_maxrss * unit, gpu, reason, stopped)


def _reason(log: Path, begins: int, code: int) -> str:
    """The command's own message, else its last line, else how it ended."""
    with log.open("rb") as file:
        file.seek(begins)
        text = file.read().decode("utf-8", "replace").strip()
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        how += " (the system kills what asks for more memory than there is)"
    said = last_error(text) or (text.splitlines() or [""])[-1]
    return f"{how}: {said[:MAX_REASON]}" if said and code > 0 else how
