"""The next batch is made while the present one is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """What an iterator yields, each made by a thread, one ahead of what is asked for.

    Reading and drawing hardly use the processor cores and devices that a step's products keep busy. What the iterator
    raises is raised where that item is asked for.
    """

    def __init__(self, items: Iterator[Made]) -> None:
        self._items = items
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: Future[Made] | None = None

    def take(self) -> Made:
        """The next item; the one after it is begun. StopIteration after the last, as an error of the caller's."""
        future = self._next or self._thread.submit(next, self._items)
        made = future.result()
        self._next = self._thread.submit(next, self._items)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._thread.shutdown(wait=True, cancel_futures=True)
