"""Signals that ask a command to stop; those that come before it can hear them, or amid an import, are not lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

INTERRUPTED = 130  # exit code of a command that was interrupted, as shells have it: 128 + SIGINT
# CPython ends by SIGINT itself, whatever the exit code, where one last came amid an `exec`, as dataclasses use it.
INTERRUPTED_CODES = (INTERRUPTED, -signal.SIGINT)

_raised: list[str] = []  # by `interrupts_heard`


@contextmanager
def interrupts_held() -> Iterator[None]:
    """SIGINT waits for whoever hears it (`interrupts_heard`) in here: this process, or a child of ours started here.

    One that came while Python starts or the command line is imported would end it with a traceback or a wrong exit
    code, or be lost. Where SIGINT is ignored, as by what a shell starts in the background, macOS drops it even so.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interrupts_heard() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, one that was held as well, and is remembered for `stop_signals`.

    Remembered, because an import may swallow the exception: `hasattr` in C does. Where SIGINT is ignored it stays so.
    Does nothing in other threads than the main one, which signals never reach.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> NoReturn:
        _raised.append(signal.SIGINT.name)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    try:
        if before not in (signal.SIG_IGN, None):
            signal.signal(signal.SIGINT, interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield
    finally:
        _raised.clear()
        if before is not None:  # else it was set by no Python code
            signal.signal(signal.SIGINT, before)


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collects the names of signals that ask a run to stop; it then stops within one step and a save.

    A hang-up that is ignored, as under `nohup`, stays so.
    """
    received: list[str] = []
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)

    def note(number: int, _: Any) -> None:
        received.append(signal.Signals(number).name)

    try:
        before = {number: signal.signal(number, note) for number in signals}
    except ValueError:  # not the main thread: whoever started it stops it
        yield received
        return
    try:
        received.extend(_raised)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
