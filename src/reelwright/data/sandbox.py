"""Decoding in child processes with limits: no file can take more than a set memory and time, or the parent with it.

A media file is input from strangers to a large body of C code. So every file is opened in a child that has bounded
its own memory, processor time, open files and processes, can write no file, and answers with plain data that is checked
(`data.sandbox_messages`). A child that dies, hangs or answers nonsense is killed and replaced; its file is a BadVideo
with the reason. Unless that must be the file's doing, the job is first done once more in a fresh child: neither a kill
from outside nor what earlier files left behind is blamed on it.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from reelwright.children import child_environment, kill_group
from reelwright.data.decode import BadVideo
from reelwright.data.limits import LimitsConfig
from reelwright.data.sandbox_messages import (
    MAX_HEAD_BYTES,
    Breach,
    info_of,
    numbers_of,
    pack,
    pixels_of,
    printable,
    receive,
    send,
)
from reelwright.types import FileSlice, Size, UserError, VideoFile

CHILD = "reelwright.data.sandbox_child"
FUNCTIONS = (  # all a child may run
    "decode.probe", "decode.read_window", "decode.read_spread", "scenes.find_cuts",
    "consecutive.describe", "consecutive.read_portion",
)  # fmt: skip
MAX_WORKERS = 16
SECONDS_PER_MB = 5.0  # of processor time a file may take beyond `limits.seconds`, for each MB of its size
WALL_FACTOR, WALL_SLACK = 4.0, 30.0  # wall seconds a job may take: processor seconds times the one, plus the other
START_SECONDS = 120.0  # for a child to come up, on a busy machine with its files on a network
END_SECONDS = 5.0
# A child sees what Python and its libraries need to be found, and none of the secrets that live in environments.
KEPT_VARIABLES = (
    "PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONUTF8",
    "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
)  # fmt: skip
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
}

P = ParamSpec("P")
R = TypeVar("R")


class Unfinished(BadVideo):
    """Decoding was ended by a limit, a crash, a kill or the disk: nothing to remember of the file's content."""

    transient = True


class Decoders:
    """A pool of decoding children. Threads may share it; close it, or use it as a context.

    `workers`: children at once; None: one per core, of which the processes of one `accelerate launch` have a share.
    No child starts before there is a job for it.
    """

    def __init__(self, workers: int | None = None, limits: LimitsConfig | None = None) -> None:
        self.workers = default_workers() if workers is None else workers
        if self.workers < 1:
            raise ValueError(f"workers = {workers}: at least 1, or None for one per core")
        self.limits = limits or LimitsConfig()
        # Each thread owns the child it started: Linux ends the child with the thread (prctl PR_SET_PDEATHSIG).
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="decoder")
        self._own = threading.local()
        self._children: set[_Child] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()

    def submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have a child run one of FUNCTIONS; its first argument is the file.

        The future raises BadVideo with the reason where the file is not usable, its kind Unfinished where it reached a
        limit, and UserError where no child can run at all.
        """
        name = f"{function.__module__}.{function.__name__}"
        if name.removeprefix("reelwright.data.") not in FUNCTIONS:
            raise ValueError(f"{name}: a decoding child runs only {', '.join(FUNCTIONS)}")
        if self._pid != os.getpid():
            raise RuntimeError("these Decoders belong to the process this one was forked from; make new ones here")
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
        request = {"function": name, "arguments": {key: pack(value) for key, value in bound.items()}}
        video, size = next(iter(bound.values())), bound.get("size")
        return self._threads.submit(self._run, request, video, size)

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`submit`, and wait."""
        return self.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        """End all children. Jobs that are not done are cancelled."""
        with self._lock:
            self._closed = True
            for child in self._children:
                child.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for child in self._children:
            child.end()
        self._children.clear()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, request: dict[str, Any], video: VideoFile, size: Size | None) -> Any:
        """One job, in a thread of the pool: twice where the first child's end need not be the file's doing."""
        request["seconds"] = self.limits.seconds + SECONDS_PER_MB * _num_bytes(video) / 2**20
        for last_try in (False, True):
            child = self._child()
            try:
                return child.run(request, size)
            except _Lost as lost:
                self._discard(child)
                if self._closed:
                    raise CancelledError from None
                if last_try or lost.by_the_file:
                    raise Unfinished(lost.reason) from None
        raise AssertionError("the second try returns or raises")

    def _child(self) -> _Child:
        """This thread's child, a new one where it has none."""
        child: _Child | None = getattr(self._own, "child", None)
        if child is not None:
            return child
        child = _Child(self.limits)
        with self._lock:
            self._children.add(child)
            closed = self._closed
        try:
            if closed:
                raise CancelledError
            child.wait_until_ready()
        except (UserError, CancelledError):
            self._discard(child)
            if self._closed:
                raise CancelledError from None
            raise
        self._own.child = child
        return child

    def _discard(self, child: _Child) -> None:
        self._own.child = None
        with self._lock:
            self._children.discard(child)
        child.end()


