"""What a person sees in the terminal: progress, tables, and mistakes told in one message."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

PLAIN_INTERVAL_SECONDS = 10.0
ERROR_PREFIX = "reelwright: "


class Progress:
    """A bar on a terminal, a plain line every ten seconds elsewhere. Use as `with Progress() as p: p(stage, n, N)`."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._last_line = time.monotonic()
        self._stage: str | None = None

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if self._quiet:
            return
        text = f"{stage} {note}".strip()
        if self._bar:
            if stage not in self._tasks:
                self._tasks[stage] = self._bar.add_task(text, total=total)
            self._bar.update(self._tasks[stage], completed=done, total=total, description=text)
            return
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._last_line = stage, now
        if now - self._last_line >= PLAIN_INTERVAL_SECONDS:
            self._last_line = now
            print(f"{stage} {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """A line that stays, above the bar."""
        if self._bar:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=sys.stderr, flush=True)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """An aligned table on standard output; plain text, so that it reads the same in a file."""
    cells = [[str(value) for value in row] for row in [headers, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    if title:
        print(title)
    for number, row in enumerate(cells):
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def print_error(message: str) -> None:
    print(f"{ERROR_PREFIX}{message}", file=sys.stderr, flush=True)


def last_error(text: str) -> str:
    """The last message of `print_error` in what a command printed, to the end of the text; '' where it has none."""
    _, found, message = ("\n" + text).rpartition(f"\n{ERROR_PREFIX}")
    return message.strip() if found else ""
