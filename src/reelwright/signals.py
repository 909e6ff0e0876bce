"""Signals that ask a command to stop; none is lost, from before the command is there to hear it until it has ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

INTERRUPTED = 130  # exit code of a command that was interrupted, as shells have it: 128 + SIGINT

_raised: list[str] = []  # by `interrupts_heard`


@contextmanager
def interrupts_held() -> Iterator[None]:
    """A child of ours started in here is not sent SIGINT before it hears it (`interrupts_heard`).

    One that came while Python itself is starting would end it with a traceback or a wrong exit code, or be lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interrupts_heard() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, one that was held as well, and is remembered for `stop_signals`.

    Remembered, because an import may swallow the exception: `hasattr` in C does. Where SIGINT is ignored, as in what a
    shell starts in the background, it stays so. For the main thread.
    """

    def interrupt(number: int, _: Any) -> NoReturn:
        _raised.append(signal.Signals(number).name)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    _raised.clear()
    try:
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collects the names of signals that ask a run to stop; it then stops within one step and a save."""
    received: list[str] = []
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

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