def default_workers() -> int:
    """Cores this process may use, shared among the processes that were launched on this machine; at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launched = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, min(MAX_WORKERS, cores // max(1, int(launched) if launched.isdecimal() else 1)))


class _Lost(Exception):
    """Why a child can no longer be used, and whether that must be its last file's doing."""

    def __init__(self, reason: str, by_the_file: bool) -> None:
        super().__init__(reason)
        self.reason, self.by_the_file = reason, by_the_file


class _Child:
    """One child process and the socket to it."""

    def __init__(self, limits: LimitsConfig) -> None:
        self.limits, self.jobs = limits, 0
        self._socket, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), str(os.getpid()), str(limits.memory_mb)]
        environment = child_environment()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", CHILD, *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], cwd="/", start_new_session=True,
                env={name: environment[name] for name in KEPT_VARIABLES if name in environment} | ONE_THREAD,
            )  # fmt: skip
        except OSError as error:
            self._socket.close()
            raise UserError(f"no process can be started to decode in: {error.strerror or error}") from None
        finally:
            theirs.close()

    @property
    def _is_fresh(self) -> bool:
        return self.jobs == 1

    def wait_until_ready(self) -> None:
        """UserError where the child does not come up: that is no file's fault."""
        try:
            head, _ = receive(self._socket, deadline=time.monotonic() + START_SECONDS)
            if head != {"ready": True}:
                raise Breach("no greeting")
        except (OSError, EOFError, Breach):
            code = self.end()
            raise UserError(
                f"the process to decode in does not start: {_how_it_ended(code)}; "
                f"see what this prints: {sys.executable} -P -m {CHILD} 0 {os.getpid()} {self.limits.memory_mb}"
            ) from None

    def run(self, request: dict[str, Any], size: Size | None) -> Any:
        """What the function returns. BadVideo as the function raises it; _Lost where the child must be replaced."""
        self.jobs += 1
        wall = WALL_FACTOR * request["seconds"] + WALL_SLACK
        deadline = time.monotonic() + wall
        try:
            self._socket.settimeout(wall)
            send(self._socket, request)
            head, body = receive(self._socket, math.prod(size.tuple) * 3 if size else MAX_HEAD_BYTES, deadline)
            if "bad" in head:
                raise BadVideo(printable(head["bad"]))
            if "unreadable" in head:
                raise Unfinished(printable(head["unreadable"]))
            if "missing" in head:
                raise UserError(f"the process to decode in lacks a module: {printable(head['missing'])}")
            if "memory" not in head:
                return _value(request["function"], head, body, size)
        except TimeoutError:  # stopped, starved, or waiting for a disk: not busy, or it would have met the other limit
            raise _Lost(f"did not decode within {wall:.3g} s", by_the_file=False) from None
        except Breach as breach:
            raise _Lost(f"made its decoder answer nonsense: {breach}", self._is_fresh) from None
        except (EOFError, OSError):
            raise self._why_gone(request["seconds"]) from None
        raise _Lost(f"took more than {self.limits.memory_mb} MB to decode (data.limits.memory_mb)", self._is_fresh)

    def _why_gone(self, seconds: float) -> _Lost:
        code = self.end(wait_seconds=END_SECONDS)
        if code == -signal.SIGXCPU:
            reason = f"took longer than {seconds:.3g} s of processor time to decode (data.limits.seconds)"
            return _Lost(reason, by_the_file=True)  # each job has an allowance of its own
        if code == -signal.SIGKILL:
            reason = f"its decoder was killed from outside, twice ({_how_it_ended(code)})"
            return _Lost(f"{reason}: the system does that where memory runs out", by_the_file=False)
        return _Lost(f"crashed its decoder ({_how_it_ended(code)})", self._is_fresh)

    def kill(self) -> None:
        """At once, with all it may have started; nobody waits for it here."""
        if self._process.returncode is None:
            kill_group(self._process.pid)

    def end(self, wait_seconds: float = 0.0) -> int | None:
        """Kill and reap it, after it had `wait_seconds` to end by itself; its exit code, None if it does not die."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_seconds)
        self.kill()
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel holds on to what waits for a dead disk
            self._process.wait(END_SECONDS)
        return self._process.returncode


def _value(function: str, head: dict[str, Any], body: Any, size: Size | None) -> Any:
    """The answer as the function would have returned it, else Breach."""
    if function.endswith(".probe"):
        return info_of(head, body)
    if function.endswith(".describe"):
        return printable(head.get("text"))
    return numbers_of(head) if size is None else pixels_of(head, body, size)


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "it does not end"
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def _num_bytes(video: VideoFile) -> int:
    """Of the file; 0 where there is none, which its child will say."""
    try:
        return video.num_bytes if isinstance(video, FileSlice) else video.stat().st_size
    except OSError:
        return 0
