"""The processes `accelerate launch` or `torchrun` started, as `prepare` shares its work among them.

They speak through the key-value store that such a launch has anyway, not through collectives: whoever waits, waits as
long as the others work (a barrier would give up after its time-out), still answers to signals, and ends as soon as one
of them fails. Values are JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch

from reelwright.signals import INTERRUPTED
from reelwright.types import UserError

POLL_SECONDS = 0.1
LEAVE_SECONDS = 10.0  # how long the store's host waits for the others to hear the end
_FAILED = "failed"
_calls = itertools.count()  # `prepare` may run several times in a process; every process counts alike


class EndedByAnother(SystemExit):
    """Another process failed and says why; this one ends with the same exit code and nothing more to say."""


class Processes:
    """This process among its fellows; without a store it is alone."""

    def __init__(self, rank: int = 0, count: int = 1, store: Any = None) -> None:
        self.rank, self.count, self._store = rank, count, store

    @property
    def first(self) -> bool:
        """Whether this is the process that fits, and writes the manifest."""
        return self.rank == 0

    def takes(self, key: str) -> bool:
        """Whether this process makes the item of a (hexadecimal) key: all agree without speaking."""
        return int(key[:8], 16) % self.count == self.rank

    def tell(self, name: str, value: Any = None) -> None:
        """Say something under a name, once; `hear` and `hear_all` wait for it."""
        if self._store is not None:
            self._store.set(f"{name}/{self.rank}", json.dumps(value))

    def hear(self, name: str, rank: int, waiting: Callable[[], None]) -> Any:
        """What a process told. `waiting` is called every now and then. EndedByAnother where one of them failed."""
        key = f"{name}/{rank}"
        while not self._ask(lambda store: store.check([key])):
            waiting()
            self.end_with_others()
            time.sleep(POLL_SECONDS)
        return json.loads(self._ask(lambda store: store.get(key)))

    def hear_all(self, name: str, waiting: Callable[[], None]) -> list[Any]:
        """What every process told, this one among them, in the order of their ranks."""
        return [self.hear(name, rank, waiting) for rank in range(self.count)]

    def add(self, name: str, number: int) -> int:
        """Add to a count that all processes share; its new value."""
        return number if self._store is None else self._ask(lambda store: store.add(name, number))

    def end_with_others(self) -> None:
        """EndedByAnother where another process failed."""
        if self._store is not None and self._ask(lambda store: store.check([_FAILED])):
            self._store.add("left", 1)
            raise EndedByAnother(int(self._ask(lambda store: store.get(_FAILED))))

    def fail(self, error: BaseException) -> None:
        """Let the others end too."""
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        with suppress(RuntimeError):  # the store is gone: so is its host, and the others know
            self._store.set(_FAILED, str(code))
            self.leave()

    def leave(self) -> None:
        """The process that hosts the store goes last."""
        gone = self._store.add("left", 1)
        deadline = time.monotonic() + LEAVE_SECONDS
        while self.first and gone < self.count and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            gone = self._store.add("left", 0)

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        try:
            return question(self._store)
        except RuntimeError:  # torch's DistError is one
            raise UserError("the first process is gone without a word (killed?); the same command goes on") from None


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """This process among those it was launched with; alone where it was not. An error here ends all of them."""
    distributed = torch.distributed
    ours = not (distributed.is_available() and distributed.is_initialized())
    if ours and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, is_master=False, timeout=timedelta(minutes=5))
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = distributed.PrefixStore(f"reelwright/prepare/{restarts}/{next(_calls)}", store)
    processes = Processes(state.process_index, state.num_processes, store)
    try:
        yield processes
        processes.leave()
    except EndedByAnother:
        raise
    except BaseException as error:
        processes.fail(error)
        raise
    finally:
        if ours:
            state.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that speaks, before any of them is joined."""
    return os.environ.get("RANK", "0") == "0"
