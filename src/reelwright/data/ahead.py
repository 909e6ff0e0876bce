"""The next training batch is made while the present one is trained on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """`make(step)` for one step after the other, each in a thread, one step before it is asked for.

    Reading and drawing hardly use the processor cores and devices that a step's products keep busy. What `make` raises
    is raised where that step is asked for, and nothing of later steps is made then.
    """

    def __init__(self, make: Callable[[int], Made], end: int) -> None:
        """`end`: the first step that is not made ahead any more."""
        self._make, self._end = make, end
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: tuple[int, Future[Made]] | None = None

    def take(self, step: int) -> Made:
        """What `make` made of this step; the one after it is begun."""
        if self._next is not None and self._next[0] == step:
            future = self._next[1]
        else:
            future = self._thread.submit(self._make, step)
        made = future.result()
        self._next = (step + 1, self._thread.submit(self._make, step + 1)) if step + 1 < self._end else None
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._thread.shutdown(wait=True, cancel_futures=True)
