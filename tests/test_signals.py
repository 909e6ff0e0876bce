"""No signal that asks a command to stop is lost: not one that comes too early, nor one that an import swallows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from reelwright.children import kill_group
from reelwright.signals import INTERRUPTED_CODES, interrupts_heard, interrupts_held, stop_signals


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.15, 0.4])
def test_a_command_asked_to_stop_while_it_starts_says_so(tmp_path: Path, seconds: float) -> None:
    words = ("shapes", "many", "--clips", "100000")
    with interrupts_held():
        child = subprocess.Popen(
            [sys.executable, "-m", "reelwright", *words],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        time.sleep(seconds)
        os.kill(child.pid, signal.SIGINT)
        _, said = child.communicate(timeout=60)
    finally:
        kill_group(child.pid)
    assert said.splitlines()[-1].startswith("reelwright: interrupted; ") and "Traceback" not in said, said
    assert child.returncode in INTERRUPTED_CODES


def test_one_that_was_swallowed_stops_the_run_all_the_same() -> None:
    with interrupts_heard():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with stop_signals() as received:
            assert received == ["SIGINT"]
    with interrupts_heard(), stop_signals() as received:
        assert received == [], "another command's"
        signal.raise_signal(signal.SIGTERM)
        assert received == ["SIGTERM"]


def test_one_that_was_held_is_heard_and_what_was_set_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts_held():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupts_heard():
            pytest.fail("goes on")
    assert signal.getsignal(signal.SIGINT) is before and not signal.sigpending()
    with stop_signals() as received:
        assert received == [], "it was dealt with"


def test_what_a_shell_starts_in_the_background_or_with_nohup_goes_on() -> None:
    before = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)]
    try:
        with interrupts_heard():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        with stop_signals() as received:
            signal.raise_signal(signal.SIGHUP)
            assert received == []
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)


def test_a_command_in_a_thread_does_without() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def command() -> None:
        with interrupts_heard():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=command)
    thread.start()
    thread.join()
    assert seen == [before]
