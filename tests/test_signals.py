"""No signal that asks a command to stop is lost: not one that comes too early, nor one that an import swallows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from reelwright.children import kill_group
from reelwright.signals import INTERRUPTED, interrupts_heard, interrupts_held, stop_signals


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    """As in a terminal, also where these tests run in the background, where a shell has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
    # Python ends by the signal itself where one came amid an `exec`, as of dataclasses, though it was dealt with since.
    assert child.returncode in (INTERRUPTED, -signal.SIGINT)


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


def test_what_a_shell_starts_in_the_background_goes_on() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_heard():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
